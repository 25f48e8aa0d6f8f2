"""PPO in two processes, started by accelerate over gloo, is PPO in one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rlaif_assets.settings import ComputeSettings, PpoPolicySettings
from rlaif_assets.training.errors import TrainingError
from rlaif_assets.training.ppo import PpoResult
from rlaif_assets.training.ppo_processes import PpoJob, train_in_processes
from rlaif_assets.training.rewards import RewardSource
from rlaif_assets.training.world import World
from tests.training.gradient_process import BATCHES
from tests.training.test_ppo import (
    COMPUTE,
    HELPFUL,
    RED_TEAM,
    SETTINGS,
    Trained,
    gradients,
    measured,
    weights,
)

TWO = COMPUTE.model_copy(update={"processes": 2, "device": "cpu"})
ROOT = Path(__file__).parents[2]


class StoppedError(Exception):
    pass


def train(
    policy: Path,
    reward: RewardSource,
    output: Path,
    settings: PpoPolicySettings,
    compute: ComputeSettings = TWO,
    checkpoint: Path | None = None,
    parent: int | None = None,
    stop_at: int | None = None,
) -> tuple[PpoResult, list[dict[str, Any]]]:
    logged: list[dict[str, Any]] = []

    def log(metrics: dict[str, float], update: int) -> None:
        logged.append({"step": update, **metrics})
        if update == stop_at:
            raise StoppedError

    parent = parent or os.getpid()
    job = PpoJob(policy, reward, RED_TEAM, HELPFUL, settings, output, compute, checkpoint, [], parent)
    return train_in_processes(job, log), logged


def test_each_item_is_one_processs_share_and_is_gathered_in_order() -> None:
    shares = [World(rank, 3).share(range(8)) for rank in range(3)]
    assert [list(share) for share in shares] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert World().gather([3, 1, 2], 3) == [3, 1, 2]


def test_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    words = ["--multi_gpu", "--num_machines", "1", "--num_processes", "2", "--mixed_precision", "no"]
    words += ["--dynamo_backend", "no", "--main_process_port", "0", "-m", "tests.training.gradient_process"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *words, str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, timeout=300, capture_output=True)
    statistics, theirs = torch.load(tmp_path / "gradients.pt")
    rollouts, model, _, value_model = measured("llama", tmp_path / "one")
    wanted, ours = gradients(rollouts, BATCHES, model, value_model)
    assert theirs.keys() == ours.keys() and statistics == pytest.approx(wanted, abs=1e-6)
    for name, gradient in ours.items():
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
    assert max(float(gradient.abs().max()) for gradient in ours.values()) > 1e-3


def test_two_processes_train_the_policy_of_one(policy: Path, reward_model: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"updates": 2, "rollouts": 7, "minibatches": 2})  # odd shares
    result, logged = train(policy, reward_model, tmp_path / "two", settings)
    one = Trained(policy, reward_model, tmp_path / "one", updates=2, rollouts=7, minibatches=2)
    assert [row["text"] for row in result.rollouts] == [row["text"] for row in one.result.rollouts]
    assert [row["prompt_id"] for row in result.rollouts] == [row["prompt_id"] for row in one.result.rollouts]
    timed = ("seconds", "tokens_per")
    for ours, theirs in zip(one.logged, logged, strict=True):
        assert theirs.keys() == ours.keys()
        for name in ours:
            if not name.startswith(timed):
                assert theirs[name] == pytest.approx(ours[name], abs=1e-4), name
    mine, other = weights(one.output), weights(tmp_path / "two")
    assert mine.keys() == other.keys()
    for name, weight in mine.items():
        torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-4)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in one.output.iterdir()}


def test_a_training_that_was_stopped_goes_on_bit_for_bit(policy: Path, reward_model: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"updates": 3})
    compute, file = TWO.model_copy(update={"checkpoint_seconds": 0.0}), tmp_path / "state.pt"
    with pytest.raises(StoppedError):
        train(policy, reward_model, tmp_path / "killed", settings, compute, file, stop_at=1)
    assert file.exists() and not (tmp_path / "killed").exists()
    done, logged = train(policy, reward_model, tmp_path / "done", settings, compute, file)
    whole, _ = train(policy, reward_model, tmp_path / "whole", settings)
    assert [metrics["step"] for metrics in logged] == [0, 1, 2] and file.exists()
    train(policy, reward_model, tmp_path / "twice", settings, compute, file)  # nothing is left to do
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(f"{os.getpid()}-")]
    assert done.rollouts == whole.rollouts
    found, wanted = weights(tmp_path / "done"), weights(tmp_path / "whole")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_an_error_of_any_process_is_told_as_in_one(policy: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("def pay(prompts, completions):\n    return [float('nan')] * len(prompts)\n")
    with pytest.raises(TrainingError, match=r"score of an answer to prompt \S+ is not finite"):
        train(policy, f"{broken}:pay", tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def test_a_process_that_dies_is_told_with_what_it_printed(policy: Path, tmp_path: Path) -> None:
    dying = tmp_path / "dying.py"
    dying.write_text("import os, sys\nprint('no more', file=sys.stderr, flush=True)\nos._exit(9)\n")
    with pytest.raises(TrainingError, match=r"(?s)ended with status 1 and no result: .*no more"):
        train(policy, f"{dying}:pay", tmp_path / "out", SETTINGS)


def test_processes_end_when_who_started_them_is_gone(policy: Path, reward_model: Path, tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    slow = tmp_path / "slow.py"  # one that never comes to an update's end
    slow.write_text("import time\ndef pay(prompts, completions):\n    time.sleep(300)\n")
    with pytest.raises(TrainingError, match=f"process {gone.pid}, which started this training, is gone"):
        train(policy, f"{slow}:pay", tmp_path / "out", SETTINGS, parent=gone.pid)


def test_each_process_needs_an_answer(policy: Path, reward_model: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"rollouts=1 are too few for compute\.processes=2"):
        train(policy, reward_model, tmp_path / "out", SETTINGS.model_copy(update={"rollouts": 1}))
