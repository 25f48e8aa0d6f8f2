"""Judging only what was not judged before: which questions have an answer in the store, which are asked, and why.

How a question is put belongs to `judging`, how answers are kept to `store.judgements`, labels to `labels`.
"""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from rlaif_assets.feedback.as_of import decided_as_of
from rlaif_assets.feedback.errors import JudgeStoppedError
from rlaif_assets.feedback.generation import Progress
from rlaif_assets.feedback.judge import Failure, Judge, Reading
from rlaif_assets.feedback.judging import JudgeQuestion, judgement_id, make_judgement
from rlaif_assets.records import Judgement
from rlaif_assets.settings import HarmlessnessPreferencesSettings
from rlaif_assets.store.fingerprint import draw_unit
from rlaif_assets.store.judgements import JudgementStore, Seen

LEAST_AGAIN = 10  # questions asked again from which none answered ends the run


@dataclass(frozen=True)
class Ask:
    """A question to put to the judge. `reason`: new_pairs, judge, template, principle:NAME, order, age or drift."""

    question: JudgeQuestion
    round: int
    reason: str


@dataclass(frozen=True)
class Plan:
    """What is asked, and the newest stored judgement of each question that has one, by question key."""

    questions: Sequence[JudgeQuestion]
    stored: Mapping[str, Judgement]
    asks: Sequence[Ask]

    def counts(self) -> dict[str, Any]:
        """{reused, computed, by_reason}: questions by whether they are answered from the store; their sum is all."""
        reasons = Counter(ask.reason for ask in self.asks)
        reused = len(self.questions) - len(self.asks)
        return {"reused": reused, "computed": len(self.asks), "by_reason": dict(sorted(reasons.items()))}


@dataclass(frozen=True)
class Answered:
    """`found`: each question's newest answer, or why it has none.

    `metrics`: the plan's counts, `tokens` and `seconds` of what was asked, failures, and how far the judge moved.
    """

    found: list[Judgement | Failure]
    metrics: dict[str, Any]


def plan(
    judge: str,
    questions: Sequence[JudgeQuestion],
    store: JudgementStore,
    settings: HarmlessnessPreferencesSettings,
) -> Plan:
    """What must be asked so that every question has an answer as the settings want it. `judge`: its fingerprint.

    A question that is there twice is asked once.
    """
    once = {question.key: question for question in questions}
    stored = store.newest(list(once))
    as_of = decided_as_of(settings)
    missing = [question for question in once.values() if question.key not in stored]
    reasons = _reasons(judge, missing, store)
    asks: list[Ask] = []
    for question in once.values():
        if question.key not in stored:
            asks.append(Ask(question, 0, reasons[question.key]))
        elif as_of is not None and (reason := _why_again(question, stored[question.key], settings, as_of)):
            asks.append(Ask(question, stored[question.key].round + 1, reason))
    return Plan(questions, stored, asks)


def answer_missing(
    judge: Judge,
    questions: Sequence[JudgeQuestion],
    store: JudgementStore,
    settings: HarmlessnessPreferencesSettings,
    dagster_run_id: str | None,
    progress: Progress,
) -> Answered:
    """Answers every question: from the store where it can, else by the judge, whose batches are committed as they come.

    What a run that died had committed is used. Where a question was asked anew and has no reading, the earlier answer
    stands (`rejudging_failed` counts these). Raises JudgeStoppedError when the judge does, with everything so far kept.
    """
    store.absorb()
    planned = plan(judge.fingerprint, questions, store, settings)
    asked = _Asked(judge.fingerprint, store, planned.asks, decided_as_of(settings), dagster_run_id)
    try:
        asked.read(judge, progress)
    except JudgeStoppedError as error:
        store.absorb()
        left = len(planned.asks) - asked.done
        raise JudgeStoppedError(
            f"{error} ({asked.done - len(asked.failures)} judgements of this run are kept and {left} are left: "
            "run it again to go on)"
        ) from error
    store.absorb()
    again = {ask.question.key for ask in planned.asks if ask.round}
    if len(again) >= LEAST_AGAIN and again <= asked.failures.keys():
        reason = next(asked.failures[key].reason for key in again)
        raise JudgeStoppedError(f"none of the {len(again)} questions that were asked again was answered: {reason}")
    made = store.fetch(list(asked.ids.values()))
    found = [_answer(question, planned.stored, asked, made) for question in questions]
    metrics = planned.counts() | {
        "tokens": sum(row.tokens_in + row.tokens_out for row in made.values()),
        "seconds": asked.seconds,
        "failed": len(asked.failures),
        "rejudging_failed": len(asked.failures.keys() & planned.stored.keys()),
        "drift": _drift([row for row in found if isinstance(row, Judgement)], asked.as_of, store),
    }
    return Answered(found, metrics)


