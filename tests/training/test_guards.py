"""Guards of PPO: each fires on the history that it is for and not on a healthy one; what becomes of the policy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlaif_assets.settings import PpoPolicySettings
from rlaif_assets.training.guards import boilerplate, findings, standing
from rlaif_assets.training.rewards import Reward
from tests.training.test_ppo import COMPUTE, Trained, equal_weights, tiny_reward_model, weights

SETTINGS = PpoPolicySettings(guard_window=2)
HEALTHY = {
    "score": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5],
    "kl": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
    "boilerplate": [0.1, 0.1, 0.2, 0.1, 0.2, 0.2],
    "heldout_score": [0.0, 0.1, 0.1, 0.2, 0.2, 0.2],
}


def history(**changes: list[float]) -> list[dict[str, float]]:
    columns = HEALTHY | changes
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_a_healthy_training_has_no_findings() -> None:
    assert findings(history(), SETTINGS) == []


@pytest.mark.parametrize(
    ("guard", "changes", "off"),
    [
        ("kl", {"kl": [0, 1, 5, 20, 80, 120]}, "guard_kl"),
        ("heldout", {"heldout_score": [0, 0.1, 0.9, 0.8, 0.2, 0.1]}, "guard_heldout"),
        ("boilerplate", {"boilerplate": [0.1, 0.1, 0.2, 0.5, 0.8, 0.9]}, "guard_boilerplate"),
        ("collapse", {"score": [0, 0.1, 0.2, 0.3, -0.5, -2.0]}, "guard_collapse"),
    ],
)
def test_each_guard_fires_on_what_it_is_for(guard: str, changes: Any, off: str) -> None:
    found = findings(history(**changes), SETTINGS)
    assert [one.guard for one in found] == [guard]
    assert f"ppo_policy.{off}" in found[0].why and found[0].update == 5
    assert findings(history(**changes)[:3], SETTINGS) == []  # not two windows yet
    assert findings(history(**changes), SETTINGS.model_copy(update={off: None})) == []


def test_a_heldout_score_that_falls_with_the_trained_one_is_no_over_optimisation() -> None:
    changes = {"heldout_score": [0, 0.1, 0.9, 0.8, 0.2, 0.1], "score": [0.5, 0.5, 0.4, 0.4, 0.3, 0.3]}
    assert findings(history(**changes), SETTINGS) == []


def test_the_commonest_run_of_words_over_prompts() -> None:
    shared = "you are valid valued and cared for"
    texts = [f"{shared} today", f"well {shared}", "a b c d e f g", "short", f"{shared} again"]
    assert boilerplate(["p", "q", "r", "s", "p"], texts) == 2 / 4  # by prompts, not by answers
    assert boilerplate(["p"], ["short"]) == 0.0


def test_the_standing_is_the_heldout_score_else_the_reward() -> None:
    rows = history(reward=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert standing(rows, SETTINGS) == pytest.approx(0.2)
    for row in rows:
        del row["heldout_score"]
    assert standing(rows, SETTINGS) == pytest.approx(5.5)
    assert standing(rows[:1], SETTINGS) is None


def falling() -> Reward:
    """A reward that falls by 1 from update to update: the collapse guard's case."""
    calls: list[int] = []

    def rate(prompts: Any, texts: Any) -> np.ndarray:
        calls.append(1)
        return np.arange(len(texts)) / 10 - len(calls)

    return Reward("falling", rate, 0.0, 1.0)


def test_a_guard_stops_the_training_and_the_best_policy_is_kept(policy: Path, tmp_path: Path) -> None:
    changes = {"updates": 6, "guard_window": 1, "score_clip": 100.0, "missing_eos_penalty": 100.0}
    stopped = Trained(policy, falling(), tmp_path / "stopped", **changes, guard_collapse=1.5)
    assert [(one.guard, one.update) for one in stopped.result.findings] == [("collapse", 2)]
    # The first answers earned most: those of the policy before any update.
    assert len(stopped.logged) == 3 and stopped.result.kept == 0
    assert equal_weights(policy, stopped.output)
    warned = Trained(policy, falling(), tmp_path / "warned", **changes, guard_collapse=1.5, guards="warn")
    assert len(warned.logged) == 6 and warned.result.kept == 6
    assert [one.guard for one in warned.result.findings] == ["collapse"]
    assert not equal_weights(warned.output, stopped.output)
    off = Trained(policy, falling(), tmp_path / "off", **changes, guard_collapse=1.5, guards="off")
    assert off.result.findings == [] and equal_weights(off.output, warned.output)


