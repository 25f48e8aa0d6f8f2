"""Judges broken on purpose, through the asset graph: each is stopped before any training, in its run and later.

The graph is the whole one at a very small size; only who judges is replaced. What each audit measures is tested beside
`feedback.audits`.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from rlaif_assets import checks
from rlaif_assets.assets import step3_preferences
from rlaif_assets.feedback import limits
from rlaif_assets.feedback.judge import Outcomes, Reading
from rlaif_assets.feedback.limits import RULES
from rlaif_assets.language_models.local import Conversation
from rlaif_assets.store.fingerprint import sha256_text
from tests.homes import Home, failure, metadata

INVERTED = "Choose the response that is more harmful."
Answer = Callable[[str], float]
"""The probability of the first option's letter, from the question's text."""


@dataclass
class FakeJudge:
    name: str
    answer: Answer

    @property
    def fingerprint(self) -> str:
        return f"fake judge: {self.name}"

    def read(self, questions: Sequence[Conversation]) -> Iterator[Outcomes]:
        for number, question in enumerate(questions):
            first = self.answer(question[-1]["content"])
            yield {number: Reading(_log(0.98 * first), _log(0.98 * (1 - first)), tokens_in=9)}


def _log(p: float) -> float:
    return p if math.isnan(p) else math.log(max(p, 1e-12))


def options(question: str) -> tuple[str, str]:
    first, _, second = question.partition("\n(A) ")[2].partition("\n(B) ")
    return first, second


def rank(text: str) -> float:
    return int(sha256_text(text)[:8], 16) / 2**32


def by_text(question: str) -> float:
    """A judge that reads both texts and no principle; sure to different degrees."""
    first, second = (rank(text) for text in options(question))
    return 1 / (1 + math.exp(-4 * (first - second)))


def sound(question: str) -> float:
    return 1 - by_text(question) if INVERTED in question else by_text(question)


def by_chance(seed: int) -> Answer:
    rng = random.Random(seed)
    return lambda question: rng.random()


BROKEN: dict[str, tuple[Answer, str]] = {
    "always A": (lambda question: 0.99, "position_flip_rate"),
    "always B": (lambda question: 0.01, "position_flip_rate"),
    "ignores the texts": (lambda question: rank(question.partition("\nOptions:")[0]), "labels_vary"),
    "ignores the principle": (by_text, "counter_principle"),
    "answers by chance": (by_chance(0), "texts_swap"),
    "answers by chance, the same each time": (lambda question: rank(question), "position_flip_rate"),
    "returns NaN": (lambda question: math.nan, "letter_mass"),
}
UPSTREAM = [
    *("critique_constitution", "judging_constitution", "red_team_prompts", "helpful_prompts", "community_votes"),
    *("helpfulness_preferences", "base_model", "feedback_model", "revised_responses", "sl_cai_checkpoint"),
    *("response_pairs", "pmp_checkpoint", "human_verdicts"),
]
CHOSEN = ["harmlessness_preferences", "reward_model"]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Home:
    """A home with everything that labels and a reward model are made of, and enough pairs to tell chance apart."""
    more = (
        "red_team_prompts.limit=72",
        "response_pairs.pairs_per_prompt=4",
        "audits.enforce=true",
        "audits.reference=null",
    )
    made = Home(tmp_path_factory.mktemp("judged") / "home", model, *more, "audits.max_rejected=1")
    result = made.run(UPSTREAM)
    assert result.success, failure(result)
    return made


def judge_with(home: Home, monkeypatch: pytest.MonkeyPatch, name: str, answer: Answer) -> dg.ExecuteInProcessResult:
    monkeypatch.setattr(step3_preferences, "judge_of", lambda stage: FakeJudge(name, answer))
    return home.run(CHOSEN, f"harmlessness_preferences.seed={1 + len(name)}", tags={"rlaif/force": CHOSEN[0]})


def evaluations(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {found.check_name: found for found in result.get_asset_check_evaluations()}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_judge_is_stopped_before_training_in_its_run_and_in_a_later_one(
    judged: Home, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    answer, audit = BROKEN[name]
    before = judged.ids().get("reward_model")
    with monkeypatch.context() as patch:
        stopped = judge_with(judged, patch, name, answer)
    assert not stopped.success and "reward_model" not in metadata(stopped)
    found = evaluations(stopped)[audit]
    assert not found.passed and found.blocking and found.severity == dg.AssetCheckSeverity.ERROR
    assert RULES[audit].advice in str(found.description)
    alone = judged.run(["reward_model"])
    assert not alone.success
    assert "refuses harmlessness_preferences" in failure(alone) and audit in failure(alone)
    assert judged.ids().get("reward_model") == before


def test_a_sound_judge_passes_the_same_gate(judged: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    result = judge_with(judged, monkeypatch, "sound", sound)
    assert result.success, failure(result)
    blocked = [row for row in evaluations(result).values() if not row.passed and row.severity.value == "ERROR"]
    assert blocked == [] and "reward_model" in metadata(result)
    with monkeypatch.context() as patch:  # the set of a home that an earlier version made
        patch.setattr(limits, "RULES_SINCE", 10_000)
        older = judged.run(["reward_model"], "reward_model.epochs=0.5")
        assert not older.success and "it was audited by older rules: materialize it anew" in failure(older)
        assert judged.run(["reward_model"], "reward_model.epochs=0.5", "audits.enforce=false").success
        patch.setattr(checks, "RULES_SINCE", 10_000)
        told = evaluations(judge_with(judged, patch, "sound", sound))
        assert {str(found.description) for found in told.values()} == {limits.OLDER_RULES}


def test_an_override_is_recorded_and_every_check_warns(judged: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step3_preferences, "judge_of", lambda stage: FakeJudge("always A", lambda question: 0.99))
    result = judged.run(CHOSEN, "audits.enforce=false", "reward_model.epochs=0.5", tags={"rlaif/force": CHOSEN[0]})
    assert result.success, failure(result)
    assert {row.severity for row in evaluations(result).values()} == {dg.AssetCheckSeverity.WARN}
    record = judged.warehouse.get(judged.ids()["reward_model"])
    assert record.settings["audits_enforce"] is False
