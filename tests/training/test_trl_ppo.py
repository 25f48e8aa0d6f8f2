"""One update of ours is one update of the PPO that TRL shipped last (1.12.0), on answers of one length."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from benchmarks.ppo import SPECIAL, build_models, build_prompts, build_tokenizer, run_side
from rlaif_assets.language_models.chat import encode_prompt, encode_text
from rlaif_assets.records import Message, Prompt
from rlaif_assets.settings import ComputeSettings, PpoPolicySettings
from rlaif_assets.training.ppo import train_ppo
from rlaif_assets.training.rewards import Reward, preference_reward

ROWS, ANSWER, RATE = 8, 6, 1e-3


@pytest.fixture(scope="module")
def trl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trl")
    words = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), "trl==1.12.0"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"trl 1.12.0 cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return folder


def test_one_update_equals_trls(trl: Path, tmp_path: Path) -> None:
    build_models(tmp_path, "tiny", None, 64)
    tokenizer = build_tokenizer(256)
    texts = build_prompts([7], 256, ROWS)
    prompts = [Prompt(str(i), (Message(role="user", content=t),), "train", "unknown", "t") for i, t in enumerate(texts)]
    ids = [encode_prompt(tokenizer, prompt.messages) for prompt in prompts]
    compute = ComputeSettings(device="cpu", threads=1, progress="none")

    model: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward_model", dtype=torch.float32)

    def rate(drawn: Any, answers: Any) -> np.ndarray:
        """At the answer's last token, where TRL reads the score of an answer that did not end."""
        rows = [ids[int(p.prompt_id)] + encode_text(tokenizer, text) for p, text in zip(drawn, answers, strict=True)]
        with torch.no_grad():
            return model(input_ids=torch.tensor(rows)).logits[:, 0].double().numpy()

    scorer = preference_reward(tmp_path / "reward_model", compute).scorer
    settings = PpoPolicySettings(
        updates=1, rollouts=ROWS, epochs=3, minibatches=1, max_new_tokens=ANSWER, learning_rate=RATE,
        value_learning_rate=RATE, kl_coefficient=0.05, max_grad_norm=1e9, missing_eos_penalty=1e9, score_clip=1e9,
        harmful_share=1.0, seed=0,
    )  # fmt: skip
    reward = Reward("scores", rate, 0.0, 1.0, scorer)
    policy, output = tmp_path / "policy", tmp_path / "ours"
    result = train_ppo(policy, reward, prompts, [], settings, output, compute, lambda metrics, step: None)
    answers = {row["prompt_id"]: encode_text(tokenizer, row["text"]) for row in result.rollouts}
    assert {len(answer) for answer in answers.values()} == {ANSWER} and len(answers) == ROWS
    assert all(i >= len(SPECIAL) for answer in answers.values() for i in answer)

    told = {"updates": 1, "rollouts": ROWS, "epochs": 3, "response_length": ANSWER, "learning_rate": RATE,
            "kl_coefficient": 0.05, "micro_rows": ROWS, "forward_rows": ROWS, "vf_coef": 1.0}  # fmt: skip
    theirs = run_side({
        "side": "trl", "trl": str(trl), "folder": str(tmp_path), "output": str(tmp_path / "theirs"), "settings": told,
        "prompt_ids": ids, "answers": [answers[prompt.prompt_id] for prompt in prompts], "threads": 1, "device": "cpu",
        "dtype": "float32", "seed": 0,
    })  # fmt: skip
    assert theirs["steps"] == 3
    assert theirs["scores"] == pytest.approx([result.metrics["score_raw"]], abs=1e-5)
    before = load_file(tmp_path / "policy" / "model.safetensors")
    ours, peer = (load_file(tmp_path / side / "model.safetensors") for side in ("ours", "theirs"))
    assert ours.keys() == peer.keys()
    moved = max(float((ours[name] - before[name]).abs().max()) for name in ours)
    assert moved > RATE  # three steps of up to the learning rate
    for name in ours:
        torch.testing.assert_close(ours[name], peer[name], rtol=0, atol=1e-5, msg=name)
