"""What trl 1.12.0's PPO is known to do wrong (reference/performance.md, A.4), each shown not to be so here.

By number there: in `test_ppo` are 4 (fewer prompts than rollouts), 7 (the checkpoint's generation config), 11 (an
answer that was cut off), 13 (another tokenizer) and 14 (the first ratio), in `test_ppo_execution` is 10 (a killed
training). The others are below.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from rlaif_assets.language_models.chat import encode_prompt
from rlaif_assets.language_models.local import load_model
from rlaif_assets.records import Message, Prompt
from rlaif_assets.training import ppo
from rlaif_assets.training.rollouts import sample_rollouts
from rlaif_assets.training.world import World
from tests.tiny_models import KINDS, Kind, tiny_model
from tests.training.test_ppo import (
    COMPUTE,
    RED_TEAM,
    SETTINGS,
    Trained,
    gradients,
    measured,
    two_armed,
    weights,
)


def counted_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per optimiser step of the policy (the value model has one of its own)."""
    steps: list[int] = []
    plain = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *words: Any) -> Any:
        steps.append(id(self))
        return plain(self, *words)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return steps


@pytest.mark.parametrize("batch_tokens", [4096, 40])
def test_1_minibatches_are_optimiser_steps_however_many_passes_they_take(
    policy: Path, reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_tokens: int
) -> None:
    steps = counted_steps(monkeypatch)
    compute = COMPUTE.model_copy(update={"batch_tokens": batch_tokens})
    Trained(policy, reward_model, tmp_path, updates=3, rollouts=8, epochs=2, minibatches=4, compute=compute)
    assert len(steps) == 2 * 3 * 2 * 4


def test_2_and_12_statistics_are_means_over_the_answers_tokens(tmp_path: Path) -> None:
    """However the rows are batched; and padding, whose entries are made absurd, is not read."""
    rollouts, model, _, value_model = measured("llama", tmp_path)
    whole, _ = gradients(rollouts, [list(range(9))], model, value_model)
    for name in ("logprobs", "advantages", "returns", "values"):
        getattr(rollouts, name)[~rollouts.mask] = 1e9
    parts, _ = gradients(rollouts, [[i] for i in range(9)], model, value_model)
    assert parts == pytest.approx(whole, abs=1e-5)
    # The policy has not moved: every ratio is 1, so the loss is the mean advantage, and nothing is clipped.
    assert whole["policy_loss"] == pytest.approx(-float(rollouts.advantages[rollouts.mask].mean()), abs=1e-5)
    assert whole["clip_fraction"] == 0.0 and whole["approx_kl"] == pytest.approx(0.0, abs=1e-6)


