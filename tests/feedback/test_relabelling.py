"""Which questions are asked and why, with a fake judge whose calls are counted."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rlaif_assets.feedback import relabelling
from rlaif_assets.feedback.generation import silent
from rlaif_assets.feedback.judge import Failure, JudgeStoppedError, Outcomes, Reading
from rlaif_assets.feedback.judging import JudgeQuestion, judge_questions, whole_pairs
from rlaif_assets.feedback.relabelling import answer_missing, plan
from rlaif_assets.language_models.local import Conversation
from rlaif_assets.records import Judgement, JudgingConstitution, Rejection
from rlaif_assets.settings import HarmlessnessPreferencesSettings
from rlaif_assets.store.judgements import JudgementStore
from rlaif_assets.store.warehouse import Warehouse
from tests.feedback.fakes import JUDGING, PROMPTS, hashed_logprobs, make_pair

SETTINGS = HarmlessnessPreferencesSettings(few_shot=2, seed=1)
BY_ID = {prompt.prompt_id: prompt for prompt in PROMPTS}
PAIRS = [make_pair(prompt, f"one answer {i}", f"another answer {i}") for i, prompt in enumerate(PROMPTS)]


@dataclass
class CountingJudge:
    """Answers by a hash, `batch` questions at a time; stops or fails where told to."""

    fingerprint: str = "judge"
    batch: int = 5
    stop_after: int = 1_000_000
    moved: float = 0.0
    fail: str = "no answer is refused"
    asked: list[Conversation] = field(default_factory=list)

    def read(self, questions: Sequence[Conversation]) -> Iterator[Outcomes]:
        for start in range(0, len(questions), self.batch):
            if start >= self.stop_after:
                raise JudgeStoppedError("the budget of 7 calls is spent: raise it")
            rows = questions[start : start + self.batch]
            self.asked += rows
            yield {start + i: self._outcome(row) for i, row in enumerate(rows)}

    def _outcome(self, question: Conversation) -> Reading | Failure:
        if self.fail in question[-1]["content"]:
            return Failure("told to fail")
        first, second = hashed_logprobs(question)
        return Reading(first - self.moved, second, 100, 1)


@dataclass(frozen=True)
class Judged:
    """The answers of the whole pairs, the other pairs, and what was told."""

    judgements: list[Judgement]
    rejections: list[Rejection]
    metrics: dict[str, Any]


def judge_missing(judge: Any, questions: list[JudgeQuestion], store: JudgementStore, *more: Any) -> Judged:
    answered = answer_missing(judge, questions, store, *more)
    return Judged(*whole_pairs(questions, answered.found), answered.metrics)


def run(
    home: Path,
    judge: CountingJudge | None = None,
    settings: HarmlessnessPreferencesSettings = SETTINGS,
    constitution: JudgingConstitution = JUDGING,
    pairs: Sequence = PAIRS,
) -> tuple[CountingJudge, Judged]:
    judge = judge or CountingJudge()
    questions = judge_questions(judge.fingerprint, constitution, BY_ID, pairs, settings)
    store = JudgementStore(Warehouse(home))
    foreseen = plan(judge.fingerprint, questions, store, settings).counts()
    before = len(judge.asked)
    judged = judge_missing(judge, questions, store, settings, "run", silent)
    if before == 0:
        assert foreseen == {name: judged.metrics[name] for name in foreseen}
        assert judged.metrics["computed"] == len(judge.asked)
    return judge, judged


def with_(**changes: object) -> HarmlessnessPreferencesSettings:
    return SETTINGS.model_copy(update=changes)


def reworded(number: int) -> JudgingConstitution:
    principles = list(JUDGING.principles)
    principles[number] = dataclasses.replace(principles[number], principle_id="new", text="Choose otherwise.")
    return JudgingConstitution(tuple(principles), JUDGING.examples)


def answers(judged: Judged) -> list[tuple[str, float]]:
    return [(row.judgement_id, row.p_a) for row in judged.judgements]


def test_the_first_time_all_is_asked_and_the_second_nothing(tmp_path: Path) -> None:
    _, first = run(tmp_path)
    assert first.metrics["by_reason"] == {"new_pairs": 24} and first.metrics["reused"] == 0
    assert first.metrics["tokens"] == 24 * 101 and not first.rejections
    again, second = run(tmp_path)
    assert again.asked == [] and second.metrics["reused"] == 24 and second.metrics["tokens"] == 0
    assert second.judgements == first.judgements


def test_a_reworded_principle_asks_again_what_it_judged_and_nothing_else(tmp_path: Path) -> None:
    _, first = run(tmp_path)
    used = first.judgements[0].principle_id
    number = next(i for i, principle in enumerate(JUDGING.principles) if principle.principle_id == used)
    mine = [row for row in first.judgements if row.principle_id == used]
    judge, second = run(tmp_path, constitution=reworded(number))
    assert second.metrics["by_reason"] == {f"principle:judging-{number}": len(mine)}
    assert all("Choose otherwise." in asked[-1]["content"] for asked in judge.asked)
    kept = {row for row in first.judgements if row.principle_id != used}
    assert kept < set(second.judgements) and len(second.judgements) == 24
    back, third = run(tmp_path)
    assert back.asked == [] and third.judgements == first.judgements


@pytest.mark.parametrize(
    ("reason", "settings", "judge"),
    [
        ("template", with_(few_shot=1), "judge"),
        ("template", with_(principle_position="after"), "judge"),
        ("judge", SETTINGS, "another"),
        ("judge", with_(few_shot=0), "another"),
    ],
)
def test_another_template_or_judge_asks_all_again(
    tmp_path: Path, reason: str, settings: HarmlessnessPreferencesSettings, judge: str
) -> None:
    run(tmp_path)
    _, second = run(tmp_path, CountingJudge(judge), settings)
    assert second.metrics["by_reason"] == {reason: 24}


def test_new_pairs_are_asked_alone(tmp_path: Path) -> None:
    run(tmp_path, pairs=PAIRS[:9])
    _, second = run(tmp_path)
    assert (second.metrics["reused"], second.metrics["by_reason"]) == (18, {"new_pairs": 6})


def test_more_principles_and_both_orders_add_to_what_is_there(tmp_path: Path) -> None:
    _, single = run(tmp_path, settings=with_(orders="single"))
    assert {row.order for row in single.judgements} == {"ab", "ba"} and len(single.judgements) == 12
    _, both = run(tmp_path)
    assert both.metrics["by_reason"] == {"order": 12} and both.metrics["reused"] == 12
    _, three = run(tmp_path, settings=with_(principles_per_pair=3))
    assert three.metrics["reused"] == 24 and sum(three.metrics["by_reason"].values()) == 48
    assert all(reason.startswith("principle:") for reason in three.metrics["by_reason"])
    _, every = run(tmp_path, settings=with_(principles_per_pair=99))
    assert len(every.judgements) == 12 * 16 * 2


def test_the_earlier_answers_of_a_judge_that_stops_are_kept(tmp_path: Path) -> None:
    judge = CountingJudge(stop_after=10)
    with pytest.raises(JudgeStoppedError, match=r"budget of 7 calls .* \(10 judgements .* kept and 14 are left"):
        run(tmp_path, judge)
    rest, judged = run(tmp_path)
    assert len(rest.asked) == 14 and judged.metrics["reused"] == 10
    assert answers(judged) == answers(run(tmp_path / "undisturbed")[1])


def test_what_a_dead_run_had_committed_is_used(tmp_path: Path) -> None:
    judge = CountingJudge()
    store = JudgementStore(Warehouse(tmp_path))
    questions = judge_questions("judge", JUDGING, BY_ID, PAIRS, SETTINGS)

    class Died(BaseException):
        pass

    def die(phase: str, done: int, total: int) -> None:
        if done >= 15:
            raise Died

    with pytest.raises(Died):
        judge_missing(judge, questions, store, SETTINGS, "run", die)
    assert store.newest([question.key for question in questions]) == {}  # they are files still
    rest = CountingJudge()
    judged = judge_missing(rest, questions, store, SETTINGS, "run", silent)
    assert len(rest.asked) == 9
    assert answers(judged) == answers(run(tmp_path / "undisturbed")[1])


def test_a_pair_with_a_failure_is_rejected_and_asked_again_the_next_time(tmp_path: Path) -> None:
    _, first = run(tmp_path, CountingJudge(fail="(A) one answer 3"))
    assert [rejection.where for rejection in first.rejections] == [PAIRS[3].pair_id]
    assert first.rejections[0].reason == "told to fail"
    assert (len(first.judgements), first.metrics["failed"]) == (22, 1)
    judge, second = run(tmp_path)
    assert len(judge.asked) == 1 and not second.rejections and len(second.judgements) == 24


def test_old_judgements_are_asked_again_for_a_date_and_once_for_it(tmp_path: Path) -> None:
    run(tmp_path)
    old = with_(max_age_days=30, as_of="2099-01-01")
    _, second = run(tmp_path, CountingJudge(moved=1.0), old)
    assert second.metrics["by_reason"] == {"age": 24} and {row.round for row in second.judgements} == {1}
    assert {row.as_of for row in second.judgements} == {"2099-01-01"}
    _, third = run(tmp_path, settings=old)
    assert third.metrics["computed"] == 0 and third.judgements == second.judgements
    assert third.metrics["drift"] == second.metrics["drift"]
    assert run(tmp_path, settings=with_(max_age_days=30, as_of="2000-01-01"))[1].metrics["computed"] == 0
    assert run(tmp_path, settings=with_(max_age_days=30))[1].metrics["computed"] == 0
    _, fourth = run(tmp_path, settings=with_(max_age_days=30, as_of="2099-06-01"))
    assert {row.round for row in fourth.judgements} == {2}


def test_a_drawn_share_is_asked_again_and_tells_how_far_the_judge_moved(tmp_path: Path) -> None:
    _, first = run(tmp_path)
    _, second = run(tmp_path, CountingJudge(moved=1.0), with_(drift_sample=0.4, as_of="2026-05-01"))
    again = [row for row in second.judgements if row.round]
    assert 0 < len(again) < 24 and second.metrics["by_reason"] == {"drift": len(again)}
    assert len({row.pair_id for row in again}) == len(again) / 2  # a pair as a whole
    before = {row.question_id: row.p_a for row in first.judgements}
    moved = [abs(row.p_a - before[row.question_id]) for row in again]
    assert second.metrics["drift"] == {
        "judgements": len(again),
        "mean_difference": pytest.approx(sum(moved) / len(moved)),
        "max_difference": max(moved),
    }
    assert second.metrics["drift"]["mean_difference"] > 0.01
    _, other = run(tmp_path, settings=with_(drift_sample=0.4, as_of="2026-05-02"))
    assert {row.pair_id for row in other.judgements if row.as_of == "2026-05-02"} != {row.pair_id for row in again}
    _, still = run(tmp_path, settings=with_(drift_sample=1.0, as_of="2026-05-03"))
    assert still.metrics["computed"] == 24
    assert run(tmp_path)[1].metrics["drift"] is None


@pytest.mark.parametrize("again", [{"drift_sample": 1.0}, {"max_age_days": 30, "as_of": "2099-01-01"}])
def test_a_first_answer_is_not_asked_again_for_the_date_of_its_own_run(tmp_path: Path, again: dict[str, Any]) -> None:
    with pytest.raises(JudgeStoppedError):
        run(tmp_path, CountingJudge(stop_after=10), with_(**again))
    rest, _ = run(tmp_path, settings=with_(**again))
    assert len(rest.asked) == 14
    assert run(tmp_path, settings=with_(**again))[0].asked == []


def test_a_question_that_is_there_twice_is_asked_once(tmp_path: Path) -> None:
    pairs = [PAIRS[0], dataclasses.replace(PAIRS[0], pair_id="again"), PAIRS[1]]
    judge, judged = run(tmp_path, pairs=pairs, constitution=JudgingConstitution(JUDGING.principles[:1], ()))
    assert len(judge.asked) == 4 and len(judged.judgements) == 6
    assert (judged.metrics["reused"], judged.metrics["computed"]) == (2, 4)


def test_where_asking_again_fails_the_earlier_answer_stands(tmp_path: Path) -> None:
    _, first = run(tmp_path)
    again = with_(drift_sample=1.0, as_of="2026-05-01")
    _, second = run(tmp_path, CountingJudge(moved=1.0, fail="(A) one answer 3"), again)
    assert not second.rejections and second.metrics["rejudging_failed"] == second.metrics["failed"] == 1
    kept = [row for row in second.judgements if row.round == 0]
    assert len(kept) == 1 and kept[0] in first.judgements


def test_a_judge_that_answers_nothing_that_is_asked_again_stops(tmp_path: Path) -> None:
    """The earlier answers would stand, and the drift be none."""
    run(tmp_path)
    with pytest.raises(JudgeStoppedError, match="none of the 24 questions that were asked again was answered: told to"):
        run(tmp_path, CountingJudge(fail=""), with_(drift_sample=1.0, as_of="2026-05-01"))


def test_answers_are_named_by_the_pair_and_principle_that_ask_now(tmp_path: Path) -> None:
    run(tmp_path)
    renamed = [dataclasses.replace(principle, principle_id=f"x{i}") for i, principle in enumerate(JUDGING.principles)]
    judge, judged = run(tmp_path, constitution=JudgingConstitution(tuple(renamed), JUDGING.examples))
    assert judge.asked == [] and all(row.principle_id.startswith("x") for row in judged.judgements)


def test_seconds_are_those_of_the_batch_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.5
        return now

    monkeypatch.setattr(relabelling.time, "monotonic", clock)
    _, judged = run(tmp_path)
    assert {row.seconds for row in judged.judgements} == {0.5 / 5, 0.5 / 4}
    assert judged.metrics["seconds"] == pytest.approx(0.5 * 5)
