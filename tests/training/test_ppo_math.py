"""PPO arithmetic against numbers worked out by hand."""

import math

import pytest
import torch
from torch import tensor

from rlaif_assets.training import ppo_math


def close(actual: torch.Tensor, expected: list, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, tensor(expected, dtype=actual.dtype), rtol=0, atol=tolerance)


def test_k1_and_k3_of_a_known_ratio() -> None:
    logprobs, reference = tensor([0.5, 0.25]).log(), tensor([0.25, 0.5]).log()
    close(ppo_math.k1(logprobs, reference), [math.log(2), -math.log(2)])
    close(ppo_math.k3(logprobs, reference), [0.5 - 1 + math.log(2), 2 - 1 - math.log(2)])


def test_k1_and_k3_average_to_the_kl_under_the_policy() -> None:
    p, q = tensor([0.7, 0.2, 0.1]), tensor([0.2, 0.3, 0.5])
    kl = float((p * (p / q).log()).sum())
    assert float((p * ppo_math.k1(p.log(), q.log())).sum()) == pytest.approx(kl, abs=1e-6)
    assert float((p * ppo_math.k3(p.log(), q.log())).sum()) == pytest.approx(kl, abs=1e-6)


def test_k3_of_impossible_tokens_is_finite() -> None:
    assert torch.isfinite(ppo_math.k3(tensor([-1000.0]), tensor([0.0]))).all()


def test_an_answer_without_end_earns_its_score_but_at_most_the_penalty() -> None:
    finished = tensor([True, True, True, False, False, False])
    scores = ppo_math.final_scores(
        tensor([0.3, 9.0, -9.0, 4.0, -3.0, -9.0]), finished, score_clip=5.0, missing_eos_penalty=-1.0
    )
    close(scores, [0.3, 5.0, -5.0, -1.0, -3.0, -5.0])


def test_the_coefficient_is_steered_to_the_target() -> None:
    # Twice the target: the error is clipped to 0.2, and 64 of 1000 answers are 0.064 of the horizon.
    assert ppo_math.adapted_coefficient(0.1, 4.0, 2.0, 64, 1000) == pytest.approx(0.1 * (1 + 0.2 * 0.064))
    assert ppo_math.adapted_coefficient(0.1, 2.2, 2.0, 64, 1000) == pytest.approx(0.1 * (1 + 0.1 * 0.064))
    assert ppo_math.adapted_coefficient(0.1, -1.0, 2.0, 64, 1000) == pytest.approx(0.1 * (1 - 0.2 * 0.064))
    assert ppo_math.adapted_coefficient(0.1, 2.0, 2.0, 64, 1000) == pytest.approx(0.1)
    assert ppo_math.adapted_coefficient(0.1, 0.0, 2.0, 10_000, 1000) == 0.0  # never negative


def test_kl_is_paid_on_every_token_and_the_score_comes_on_the_last() -> None:
    kl = tensor([[0.5, -1.0, 2.0], [1.0, 7.0, 7.0]])
    mask = tensor([[True, True, True], [True, False, False]])
    rewards = ppo_math.token_rewards(tensor([1.0, -2.0]), kl, mask, kl_coefficient=0.1)
    close(rewards, [[-0.05, 0.1, 0.8], [-2.1, 0.0, 0.0]])


def test_advantages_by_hand() -> None:
    # gamma 0.9, lambda 0.5. Row 0: delta2 = 1-3 = -2; delta1 = 0+0.9*3-2 = 0.7, A1 = 0.7+0.45*-2 = -0.2;
    # delta0 = 0.1+0.9*2-1 = 0.9, A0 = 0.9+0.45*-0.2 = 0.81. Row 1 ends after one token: A0 = 4-1 = 3.
    rewards = tensor([[0.1, 0.0, 1.0], [4.0, 50.0, 50.0]])
    values = tensor([[1.0, 2.0, 3.0], [1.0, 50.0, 50.0]])
    mask = tensor([[True, True, True], [True, False, False]])
    advantages, returns = ppo_math.advantages_and_returns(rewards, values, mask, gamma=0.9, gae_lambda=0.5)
    close(advantages, [[0.81, -0.2, -2.0], [3.0, 0.0, 0.0]])
    close(returns, [[1.81, 1.8, 1.0], [4.0, 0.0, 0.0]])


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.99, 1.0), (1.0, 0.0)])
def test_advantages_equal_their_closed_form(gamma: float, gae_lambda: float) -> None:
    """A_t = sum over l of (gamma lambda)^l delta_{t+l}, for answers of different lengths."""
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths = [6, 1, 3, 5]
    mask = torch.arange(6) < tensor(lengths)[:, None]
    advantages, _ = ppo_math.advantages_and_returns(rewards, values, mask, gamma, gae_lambda)
    for row, length in enumerate(lengths):
        ends = [*values[row, :length].tolist(), 0.0]
        deltas = [float(rewards[row, t]) + gamma * ends[t + 1] - ends[t] for t in range(length)]
        for t in range(length):
            expected = sum((gamma * gae_lambda) ** i * deltas[t + i] for i in range(length - t))
            assert float(advantages[row, t]) == pytest.approx(expected, abs=1e-12)
    assert float(advantages[~mask].abs().sum()) == 0.0