def test_3_the_last_prompts_of_an_epoch_step_as_all_others(
    policy: Path, reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 red-team prompts, 3 an update: epochs end in the middle of updates."""
    steps = counted_steps(monkeypatch)
    at: list[int] = []
    changes: dict[str, Any] = {"updates": 6, "rollouts": 6, "harmful_share": 0.5, "minibatches": 2, "epochs": 1}
    Trained(policy, reward_model, tmp_path, **changes, log=lambda metrics, step: at.append(len(steps)))
    assert at == [4, 8, 12, 16, 20, 24]


@pytest.mark.parametrize("kind", KINDS)
def test_5_where_padding_is_the_end_of_a_turn_turns_and_ends_are_read_and_trained(kind: Kind, tmp_path: Path) -> None:
    local = load_model(tiny_model(kind, tmp_path / "policy"), COMPUTE)
    local.tokenizer.pad_token = local.tokenizer.eos_token
    turns = (
        Message(role="user", content="Where?"),
        Message(role="assistant", content="Here."),
        Message(role="user", content="And where is the other one, if there is one?"),
    )
    prompts = [Prompt("long", turns, "train", "unknown", "test"), RED_TEAM[0]]
    encoded = {prompt.prompt_id: encode_prompt(local.tokenizer, prompt.messages) for prompt in prompts}
    eos = local.tokenizer.eos_token_id
    assert eos in encoded["long"]  # within the prompt
    rollouts, _ = sample_rollouts(local, prompts, encoded, [1, 2], SETTINGS, World())
    rollouts.tokens[:, 3], rollouts.mask[:, 4:] = eos, False  # both end by the token that is the padding's too
    value_model = ppo.ValueModel(local.model.base_model, local.model.config.hidden_size)
    ppo.measure(rollouts, [[0, 1]], local.model, local.model, value_model, 1.0)
    for row, prompt in enumerate(rollouts.prompt_ids):
        answer = rollouts.tokens[row][rollouts.mask[row]]
        assert int(answer[-1]) == eos
        with torch.no_grad():
            logits = local.model(input_ids=torch.tensor([prompt + answer.tolist()])).logits[0]
        wanted = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, answer[:, None])[:, 0]
        torch.testing.assert_close(rollouts.logprobs[row][rollouts.mask[row]], wanted, rtol=0, atol=1e-5)
    rollouts.advantages, rollouts.returns = torch.zeros(rollouts.mask.shape), torch.zeros(rollouts.mask.shape)
    rollouts.advantages[:, 3] = 1.0  # on the ends alone
    local.model.requires_grad_(True)
    total = int(rollouts.mask.sum())
    before = torch.stack([rollouts.logprobs[0, 3], rollouts.logprobs[1, 3]])
    ppo.add_gradients(rollouts, [[0, 1]], local.model, value_model, SETTINGS, total)
    with torch.no_grad():
        for parameter in local.model.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad
    ppo.measure(rollouts, [[0, 1]], local.model, local.model, value_model, 1.0)
    assert bool((torch.stack([rollouts.logprobs[0, 3], rollouts.logprobs[1, 3]]) > before).all())


def test_6_an_answer_that_ends_at_once_leaves_all_numbers_finite(tmp_path: Path, reward_model: Path) -> None:
    start, _ = two_armed(tmp_path / "arms")  # half of its answers are the end of turn alone
    compute = COMPUTE.model_copy(update={"batch_tokens": 1})  # one row in each pass
    run = Trained(start, reward_model, tmp_path / "out", updates=2, rollouts=8, max_new_tokens=1, compute=compute)
    assert any(row["text"] == "" for row in run.result.rollouts)
    assert all(value == value and abs(value) != float("inf") for one in run.logged for value in one.values())
    assert all(bool(weight.isfinite().all()) for weight in weights(run.output).values())


def test_8_answers_end_at_the_checkpoints_end_of_turn(tmp_path: Path, reward_model: Path) -> None:
    start, _ = two_armed(tmp_path / "arms")
    run = Trained(start, reward_model, tmp_path / "out", updates=1, rollouts=16, max_new_tokens=12)
    lengths = [row["tokens"] for row in run.result.rollouts]
    assert run.logged[0]["no_eos_share"] < 0.2 and 1 in lengths and max(lengths) < 12


@pytest.mark.parametrize("limit", [1e9, 1e-4])
def test_9_gradients_are_clipped_before_each_step(
    policy: Path, reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    norms: list[float] = []
    plain = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *words: Any) -> Any:
        parts = [p.grad.norm() for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack(parts).norm()))
        return plain(self, *words)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    Trained(policy, reward_model, tmp_path, updates=1, max_grad_norm=limit)
    assert norms
    assert max(norms) > 1e-3 if limit > 1 else max(norms) <= limit * 1.001


def test_both_learning_rates_fall_to_0_in_a_straight_line(
    policy: Path, reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: dict[int, list[float]] = {}
    plain = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *words: Any) -> Any:
        assert self.defaults["eps"] == 1e-5
        rates.setdefault(id(self), []).append(self.param_groups[0]["lr"])
        return plain(self, *words)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    changes: dict[str, Any] = {"updates": 4, "epochs": 1, "minibatches": 1}
    Trained(policy, reward_model, tmp_path, **changes, learning_rate=1e-3, value_learning_rate=4e-3)
    assert sorted(rates.values()) == [
        pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4]),
        pytest.approx([4e-3, 3e-3, 2e-3, 1e-3]),
    ]
