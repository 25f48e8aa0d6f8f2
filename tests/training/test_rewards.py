"""Rewards for PPO: the preference model, the judge, a Python function; how they are normalised and what they refuse."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from rlaif_assets.feedback.judge import Failure
from rlaif_assets.feedback.rating import LocalRater, Rating, Ratings
from rlaif_assets.language_models.local import Conversation, load_model
from rlaif_assets.records import JudgingPrinciple, Message, Prompt
from rlaif_assets.settings import ComputeSettings
from rlaif_assets.training.errors import TrainingError
from rlaif_assets.training.preference_model import PreferenceScorer
from rlaif_assets.training.rewards import (
    Reward,
    alignment,
    function_fingerprint,
    function_reward,
    judge_reward,
    preference_reward,
)
from tests.tiny_models import tiny_model
from tests.training.test_ppo import tiny_reward_model

COMPUTE = ComputeSettings(device="cpu", threads=1, progress="none")
PROMPTS = [
    Prompt(f"p{i}", (Message(role="user", content=f"Question {i}?"),), "train", "unknown", "test") for i in range(12)
]
PRINCIPLES = [JudgingPrinciple(f"id-{name}", name, f"Is it {name}?") for name in ("kind", "true", "brief")]


class LengthRater:
    """Rates by the length of the question; remembers what it was asked. What holds "hopeless" is a failure."""

    fingerprint = "length"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def rate(self, questions: Sequence[Conversation]) -> Iterator[Ratings]:
        texts = [" ".join(message["content"] for message in question) for question in questions]
        self.asked += texts
        for i, text in enumerate(texts):
            yield {i: Failure("no idea") if "hopeless" in text else Rating(len(text) / 1e4, 1.0, 1)}


def test_the_preference_model_with_its_stored_normalisation(tmp_path: Path) -> None:
    folder = tiny_reward_model("llama", tmp_path, mean=0.5, spread=2.0)
    reward = preference_reward(folder, COMPUTE)
    scores = reward.scores(PROMPTS[:2], ["Yes.", "No."])
    expected = PreferenceScorer(folder, COMPUTE).scores([prompt.messages for prompt in PROMPTS[:2]], ["Yes.", "No."])
    np.testing.assert_array_equal(scores, expected)
    np.testing.assert_allclose(reward.normalised(scores), (expected - 0.5) / 2.0)


def test_the_judge_rates_each_answer_under_the_principle_of_its_prompt() -> None:
    rater = LengthRater()
    reward = judge_reward(rater, PRINCIPLES, seed=0)
    texts = [f"Answer {i:02d}." for i in range(12)]
    scores = reward.scores(PROMPTS, texts)
    assert len(set(scores)) > 1  # the principles differ in length
    drawn = [
        next(p.name for p in PRINCIPLES if any(p.text in asked and texts[i] in asked for asked in rater.asked))
        for i in range(12)
    ]
    assert len(set(drawn)) > 1 and len(rater.asked) == 12
    backwards = judge_reward(LengthRater(), PRINCIPLES[::-1], seed=0).scores(PROMPTS[::-1], texts[::-1])
    np.testing.assert_array_equal(backwards[::-1], scores)


def test_a_real_judge_gives_a_score_between_minus_1_and_1(tmp_path: Path) -> None:
    reward = judge_reward(LocalRater(load_model(tiny_model("llama", tmp_path), COMPUTE)), PRINCIPLES, seed=0)
    scores = reward.scores(PROMPTS[:3], ["Yes.", "No.", "Perhaps not."])
    assert (np.abs(scores) <= 1).all() and len(set(scores)) == 3


def test_an_answer_that_the_judge_cannot_rate_is_an_error() -> None:
    with pytest.raises(TrainingError, match="cannot rate an answer to prompt p1: no idea"):
        judge_reward(LengthRater(), PRINCIPLES, seed=0).scores(PROMPTS[:2], ["fine", "hopeless"])


def test_scores_are_normalised_by_the_first_ones() -> None:
    reward = Reward("length", lambda prompts, texts: np.array([float(len(text)) for text in texts]))
    scores = reward.scores(PROMPTS[:4], ["a", "bbb", "a", "bbb"])
    reward.fit(scores)
    np.testing.assert_allclose(reward.normalised(scores), [-1.0, 1.0, -1.0, 1.0])
    np.testing.assert_allclose(reward.normalised(np.array([4.0])), [2.0])
    with pytest.raises(TrainingError, match="alike"):
        reward.fit(np.ones(3))


FUNCTION = """
def shortness(prompts, completions, **kwargs):
    return [-len(answer[0]["content"]) - len(asked[-1]["content"]) for asked, answer in zip(prompts, completions)]

