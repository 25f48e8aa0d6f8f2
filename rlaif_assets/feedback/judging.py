"""Step 3: the feedback model's judgements of response pairs. What a label makes of them belongs to `labels`.

Every pair is put as a two-option question in both orders, since judges favour a position (Lee et al. 2309.00267, 4.1;
Constitutional AI itself does not swap).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlaif_assets.feedback.constitution import draw_principle
from rlaif_assets.feedback.generation import Progress
from rlaif_assets.feedback.judge import Failure, Judge, Outcomes, Reading
from rlaif_assets.language_models.prompts import JUDGE_TEMPLATE, judge_messages
from rlaif_assets.records import Judgement, JudgingConstitution, JudgingPrinciple, Message, Pair, Prompt, Rejection
from rlaif_assets.settings import HarmlessnessPreferencesSettings
from rlaif_assets.store.fingerprint import row_id

Order = Literal["ab", "ba"]
ORDERS: tuple[Order, Order] = ("ab", "ba")


@dataclass(frozen=True)
class JudgeQuestion:
    """One pair under one principle in one order, as the judge reads it. `key` is the judgement's id."""

    key: str
    pair: Pair
    principle: JudgingPrinciple
    order: Order
    messages: list[Message]


def judge_pairs(
    judge: Judge,
    constitution: JudgingConstitution,
    prompts: Mapping[str, Prompt],
    pairs: Sequence[Pair],
    settings: HarmlessnessPreferencesSettings,
    progress: Progress,
) -> tuple[list[Judgement], list[Rejection]]:
    """Two judgements per pair ("ab", then "ba"), in the order given, and the pairs that could not be judged.

    `p_a` is the probability of response A's letter, normalised over the two letters (Constitutional AI 4.1). One
    principle is drawn per pair and serves both orders. A pair is rejected when either question has no reading (it
    exceeds the judge's context, a letter's log-probability is not finite); pairs = judgements / 2 + rejections.
    Raises ValueError for a pair whose prompt is missing.
    """
    questions = judge_questions(judge.fingerprint, constitution, prompts, pairs, settings)
    outcomes: Outcomes = {}
    progress("judgements", 0, len(questions))
    for batch in judge.read([question.messages for question in questions]):
        outcomes |= batch
        progress("judgements", len(outcomes), len(questions))
    judgements: list[Judgement] = []
    rejections: list[Rejection] = []
    for first in range(0, len(questions), len(ORDERS)):
        asked = questions[first : first + len(ORDERS)]
        both = [outcomes[first + i] for i in range(len(asked))]
        failed = [outcome for outcome in both if isinstance(outcome, Failure)]
        if failed:
            rejections.append(Rejection(asked[0].pair.pair_id, failed[0].reason))
        else:
            judgements += [
                _judgement(question, reading, judge.fingerprint)
                for question, reading in zip(asked, both, strict=True)
                if isinstance(reading, Reading)
            ]
    return judgements, rejections


def judge_questions(
    judge: str,
    constitution: JudgingConstitution,
    prompts: Mapping[str, Prompt],
    pairs: Sequence[Pair],
    settings: HarmlessnessPreferencesSettings,
) -> list[JudgeQuestion]:
    """The questions of all pairs, both orders of a pair together. `judge` is the judge's fingerprint.

    A question's key names all that its answer depends on: the conversation, both texts, the principle's text, the
    order, the template, the worked examples and the judge. The run's seed is not in it: it decides the principle alone.
    """
    examples = constitution.examples[: settings.few_shot]
    questions: list[JudgeQuestion] = []
    for pair in pairs:
        if pair.prompt_id not in prompts:
            raise ValueError(f"pair {pair.pair_id}: its prompt {pair.prompt_id} is not among the prompts given")
        messages = prompts[pair.prompt_id].messages
        principle = draw_principle(constitution.principles, pair.pair_id, settings.seed, "judging-principle")
        for order in ORDERS:
            first, second = (pair.response_a, pair.response_b) if order == "ab" else (pair.response_b, pair.response_a)
            key = row_id(
                "judgement",
                messages,
                [pair.response_a, pair.response_b],
                principle.text,
                order,
                JUDGE_TEMPLATE,
                settings.principle_position,
                [example.example_id for example in examples],
                judge,
                0,
            )
            question = judge_messages(messages, first, second, principle.text, examples, settings.principle_position)
            questions.append(JudgeQuestion(key, pair, principle, order, question))
    return questions


def option_probability(logprob: float, other: float) -> float:
    """exp(logprob) / (exp(logprob) + exp(other)), without overflow."""
    top = max(logprob, other)
    mine, its = math.exp(logprob - top), math.exp(other - top)
    return mine / (mine + its)


def _judgement(question: JudgeQuestion, reading: Reading, judge: str) -> Judgement:
    first, second = reading.logprob_first, reading.logprob_second
    of_a, of_b = (first, second) if question.order == "ab" else (second, first)
    return Judgement(
        judgement_id=question.key,
        pair_id=question.pair.pair_id,
        principle_id=question.principle.principle_id,
        order=question.order,
        logprob_first=first,
        logprob_second=second,
        p_a=option_probability(of_a, of_b),
        judge=judge,
        template=JUDGE_TEMPLATE,
        tokens_in=reading.tokens_in,
        tokens_out=reading.tokens_out,
        method=reading.method,
        rationale=reading.rationale,
    )
