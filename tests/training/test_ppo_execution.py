"""How PPO is executed changes nothing but rounding: kills, memory, recomputed layers; and precision, adapters."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlaif_assets.language_models.local import load_model
from rlaif_assets.training import ppo
from rlaif_assets.training.errors import TrainingError
from rlaif_assets.training.memory import use_gradient_checkpointing
from rlaif_assets.training.rewards import Reward, preference_reward
from rlaif_assets.training.rollouts import Rollouts
from tests.tiny_models import KINDS, Kind, tiny_model
from tests.training.test_ppo import COMPUTE, RED_TEAM, Trained, equal_weights, tiny_reward_model, weights

EVERY_UPDATE = COMPUTE.model_copy(update={"checkpoint_seconds": 0.0})


class KilledError(Exception):
    pass


def killed_at(update: int) -> Any:
    def log(metrics: dict[str, float], step: int) -> None:
        if step == update:
            raise KilledError

    return log


def texts(run: Trained) -> list[str]:
    return [row["text"] for row in run.result.rollouts]


def length_reward() -> Reward:
    return Reward("length", lambda prompts, texts: np.array([float(len(text)) for text in texts]))


@pytest.mark.parametrize("form", ["all weights", "adapters", "a function's reward"])
def test_a_killed_training_goes_on_bit_for_bit(form: str, policy: Path, reward_model: Path, tmp_path: Path) -> None:
    changes = {"updates": 4, "minibatches": 2, "kl_target": 0.01, "kl_horizon": 50}
    changes |= {"lora_rank": 2} if form == "adapters" else {}
    reward = (lambda: reward_model) if form != "a function's reward" else length_reward
    whole = Trained(policy, reward(), tmp_path / "whole", **changes)
    file = tmp_path / "state" / "ppo.pt"
    again = {**changes, "compute": EVERY_UPDATE, "checkpoint": file}
    for update in (1, 3):  # killed twice
        with pytest.raises(KilledError):
            Trained(policy, reward(), tmp_path / "killed", **again, log=killed_at(update))
        assert list(file.parent.iterdir()) == [file]
    done = Trained(policy, reward(), tmp_path / "done", **again)
    assert equal_weights(whole.output, done.output)
    assert done.result.rollouts == whole.result.rollouts
    timed = ("seconds", "tokens_per")
    plain = [{k: v for k, v in m.items() if not k.startswith(timed)} for m in whole.logged]
    assert [{k: v for k, v in m.items() if not k.startswith(timed)} for m in done.logged] == plain
    assert plain[0]["kl_coefficient"] != plain[3]["kl_coefficient"]
    assert file.exists() and not (tmp_path / "killed").exists()  # whoever stores the policy removes it
    twice = Trained(policy, reward(), tmp_path / "twice", **again)  # a kill after the last update
    assert equal_weights(whole.output, twice.output) and twice.result.rollouts == whole.result.rollouts


def test_a_state_of_another_training_is_refused(policy: Path, reward_model: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "ppo.pt", tmp_path / "other.pt"
    for content in (b"", b"nonsense"):
        file.write_bytes(content)
        with pytest.raises(TrainingError, match=r"ppo\.pt is no checkpoint of this training: remove it"):
            Trained(policy, reward_model, tmp_path / "out", checkpoint=file)
    with pytest.raises(KilledError):
        Trained(policy, reward_model, tmp_path / "x", checkpoint=other, compute=EVERY_UPDATE,
                log=killed_at(1))  # fmt: skip
    with pytest.raises(TrainingError, match="other weights"):
        Trained(policy, reward_model, tmp_path / "out", checkpoint=other, lora_rank=2)


def test_batches_are_halved_where_memory_does_not_suffice(
    policy: Path, reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = COMPUTE.model_copy(update={"batch_tokens": 4096})
    whole = Trained(policy, reward_model, tmp_path / "whole", compute=compute)
    plain, failed = ppo.pack, []

    def limited(rollouts: Rollouts, rows: list[int]) -> Any:
        if len(rows) > 2:
            failed.append(len(rows))
            raise torch.OutOfMemoryError("out of memory")
        return plain(rollouts, rows)

    monkeypatch.setattr(ppo, "pack", limited)
    done = Trained(policy, reward_model, tmp_path / "done", compute=compute)
    assert failed and len(failed) < 12  # what suffices is kept for the rest of the training
    assert texts(done) == texts(whole)
    assert done.logged[-1]["skipped_steps"] == 0
    for name, weight in weights(done.output).items():
        torch.testing.assert_close(weight, weights(whole.output)[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_recomputes_and_changes_nothing(kind: Kind, tmp_path: Path) -> None:
    folder, pm = tiny_model(kind, tmp_path / "policy"), tiny_reward_model(kind, tmp_path)
    plain = Trained(folder, pm, tmp_path / "plain")
    compute = COMPUTE.model_copy(update={"gradient_checkpointing": True})
    done = Trained(folder, pm, tmp_path / "done", compute=compute)
    assert texts(done) == texts(plain)
    for name, weight in weights(done.output).items():
        torch.testing.assert_close(weight, weights(plain.output)[name], rtol=0, atol=1e-5)

    model: Any = load_model(folder, COMPUTE).model
    use_gradient_checkpointing(model)
    calls: list[int] = []
    layers: Any = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model.train()
    model(input_ids=torch.ones(1, 4, dtype=torch.int64)).logits.sum().backward()
    assert len(calls) == 2


def test_dropout_stays_off_under_gradient_checkpointing(tmp_path: Path, reward_model: Path) -> None:
    folder = tiny_model("gpt_neox", tmp_path / "policy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.5, "hidden_dropout": 0.5}))
    compute = COMPUTE.model_copy(update={"gradient_checkpointing": True})
    run = Trained(folder, reward_model, tmp_path / "out", updates=1, epochs=1, compute=compute)
    assert run.logged[0]["approx_kl"] < 1e-8


def test_bfloat16_passes_train_float32_weights(policy: Path, reward_model: Path, tmp_path: Path) -> None:
    compute = COMPUTE.model_copy(update={"dtype": "bfloat16"})
    run = Trained(policy, reward_model, tmp_path / "out", compute=compute, learning_rate=1e-5)
    assert {weight.dtype for weight in weights(run.output).values()} == {torch.float32}
    assert not equal_weights(policy, run.output)  # steps of 1e-5 would be lost in bfloat16 weights
    assert abs(run.logged[0]["kl"]) < 1e-3 and run.logged[0]["skipped_steps"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_trained_and_merged(kind: Kind, tmp_path: Path) -> None:
    folder = tiny_model(kind, tmp_path / "policy")
    run = Trained(folder, tiny_reward_model(kind, tmp_path), tmp_path / "out", lora_rank=2, learning_rate=1e-2)
    before, after = weights(folder), weights(run.output)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any("embed" in name or "lm_head" in name or "norm" in name for name in changed)
    assert run.logged[0]["kl"] == pytest.approx(0.0, abs=1e-5)  # the reference is the model with adapters off
    assert abs(run.logged[1]["kl"]) > 1e-6
    assert load_model(run.output, COMPUTE).generate([RED_TEAM[0].messages], [1], 4, 1.0)  # a plain model


def test_adapters_under_gradient_checkpointing(policy: Path, reward_model: Path, tmp_path: Path) -> None:
    compute = COMPUTE.model_copy(update={"gradient_checkpointing": True})
    run = Trained(policy, reward_model, tmp_path / "out", lora_rank=2, learning_rate=1e-2, compute=compute)
    assert not equal_weights(policy, run.output)


def test_length_and_kl_are_paid_as_set(policy: Path, reward_model: Path, tmp_path: Path) -> None:
    base = {"updates": 2, "score_clip": 1e9, "missing_eos_penalty": 1e9}
    free = Trained(policy, reward_model, tmp_path / "a", **base)
    long = Trained(policy, reward_model, tmp_path / "b", **base, length_penalty=0.25)
    for one, other in zip(free.result.rollouts[:6], long.result.rollouts[:6], strict=True):
        assert other["score"] == pytest.approx(one["score"] - 0.25 * one["tokens"], abs=1e-5)
    k3 = Trained(policy, reward_model, tmp_path / "c", **base, kl_estimator="k3", kl_coefficient=5.0)
    k1 = Trained(policy, reward_model, tmp_path / "d", **base, kl_coefficient=5.0)
    assert k1.logged[0]["reward"] == pytest.approx(k3.logged[0]["reward"], abs=1e-4)  # no KL yet
    assert k3.logged[1]["reward"] < k3.logged[1]["score"]  # k3 is never negative
    assert k1.logged[1]["reward"] != pytest.approx(k3.logged[1]["reward"], abs=1e-4)


def test_the_length_penalty_is_paid_beyond_the_clip_too(policy: Path, reward_model: Path, tmp_path: Path) -> None:
    words = {"updates": 1, "score_clip": 0.5, "length_penalty": 1.0, "missing_eos_penalty": 1e9}
    run = Trained(policy, length_reward(), tmp_path, **words)
    rest = [row["score"] + row["tokens"] for row in run.result.rollouts]
    assert max(rest) == pytest.approx(0.5) and min(rest) == pytest.approx(-0.5)


def test_smaller_batches_are_kept_to_after_a_kill(
    policy: Path, reward_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, asked, plain = tmp_path / "ppo.pt", [], ppo.in_halves
    words = {"updates": 3, "checkpoint": file}
    with pytest.raises(KilledError):
        Trained(policy, reward_model, tmp_path / "x", **words, compute=EVERY_UPDATE, log=killed_at(1))

    def halves(work: Any, batch_tokens: int) -> Any:
        asked.append(batch_tokens)
        return plain(work, batch_tokens)

    monkeypatch.setattr(ppo, "in_halves", halves)
    smaller = EVERY_UPDATE.model_copy(update={"batch_tokens": 64})
    Trained(policy, reward_model, tmp_path / "out", **words, compute=smaller)
    assert set(asked) == {64}


def test_scores_of_helpful_prompts_are_aligned_also_after_a_kill(policy: Path, tmp_path: Path) -> None:
    """A preference model that scores every answer to a helpful prompt 50 spreads lower: without alignment the clip
    would take all of them."""
    reward = lambda: shifted_reward(tmp_path)  # noqa: E731
    changes = {"updates": 3, "rollouts": 40, "harmful_share": 0.5, "minibatches": 2, "missing_eos_penalty": 1e9}
    whole = Trained(policy, reward(), tmp_path / "whole", **changes)
    helpful = [row["score"] for row in whole.result.rollouts if row["prompt_id"].startswith("helpful")]
    assert len(helpful) == 60 and len(set(helpful)) > 10 and abs(np.mean(helpful[:20])) < 2.0
    assert whole.logged[0]["clipped_score_share"] < 0.2
    file = tmp_path / "state.pt"
    again = {**changes, "compute": EVERY_UPDATE, "checkpoint": file}
    with pytest.raises(KilledError):
        Trained(policy, reward(), tmp_path / "killed", **again, log=killed_at(2))
    done = Trained(policy, reward(), tmp_path / "done", **again)
    assert equal_weights(whole.output, done.output) and done.result.rollouts == whole.result.rollouts


def shifted_reward(folder: Path) -> Reward:
    pm = folder / "pm"
    reward = preference_reward(pm if pm.exists() else tiny_reward_model("llama", folder), COMPUTE)
    rate = reward.rate

    def lower(prompts: Any, texts: Any) -> np.ndarray:
        return rate(prompts, texts) - np.array([100.0 * p.prompt_id.startswith("helpful") for p in prompts])

    reward.rate = lower
    return reward