def broken(prompts, completions):
    return [1.0]

def raising(prompts, completions):
    raise KeyError("x")

def nan(prompts, completions):
    return [float("nan")] * len(prompts)
"""


def test_a_python_function_in_a_file_and_in_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my_rewards.py"
    file.write_text(FUNCTION)
    monkeypatch.syspath_prepend(str(tmp_path))
    for place in (f"{file}:shortness", "my_rewards:shortness"):
        assert list(function_reward(place).scores(PROMPTS[:2], ["abc", "a"])) == [-14.0, -12.0]
    before = function_fingerprint(f"{file}:shortness")
    assert before == function_fingerprint("my_rewards:shortness")
    file.write_text(FUNCTION.replace("-len(answer", "len(answer"))
    assert function_fingerprint(f"{file}:shortness") != before
    sys.modules.pop("my_rewards")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"shape \(1,\) for 2 answers"),
        ("raising", "failed: KeyError"),
        ("nan", "prompt p0 is not finite"),
        ("missing", "has no function 'missing'"),
    ],
)
def test_what_a_function_does_wrong_is_told(name: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(FUNCTION)
    with pytest.raises(TrainingError, match=message):
        function_reward(f"{file}:{name}").scores(PROMPTS[:2], ["abc", "a"])


@pytest.mark.parametrize("place", ["reward-model", "no_such_package.x:f", "missing.py:f", "json:nothing"])
def test_a_reward_that_is_not_there_is_refused(place: str) -> None:
    with pytest.raises(TrainingError, match=r"ppo_policy\.reward .*write reward_model, reward_model_half_a, judge"):
        function_reward(place)


def test_alignment_brings_one_kind_of_prompt_to_the_others_mean_and_spread() -> None:
    draw = np.random.default_rng(0)
    scores = np.concatenate([draw.normal(0.5, 1.0, 40), draw.normal(-7.0, 2.0, 30)])
    shift, scale = alignment(scores, 40)
    moved = (scores[40:] - shift) / scale
    assert moved.mean() == pytest.approx(scores[:40].mean()) and moved.std() == pytest.approx(scores[:40].std())
    assert (
        alignment(scores, 0) == alignment(scores, 70) == alignment(scores[:50], 40) == (0.0, 1.0)
    )  # too few of a kind
    flat = np.concatenate([scores[:40], np.full(30, 3.0)])
    assert alignment(flat, 40) == (0.0, 1.0)
    shift, scale = alignment(np.concatenate([scores[:40], 3.0 + 1e-4 * draw.normal(size=30)]), 40)
    assert scale == pytest.approx(1 / 3)  # hardly any spread is not blown up to as much as the others have


def test_a_callable_object_and_a_file_with_a_dataclass_are_rewards(tmp_path: Path) -> None:
    file = tmp_path / "objects.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Pay:\n    much: float = 2.0\n"
        "    def __call__(self, prompts, completions):\n        return [self.much] * len(prompts)\npay = Pay()\n"
    )
    place = f"{file}:pay"
    assert function_reward(place).scores(PROMPTS[:2], ["a", "b"]).tolist() == [2.0, 2.0]
    before = function_fingerprint(place)
    file.write_text(file.read_text().replace("2.0", "3.0"))
    assert function_fingerprint(place) != before
    with pytest.raises(TrainingError, match="its source cannot be read"):
        function_fingerprint("builtins:len")
