"""The arithmetic of PPO: pure functions of tensors, each tested against values worked out by hand.

No models, no settings, no loop; those are in `ppo.py`. Shapes: N answers, T tokens of the longest answer. A mask is
True on the tokens of an answer, its end-of-turn token included. Log-probabilities are natural logs. Where a function
takes "flat" tensors, they hold the answer tokens of one or more answers, in any order, without padding.
"""

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Per-token KL(policy || reference) estimate log p - log q: unbiased under the policy, may be negative."""
    return logprobs - reference_logprobs


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Per-token KL(policy || reference) estimate (q/p - 1) - log(q/p): unbiased, never negative, of lower variance.

    For rewards and reports, never as a loss: its gradient is not the gradient of the KL
    (http://joschu.net/blog/kl-approx.html).
    """
    log_ratio = (reference_logprobs - logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return log_ratio.exp() - 1.0 - log_ratio


def final_scores(scores: Tensor, finished: Tensor, score_clip: float, missing_eos_penalty: float) -> Tensor:
    """(N,) what an answer earns at its last token: its clipped normalised score, and at most the penalty if it never
    ended: a good beginning of an endless answer earns nothing, and a bad answer gains nothing by not ending.
    """
    clipped = scores.clamp(-score_clip, score_clip)
    return torch.where(finished, clipped, clipped.clamp(max=missing_eos_penalty))


def adapted_coefficient(coefficient: float, kl: float, target: float, answers: int, horizon: int) -> float:
    """The next KL coefficient, which nears the KL to the target: c (1 + clip(kl / target - 1, +-0.2) n / horizon).

    Ziegler et al. 2019, section 2.2. `answers` is the n that the mean `kl` (nats per answer) was taken over.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coefficient * max(0.0, 1.0 + error * answers / horizon)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coefficient: float) -> Tensor:
    """(N, T) rewards: -kl_coefficient * kl on every answer token, and `scores` (N,) added on the last one.

    HH (Bai et al. 2022a) section 4.1, r = r_PM - beta * KL, with the KL spread over the tokens that cause it.
    Every answer has at least one token.
    """
    rewards = torch.where(mask, -kl_coefficient * kl, torch.zeros_like(kl))
    last = mask.sum(dim=1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores.unsqueeze(1))


def advantages_and_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """(N, T) generalised advantage estimates (Schulman et al. 2016, eq. 16) and value targets, 0 beyond the mask.

    values[:, t] is the value before token t. The value after the last token is 0 for every answer: one that was cut
    off counts as ended there (its score is at most the penalty), so nothing is bootstrapped.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(rewards)
    next_value = torch.zeros_like(rewards[:, 0])
    running = torch.zeros_like(next_value)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # Beyond an answer's end delta is 0, so `running` and `next_value` are still 0 when its last token comes.
        running = delta + gamma * gae_lambda * running
        advantages[:, t] = running
        next_value = values[:, t]
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """(N, T) values shifted and scaled to mean 0 and (population) variance 1 over the mask; 0 elsewhere."""
    chosen = values[mask]
    return (values - chosen.mean()) * torch.rsqrt(chosen.var(correction=0) + 1e-8) * mask


def ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Flat policy ratios, the log-ratio clamped to +-20 so that no exponential overflows."""
    return (logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def policy_loss(ratios: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """Flat clipped surrogate loss of each token (Schulman et al. 2017, eq. 7, negated)."""
    clipped = ratios.clamp(1.0 - clip_range, 1.0 + clip_range)
    return torch.maximum(-advantages * ratios, -advantages * clipped)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """Flat squared error of each token, half; the larger of the plain one and the one with the clipped step."""
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over flat tensors; 0 if the returns are all the same."""
    variance = returns.var(correction=0)
    if variance <= 1e-12:
        return 0.0
    return float(1.0 - (returns - values).var(correction=0) / variance)
