"""What only a GPU shows: it computes what the CPU computes, its memory runs out for real, and a run takes it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rlaif_assets.language_models.local import load_model
from rlaif_assets.records import Message
from rlaif_assets.store.warehouse import Warehouse
from tests.homes import SMALL
from tests.tiny_models import KINDS, Kind, tiny_model
from tests.training import test_preference_model as pm
from tests.training import test_sft as sft
from tests.training.test_ppo import COMPUTE, Trained, make_prompts, tiny_reward_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
GPU = COMPUTE.model_copy(update={"device": "cuda:0"})
HALF = GPU.model_copy(update={"dtype": "bfloat16"})
QUESTIONS: list[list[Message]] = [
    [{"role": "user", "content": "How do I water the plants" + " on the balcony" * (i % 5) + "?"}] for i in range(12)
]


def assert_close(a: Path, b: Path, atol: float) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in (a, b))
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(weight, second[name], rtol=0, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_log_probabilities_are_those_of_the_cpu(kind: Kind, tmp_path: Path) -> None:
    folder = tiny_model(kind, tmp_path / "m", stops=60)
    on_cpu, on_gpu = (load_model(folder, compute) for compute in (COMPUTE, GPU))
    seeds = [1000 + 7 * i for i in range(len(QUESTIONS))]
    expected = on_cpu.generate(QUESTIONS, seeds, 40, 1.0)
    found = on_gpu.generate(QUESTIONS, seeds, 40, 1.0)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]
    tokens = [answer.token_ids for answer in expected]
    given = [np.array([np.sum(one) for one in model.answer_logprobs(QUESTIONS, tokens)]) for model in (on_cpu, on_gpu)]
    np.testing.assert_allclose(given[1], given[0], atol=1e-3)


def test_a_ppo_update_is_that_of_the_cpu(tmp_path: Path) -> None:
    policy, reward = tiny_model("llama", tmp_path / "policy"), tiny_reward_model("llama", tmp_path)
    on_cpu = Trained(policy, reward, tmp_path / "cpu")
    on_gpu = Trained(policy, reward, tmp_path / "gpu", compute=GPU)
    assert [row["text"] for row in on_gpu.result.rollouts] == [row["text"] for row in on_cpu.result.rollouts]
    assert_close(on_gpu.output, on_cpu.output, 1e-4)


def test_bfloat16_passes_keep_float32_weights(tmp_path: Path) -> None:
    policy, reward = tiny_model("llama", tmp_path / "policy"), tiny_reward_model("llama", tmp_path)
    half = Trained(policy, reward, tmp_path / "half", compute=HALF)
    assert half.logged[-1]["skipped_steps"] == 0 and np.isfinite(half.logged[-1]["score"])
    # Adam's steps of 1e-5 are below bfloat16's resolution of these weights: they show in float32 weights alone.
    slow = Trained(policy, reward, tmp_path / "slow", compute=HALF, learning_rate=1e-6)
    before, after = load_file(policy / "model.safetensors"), load_file(slow.output / "model.safetensors")
    changed = [float((after[name] != before[name]).float().mean()) for name in after]
    assert after["model.layers.0.mlp.up_proj.weight"].dtype == torch.float32 and np.mean(changed) > 0.5


def test_a_preference_model_and_sl_cai_learn_in_bfloat16(tmp_path: Path) -> None:
    start = tiny_model("llama", tmp_path / "start")
    single = pm.train(start, tmp_path / "single", compute=GPU)
    double = pm.train(start, tmp_path / "double", compute=COMPUTE)
    assert single["train_loss"] == pytest.approx(double["train_loss"], abs=1e-3)
    half = pm.train(start, tmp_path / "half", compute=HALF)
    assert half["train_loss"] == pytest.approx(double["train_loss"], abs=0.05)
    tuned = sft.train(start, tmp_path / "sft", compute=sft.COMPUTE.model_copy(update={"device": "cuda:0"}))
    expected = sft.train(start, tmp_path / "sft_cpu")
    assert tuned["heldout_loss_after"] == pytest.approx(expected["heldout_loss_after"], abs=1e-3)


def limited(megabytes: float) -> dict[str, Any]:
    """Settings under which this process may have so much more than it holds."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    held = torch.cuda.memory_reserved()
    return {"device": "cuda:0", "batch_tokens": 2**20, "memory_share": (held + megabytes * 2**20) / total}


@pytest.fixture
def whole_memory() -> Any:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, 0)


def test_a_preference_model_halves_its_batches_when_memory_runs_out(tmp_path: Path, whole_memory: None) -> None:
    start = tiny_model("llama", tmp_path / "start")
    changes: dict[str, Any] = {"train": pm.make_examples(768), "epochs": 1, "batch_size": 256}
    whole = pm.train(start, tmp_path / "whole", **changes, compute=GPU.model_copy(update={"batch_tokens": 2**20}))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    small = pm.train(start, tmp_path / "small", **changes, compute=GPU.model_copy(update=limited(64)))
    assert small["steps"] == whole["steps"]
    assert_close(tmp_path / "small", tmp_path / "whole", 1e-3)
    assert torch.cuda.memory_stats()["num_ooms"] > 0


def test_ppo_halves_its_batches_when_memory_runs_out(tmp_path: Path, whole_memory: None) -> None:
    policy, reward = tiny_model("llama", tmp_path / "policy"), tiny_reward_model("llama", tmp_path)
    changes: dict[str, Any] = {"red_team": make_prompts("red", 64), "rollouts": 512, "updates": 1, "harmful_share": 1.0}
    whole = Trained(
        policy, reward, tmp_path / "whole", **changes, compute=GPU.model_copy(update={"batch_tokens": 2**20})
    )
    before = torch.cuda.memory_stats()["num_ooms"]
    small = Trained(policy, reward, tmp_path / "small", **changes, compute=GPU.model_copy(update=limited(48)))
    assert torch.cuda.memory_stats()["num_ooms"] > before
    assert small.logged[0]["skipped_steps"] == 0
    assert_close(small.output, whole.output, 1e-3)


def test_a_run_takes_the_gpu_and_says_so(tmp_path: Path) -> None:
    model, home = tiny_model("llama", tmp_path / "model", stops=60), tmp_path / "home"
    sets = [one for one in SMALL if not one.startswith("compute.device")]
    sets += [f"base_model.source={model}", f"feedback_model.source={model}"]
    command = [sys.executable, "-m", "rlaif_assets.cli", "run", "--home", str(home)]
    command += [word for one in sets for word in ("--set", one)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (home / "gpu-0.lock").exists()
    warehouse = Warehouse(home)
    for asset in ("sl_cai_checkpoint", "reward_model", "ppo_policy", "policy_evaluation", "revised_responses"):
        record = warehouse.current(asset)
        assert record is not None and record.device == "cuda:0", asset
        assert record.metrics["peak_gpu_memory_mb"] > 0, json.dumps(record.metrics)[:300]