def test_lambda_1_makes_returns_the_sums_of_future_rewards() -> None:
    rewards, values = tensor([[1.0, 2.0, 3.0]]), tensor([[7.0, -3.0, 11.0]])
    _, returns = ppo_math.advantages_and_returns(rewards, values, torch.ones(1, 3, dtype=torch.bool), 1.0, 1.0)
    close(returns, [[6.0, 5.0, 3.0]])


def test_whitening_counts_masked_tokens_alone() -> None:
    mask = tensor([[True, True], [True, False]])
    whitened = ppo_math.whiten(tensor([[1.0, 2.0], [3.0, 1000.0]]), mask)
    unit = math.sqrt(1.5)  # 1, 2, 3 has mean 2 and variance 2/3
    close(whitened, [[-unit, 0.0], [unit, 0.0]])


def test_whitening_equal_values_gives_zeros() -> None:
    close(ppo_math.whiten(tensor([[4.0, 4.0]]), tensor([[True, True]])), [[0.0, 0.0]])
    close(ppo_math.whiten(tensor([[4.0]]), tensor([[True]])), [[0.0]])


def test_the_log_ratio_is_clamped() -> None:
    ratios = ppo_math.ratio(tensor([0.0, 100.0, -100.0]), tensor([0.0, 0.0, 0.0]))
    assert ratios[0] == 1.0
    assert ratios[1] == pytest.approx(math.exp(20), rel=1e-5)
    assert ratios[2] == pytest.approx(math.exp(-20), rel=1e-5)


def test_policy_loss_clips_gains_and_keeps_losses() -> None:
    ratios = tensor([1.0, 1.5, 1.5, 0.5, 0.5])
    advantages = tensor([2.0, 1.0, -1.0, 1.0, -1.0])
    # min(r A, clip(r) A), negated: a gain stops at 1.2 (or 0.8); what got worse counts in full.
    close(ppo_math.policy_loss(ratios, advantages, clip_range=0.2), [-2.0, -1.2, 1.5, -0.5, 0.8])


def test_policy_gradient_stops_where_the_gain_is_clipped() -> None:
    ratios = tensor([1.5, 1.5], requires_grad=True)
    ppo_math.policy_loss(ratios, tensor([1.0, -1.0]), clip_range=0.2).sum().backward()
    assert ratios.grad is not None
    close(ratios.grad, [0.0, 1.0])


def test_value_loss_takes_the_larger_of_both_errors() -> None:
    values, old_values = tensor([1.0, 1.0, 0.1]), tensor([0.0, 0.0, 0.0])
    returns = tensor([1.0, -1.0, 1.0])
    # Clipped values are 0.2, 0.2, 0.1: errors (0, 0.8), (2, 1.2), (0.9, 0.9).
    close(ppo_math.value_loss(values, old_values, returns, clip_range=0.2), [0.32, 2.0, 0.405])


def test_explained_variance() -> None:
    returns = tensor([1.0, 2.0, 3.0])
    assert ppo_math.explained_variance(returns, returns) == 1.0
    assert ppo_math.explained_variance(tensor([2.0, 2.0, 2.0]), returns) == pytest.approx(0.0, abs=1e-6)
    assert ppo_math.explained_variance(-returns, returns) == pytest.approx(-3.0, abs=1e-5)
    assert ppo_math.explained_variance(returns, tensor([5.0, 5.0, 5.0])) == 0.0
