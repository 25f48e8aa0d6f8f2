"""Step 5 in the graph: other rewards than the reward model, and a training that was killed."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from rlaif_assets.assets.mlflow_run import MlflowRun
from rlaif_assets.store.checkpoint_files import RESUME_FOLDER, killed_trainings, remove_dead_work
from tests.homes import Home, failure, metadata

PPO = ["ppo_policy"]
REWARD = "def short(prompts, completions):\n    return [-len(answer[0]['content']) for answer in completions]\n"


def test_the_judge_itself_can_be_the_reward(home: Home) -> None:
    result = home.run(PPO, "ppo_policy.reward=judge")
    assert result.success, failure(result)
    snapshot = metadata(result)["ppo_policy"]["snapshot_id"]
    assert snapshot != home.first["ppo_policy"]
    record = home.warehouse.get(snapshot)
    assert record.settings["reward"] == "judge"
    assert {"feedback_model", "judging_constitution"} <= record.inputs.keys()
    rows = home.warehouse.rows("rollouts", snapshot)
    assert sum(row["score"] for row in rows) == pytest.approx(0.0, abs=4.0) and len({row["score"] for row in rows}) > 1
    assert home.run(PPO).success and home.ids()["ppo_policy"] == home.first["ppo_policy"]


def test_a_function_is_a_reward_and_a_change_of_its_source_a_new_policy(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "my_rewards.py"
    file.write_text(REWARD)
    reward = f"ppo_policy.reward={file}:short"
    made = home.run(PPO, reward)
    assert made.success, failure(made)
    again = metadata(home.run(PPO, reward))["ppo_policy"]
    assert again["reused"] and again["snapshot_id"] == metadata(made)["ppo_policy"]["snapshot_id"]
    file.write_text(REWARD.replace("-len", "2 * len"))
    assert not metadata(home.run(PPO, reward))["ppo_policy"]["reused"]
    file.write_text(REWARD.replace("short", "other"))
    refused = home.run(PPO, reward)
    assert not refused.success and "has no function 'short'" in failure(refused)
    assert home.run(PPO).success and home.ids()["ppo_policy"] == home.first["ppo_policy"]


def test_a_killed_training_goes_on_where_it_was(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("ppo_policy.updates=3", "ppo_policy.kl_target=0.5", "compute.checkpoint_seconds=0")
    plain = MlflowRun.log
    steps: list[int] = []

    def killed(self: MlflowRun, metrics: Mapping[str, float], step: int) -> None:
        steps.append(step)
        if step == 2 and len(steps) == 3:
            raise RuntimeError("killed")
        plain(self, metrics, step)

    monkeypatch.setattr(MlflowRun, "log", killed)
    assert not home.run(PPO, *words).success
    folder = home.folder / RESUME_FOLDER
    assert [path.suffix for path in folder.iterdir()] == [".pt"]
    state = next(folder.iterdir())
    part = state.with_name(f"{state.name}.{2**22 + 1}.part")  # of a process that is dead
    part.touch()
    assert part.name in remove_dead_work(home.folder) and state.exists()
    assert [line.split()[0] for line in killed_trainings(home.folder)] == [f"{RESUME_FOLDER}/{state.name}"]
    done = home.run(PPO, *words)
    assert done.success, failure(done)
    assert steps == [0, 1, 2, 0, 1, 2]  # the first two are told again, to the new run
    assert list(folder.iterdir()) == []
    found = metadata(done)["ppo_policy"]
    updates = [row["update"] for row in home.warehouse.rows("rollouts", found["snapshot_id"])]
    assert updates == [0] * 4 + [1] * 4 + [2] * 4
    forced = metadata(home.run(PPO, *words, tags={"rlaif/force": "ppo_policy"}))["ppo_policy"]
    assert forced["snapshot_id"] == found["snapshot_id"] and forced["metrics/updates"] == 3
    assert home.run(PPO).success and home.ids()["ppo_policy"] == home.first["ppo_policy"]


def test_the_halves_share_nothing_and_are_all_of_it(home: Home) -> None:
    whole, a, b = (
        {(row["row_id"], row["role"], row["source"]) for row in home.warehouse.rows("training_rows", home.first[name])}
        for name in ("reward_model", "reward_model_half_a", "reward_model_half_b")
    )
    assert a and b and not a & b and a | b == whole


def test_halves_that_learned_from_other_labels_do_not_watch(home: Home) -> None:
    assert "heldout_score" in home.warehouse.get(home.first["ppo_policy"]).metrics
    labelled = ["harmlessness_preferences", "reward_model", "ppo_policy"]
    moved = home.run(labelled, "harmlessness_preferences.seed=9")
    assert moved.success, failure(moved)
    metrics = home.warehouse.get(metadata(moved)["ppo_policy"]["snapshot_id"]).metrics
    assert "heldout_score" not in metrics and metrics["guards"] == {"findings": [], "updates_kept": 1}
    paid = home.run(
        [*labelled, "reward_model_half_a"], "harmlessness_preferences.seed=9", "ppo_policy.reward=reward_model_half_b"
    )
    assert "heldout_score" in home.warehouse.get(metadata(paid)["ppo_policy"]["snapshot_id"]).metrics
    compared = ["helpfulness_preferences", "reward_model", "ppo_policy"]
    for change in ("helpfulness_preferences.limit=15", "reward_model.labels=hard"):
        moved = home.run(compared, "harmlessness_preferences.seed=9", change)
        assert "heldout_score" not in home.warehouse.get(metadata(moved)["ppo_policy"]["snapshot_id"]).metrics, change
    assert home.run([*labelled, "helpfulness_preferences", "reward_model_half_a"]).success
    assert home.ids()["ppo_policy"] == home.first["ppo_policy"]


@pytest.mark.parametrize("reward", ["reward_model", "judge"])
def test_several_processes_train_the_same_policy(home: Home, reward: str) -> None:
    """Where they run identifies nothing: one process and two are one snapshot's key."""
    words = (f"ppo_policy.reward={reward}", "ppo_policy.updates=2", "ppo_policy.seed=5")
    two = home.run(PPO, *words, "compute.processes=2")
    assert two.success, failure(two)
    found = metadata(two)["ppo_policy"]
    assert metadata(home.run(PPO, *words))["ppo_policy"]["reused"]
    one = metadata(home.run(PPO, *words, tags={"rlaif/force": "ppo_policy"}))["ppo_policy"]
    theirs, ours = (home.warehouse.rows("rollouts", made["snapshot_id"]) for made in (found, one))
    assert [(row["prompt_id"], row["text"]) for row in theirs] == [(row["prompt_id"], row["text"]) for row in ours]
    assert [row["score"] for row in theirs] == pytest.approx([row["score"] for row in ours], abs=1e-3)
    metrics = [home.warehouse.get(made["snapshot_id"]).metrics for made in (found, one)]
    assert metrics[0].keys() == metrics[1].keys() and metrics[0]["updates"] == 2
    assert home.run(PPO).success and home.ids()["ppo_policy"] == home.first["ppo_policy"]
