"""Step 3: the feedback model's judgements of response pairs. What a label makes of them belongs to `labels`.

Every pair is put as a two-option question, by default in both orders, since judges favour a position (Lee et al.
2309.00267, 4.1; Constitutional AI itself does not swap). What is asked only where it was not before: `relabelling`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from rlaif_assets.feedback.constitution import draw_principles
from rlaif_assets.feedback.generation import Progress
from rlaif_assets.feedback.judge import Failure, Judge, Outcomes, Reading
from rlaif_assets.language_models.prompts import JUDGE_TEMPLATE, judge_messages
from rlaif_assets.records import (
    Judgement,
    JudgingConstitution,
    JudgingExample,
    JudgingPrinciple,
    Message,
    Pair,
    Prompt,
    Rejection,
)
from rlaif_assets.settings import HarmlessnessPreferencesSettings
from rlaif_assets.store.fingerprint import draw_unit, row_id

Order = Literal["ab", "ba"]
Position = Literal["before", "after"]
ORDERS: tuple[Order, Order] = ("ab", "ba")


@dataclass(frozen=True)
class JudgeQuestion:
    """One pair under one principle in one order. `key` names all that the answer depends on."""

    key: str
    pair: Pair
    principle: JudgingPrinciple
    order: Order
    template: str
    conversation: Sequence[Message]
    examples: Sequence[JudgingExample]
    principle_position: Position

    @property
    def messages(self) -> list[Message]:
        """What the judge reads."""
        a, b = self.pair.response_a, self.pair.response_b
        first, second = (a, b) if self.order == "ab" else (b, a)
        return judge_messages(
            self.conversation, first, second, self.principle.text, self.examples, self.principle_position
        )


def judge_pairs(
    judge: Judge,
    constitution: JudgingConstitution,
    prompts: Mapping[str, Prompt],
    pairs: Sequence[Pair],
    settings: HarmlessnessPreferencesSettings,
    progress: Progress,
) -> tuple[list[Judgement], list[Rejection]]:
    """The judgements of every pair, in the order of `judge_questions`, and the pairs that could not be judged.

    `p_a` is the probability of response A's letter, normalised over the two letters (Constitutional AI 4.1). A pair is
    rejected when one of its questions has no reading (it exceeds the judge's context, a letter's log-probability is not
    finite); pairs = pairs with judgements + rejections. Raises ValueError for a pair whose prompt is missing.
    """
    questions = judge_questions(judge.fingerprint, constitution, prompts, pairs, settings)
    outcomes: Outcomes = {}
    progress("judgements", 0, len(questions))
    for batch in judge.read([question.messages for question in questions]):
        outcomes |= batch
        progress("judgements", len(outcomes), len(questions))
    found = [
        outcome if isinstance(outcome := outcomes[i], Failure) else make_judgement(question, outcome, judge.fingerprint)
        for i, question in enumerate(questions)
    ]
    return whole_pairs(questions, found)


def whole_pairs(
    questions: Sequence[JudgeQuestion], found: Sequence[Judgement | Failure]
) -> tuple[list[Judgement], list[Rejection]]:
    """The judgements of the pairs without a failure, and the other pairs with their first one's reason.

    `found`: one per question; the questions of a pair lie together.
    """
    judgements: list[Judgement] = []
    rejections: list[Rejection] = []
    asked = zip(questions, found, strict=True)
    for pair_id, group in groupby(asked, key=lambda both: both[0].pair.pair_id):
        outcomes = [outcome for _, outcome in group]
        failed = next((outcome for outcome in outcomes if isinstance(outcome, Failure)), None)
        if failed is not None:
            rejections.append(Rejection(pair_id, failed.reason))
        else:
            judgements += [outcome for outcome in outcomes if isinstance(outcome, Judgement)]
    return judgements, rejections


def judge_questions(
    judge: str,
    constitution: JudgingConstitution,
    prompts: Mapping[str, Prompt],
    pairs: Sequence[Pair],
    settings: HarmlessnessPreferencesSettings,
) -> list[JudgeQuestion]:
    """The questions of all pairs, those of a pair together, by principle and order. `judge`: its fingerprint.

    A pair draws `principles_per_pair` principles by its id. With single orders, each pair draws one for each principle,
    so that the judge's favourite place falls to both responses equally often.
    """
    examples = constitution.examples[: settings.few_shot]
    template = judge_template(examples, settings.principle_position)
    questions: list[JudgeQuestion] = []
    for pair in pairs:
        if pair.prompt_id not in prompts:
            raise ValueError(f"pair {pair.pair_id}: its prompt {pair.prompt_id} is not among the prompts given")
        messages = prompts[pair.prompt_id].messages
        texts = row_id("judged", messages, pair.response_a, pair.response_b)
        drawn = draw_principles(
            constitution.principles, pair.pair_id, settings.seed, "judging-principle", settings.principles_per_pair
        )
        for principle in drawn:
            for order in _orders(pair.pair_id, principle, settings):
                key = question_key(texts, principle.text, order, template, judge)
                questions.append(
                    JudgeQuestion(
                        key, pair, principle, order, template, messages, examples, settings.principle_position
                    )
                )
    return questions


def judge_template(examples: Sequence[JudgingExample], position: Position) -> str:
    """32 hex digits: the question's wording, the principle's place, and the worked examples by their content."""
    shots = [[shot.prompt, shot.first, shot.second, shot.principle, shot.better] for shot in examples]
    return row_id("judge_template", JUDGE_TEMPLATE, position, shots)


def question_key(texts: str, principle: str, order: Order, template: str, judge: str) -> str:
    """All that an answer depends on. The run's seed is not in it: it decides principle and order alone."""
    return row_id("question", texts, principle, order, template, judge)


def judgement_id(question: str, round: int) -> str:
    return row_id("judgement", question, round)


def _orders(pair_id: str, principle: JudgingPrinciple, settings: HarmlessnessPreferencesSettings) -> Sequence[Order]:
    if settings.orders == "both":
        return ORDERS
    return ORDERS[:1] if draw_unit(pair_id, settings.seed, f"order:{principle.name}") < 0.5 else ORDERS[1:]


def option_probability(logprob: float, other: float) -> float:
    """exp(logprob) / (exp(logprob) + exp(other)), without overflow."""
    top = max(logprob, other)
    mine, its = math.exp(logprob - top), math.exp(other - top)
    return mine / (mine + its)


def make_judgement(
    question: JudgeQuestion,
    reading: Reading,
    judge: str,
    round: int = 0,
    as_of: str | None = None,
    seconds: float = 0.0,
    created_at: str = "",
    dagster_run_id: str | None = None,
) -> Judgement:
    first, second = reading.logprob_first, reading.logprob_second
    of_a, of_b = (first, second) if question.order == "ab" else (second, first)
    rationale = reading.rationale
    return Judgement(
        judgement_id=judgement_id(question.key, round),
        pair_id=question.pair.pair_id,
        principle_id=question.principle.principle_id,
        order=question.order,
        logprob_first=first,
        logprob_second=second,
        p_a=option_probability(of_a, of_b),
        judge=judge,
        template=question.template,
        tokens_in=reading.tokens_in,
        tokens_out=reading.tokens_out,
        method=reading.method,
        rationale=rationale and rationale.encode("utf-8", "backslashreplace").decode(),
        round=round,
        question_id=question.key,
        as_of=as_of,
        seconds=seconds,
        created_at=created_at,
        dagster_run_id=dagster_run_id,
    )
