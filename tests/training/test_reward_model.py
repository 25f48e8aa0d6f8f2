"""From rows of the store to a reward model: what was trained on, what was dropped, what is scored."""

from pathlib import Path
from typing import Any

import pytest

from rlaif_assets.records import Comparison, Label, Message, Pair, PreferenceExample, Prompt
from rlaif_assets.settings import ComputeSettings, RewardModelSettings
from rlaif_assets.training import reward_model
from rlaif_assets.training.examples import dropped_rows
from rlaif_assets.training.reward_model import train_reward_model
from tests.tiny_models import CONTEXT, tiny_model

MESSAGES: tuple[Message, ...] = ({"role": "user", "content": "How do I water plants?"},)
ANSWERS = ["Water them early.", "I will not help with that.", "Break the window.", "long " * CONTEXT]


def test_rows_that_are_too_long_are_told_apart_and_scored_without_their_beginning(tmp_path: Path) -> None:
    prompts = [Prompt("p", MESSAGES, "train", "harmless", "test")]
    pairs = [Pair(f"pair{i}", "p", "a", "b", text, "No.", 0, 0, 1) for i, text in enumerate(ANSWERS)]
    labels = [Label(f"label{i}", pair.pair_id, "x", 0.9, (), None, "ai", "judge") for i, pair in enumerate(pairs)]
    comparisons = [
        Comparison(f"comparison{i}", MESSAGES, text, "Maybe.", 1.0, "test", "human") for i, text in enumerate(ANSWERS)
    ]
    settings = RewardModelSettings(heldout_share=0.0, max_length=64)
    places = tmp_path / "reward", ComputeSettings(device="cpu", threads=1, progress="none"), lambda *_: None
    start = tiny_model("llama", tmp_path / "start")
    metrics, used = train_reward_model(start, labels, pairs, prompts, comparisons, settings, *places)
    refused = dropped_rows(metrics, settings.max_length)
    assert {row.where for row in refused} == {"label3", "comparison3"}
    assert all("64 tokens" in row.reason for row in refused)
    assert {row["row_id"] for row in used} == {f"{kind}{i}" for kind in ("label", "comparison") for i in range(3)}
    assert metrics["normalisation"]["spread"] > 0


def test_the_setting_decides_whether_labels_are_rounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [Prompt("p", MESSAGES, "train", "harmless", "test")]
    pairs = [Pair("pair", "p", "a", "b", "Water them early.", "No.", 0, 0, 1)]
    labels = [Label("label", "pair", "x", 0.6, (), None, "ai", "judge")]
    seen: list[float] = []

    def stop(start: Path, train: list[PreferenceExample], *_: Any, **__: Any) -> None:
        seen.extend(row.p_a for row in train)
        raise InterruptedError

    monkeypatch.setattr(reward_model, "train_preference_model", stop)
    for choice in ("soft", "hard"):
        settings = RewardModelSettings(heldout_share=0.0, labels=choice)
        with pytest.raises(InterruptedError):
            train_reward_model(tmp_path, labels, pairs, prompts, [], settings, tmp_path, ComputeSettings(), print)
    assert seen == [0.6, 1.0]