def test_a_killed_training_knows_its_best(policy: Path, tmp_path: Path) -> None:
    words = {"updates": 6, "guard_window": 1, "guard_collapse": 1.5, "score_clip": 100.0, "missing_eos_penalty": 100.0}
    whole = Trained(policy, falling(), tmp_path / "whole", **words)
    file, reward = tmp_path / "ppo.pt", falling()

    def killed(metrics: dict[str, float], step: int) -> None:
        if step == 1:
            raise KeyboardInterrupt

    again = {**words, "compute": COMPUTE.model_copy(update={"checkpoint_seconds": 0.0}), "checkpoint": file}
    with pytest.raises(KeyboardInterrupt):
        Trained(policy, reward, tmp_path / "killed", **again, log=killed)
    later = Reward("falling", lambda prompts, texts: reward.rate(prompts, texts) + 1, 0.0, 1.0)  # one call was lost
    done = Trained(policy, later, tmp_path / "done", **again)
    assert equal_weights(whole.output, done.output) and done.result.findings == whole.result.findings


def test_heldout_rewards_are_measured_and_change_nothing(policy: Path, tmp_path: Path) -> None:
    pm, other = tiny_reward_model("llama", tmp_path / "a"), tiny_reward_model("llama", tmp_path / "b", mean=0.0)
    from rlaif_assets.training.rewards import preference_reward

    plain = Trained(policy, pm, tmp_path / "plain")
    watched = Trained(policy, pm, tmp_path / "watched", heldout=[preference_reward(other, COMPUTE)])
    assert equal_weights(plain.output, watched.output)
    assert "heldout_score" not in plain.logged[0]
    assert all(np.isfinite(metrics["heldout_score"]) for metrics in watched.logged)


def test_the_policy_that_is_kept_is_one_that_was_measured(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of the best window spoils the weights: they are not what its answers were sampled with."""
    plain, steps = torch.optim.AdamW.step, [0]
    spoilt: list[bool] = []

    def step(self: Any, *words: Any) -> Any:
        found = plain(self, *words)
        steps[0] += 1
        if steps[0] == 4 * 4 - 1:  # of the policy, the last one in update 3 (each update has two of either model)
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.mul_(3.0)
            spoilt.append(True)
        return found

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    scores = iter([0.0, 0.0, 5.0, 6.0, -9.0, -9.0, -9.0, -9.0])

    def rate(prompts: Any, texts: Any) -> np.ndarray:
        return np.arange(len(texts)) / 10 + next(scores)

    words = {"updates": 8, "guard_window": 2, "guard_collapse": 1.0, "score_clip": 100.0, "missing_eos_penalty": 100.0}
    run = Trained(policy, Reward("given", rate, 0.0, 1.0), tmp_path / "out", **words)
    assert spoilt and [one.guard for one in run.result.findings] == ["collapse"]
    assert run.result.kept == 3  # what answered in update 3, before its steps
    assert run.result.metrics["score"] == pytest.approx(run.logged[3]["score"])  # not of updates that were thrown away
    assert run.result.metrics["updates"] == len(run.logged) > 3
    largest = max(float(weight.abs().max()) for weight in weights(run.output).values())
    assert largest < 1.5 * max(float(weight.abs().max()) for weight in weights(policy).values())


def test_a_heldout_score_that_falls_slowly_is_seen() -> None:
    slow = [1.0 - 0.1 * i for i in range(8)]
    flat = [0.1] * 8
    rows = history(score=[0.1 * i for i in range(8)], heldout_score=slow, kl=flat, boilerplate=flat)
    assert [one.guard for one in findings(rows, SETTINGS.model_copy(update={"guard_heldout": 0.5}))] == ["heldout"]
    assert findings(rows, SETTINGS.model_copy(update={"guard_heldout": 0.7})) == []