def as_asked(question: JudgeQuestion, answer: Judgement) -> Judgement:
    """An answer under its question's names: texts may have been judged as another pair's, a principle's under another
    id."""
    names = (question.pair.pair_id, question.principle.principle_id)
    if (answer.pair_id, answer.principle_id) != names:
        return replace(answer, pair_id=names[0], principle_id=names[1])
    return answer


class _Asked:
    """The questions of a plan while they are put to the judge: ids of the judgements made, and failures, by key."""

    def __init__(
        self, judge: str, store: JudgementStore, asks: Sequence[Ask], as_of: str | None, dagster_run_id: str | None
    ) -> None:
        self.judge, self.store, self.asks = judge, store, asks
        self.as_of, self.dagster_run_id = as_of, dagster_run_id
        self.ids: dict[str, str] = {}
        self.failures: dict[str, Failure] = {}
        self.seconds = 0.0

    @property
    def done(self) -> int:
        return len(self.ids) + len(self.failures)

    def read(self, judge: Judge, progress: Progress) -> None:
        progress("judgements", 0, len(self.asks))
        if not self.asks:
            return
        started = time.monotonic()
        for batch in judge.read([ask.question.messages for ask in self.asks]):
            now = time.monotonic()
            self.seconds += now - started
            self._keep(batch, (now - started) / max(1, len(batch)))
            progress("judgements", self.done, len(self.asks))
            started = time.monotonic()

    def _keep(self, batch: Mapping[int, Reading | Failure], seconds: float) -> None:
        made: list[Judgement] = []
        created = datetime.now(UTC).isoformat(timespec="microseconds")
        for number, outcome in batch.items():
            ask = self.asks[number]
            if isinstance(outcome, Failure):
                self.failures[ask.question.key] = outcome
            else:
                made.append(
                    make_judgement(
                        ask.question, outcome, self.judge, ask.round, self.as_of, seconds, created, self.dagster_run_id
                    )
                )
                self.ids[ask.question.key] = made[-1].judgement_id
        if made:
            self.store.commit(made)


def _answer(
    question: JudgeQuestion, stored: Mapping[str, Judgement], asked: _Asked, made: Mapping[str, Judgement]
) -> Judgement | Failure:
    key = question.key
    answer = made[asked.ids[key]] if key in asked.ids else stored.get(key)
    return asked.failures[key] if answer is None else as_asked(question, answer)


def _reasons(judge: str, missing: Sequence[JudgeQuestion], store: JudgementStore) -> dict[str, str]:
    """Why each question has no answer, by key: what its pair was never judged by before."""
    earlier: dict[str, list[Seen]] = {}
    for seen in store.seen({question.pair.pair_id for question in missing}) if missing else ():
        earlier.setdefault(seen.pair_id, []).append(seen)
    return {question.key: _why_new(judge, question, earlier.get(question.pair.pair_id)) for question in missing}


def _why_new(judge: str, question: JudgeQuestion, earlier: Sequence[Seen] | None) -> str:
    if earlier is None:
        return "new_pairs"
    by_judge = [seen for seen in earlier if seen.judge == judge]
    if not by_judge:
        return "judge"
    by_template = [seen for seen in by_judge if seen.template == question.template]
    if not by_template:
        return "template"
    if all(seen.principle_id != question.principle.principle_id for seen in by_template):
        return f"principle:{question.principle.name}"
    return "order"


def _why_again(
    question: JudgeQuestion, newest: Judgement, settings: HarmlessnessPreferencesSettings, as_of: str
) -> str | None:
    """A pair is drawn for drift as a whole, anew for every date. What was asked, also for the first time, by a run that
    decides from this date is not asked again for it."""
    if newest.as_of == as_of:
        return None
    if settings.max_age_days is not None:
        oldest = date.fromisoformat(as_of) - timedelta(days=settings.max_age_days)
        if newest.created_at < oldest.isoformat():
            return "age"
    drawn = draw_unit(question.pair.pair_id, settings.seed, f"drift:{as_of}") < settings.drift_sample
    return "drift" if drawn else None


def _drift(judgements: Sequence[Judgement], as_of: str | None, store: JudgementStore) -> dict[str, Any] | None:
    """How far answers given anew for this date are from those before: count, mean and max |difference| of p_a."""
    again = [row for row in judgements if row.round and row.as_of == as_of]
    before = store.fetch([judgement_id(row.question_id, row.round - 1) for row in again]) if again else {}
    moved = [
        abs(row.p_a - before[earlier].p_a)
        for row in again
        if (earlier := judgement_id(row.question_id, row.round - 1)) in before
    ]
    if not moved:
        return None
    return {
        "judgements": len(moved),
        "mean_difference": math.fsum(moved) / len(moved),
        "max_difference": max(moved),
    }
