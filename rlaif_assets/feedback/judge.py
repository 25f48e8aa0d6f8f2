"""What a judge is: conversations in, the two letters' log-probabilities out. Pairs and labels belong to `judging`.

Implementations read the same messages (`language_models.prompts.judge_messages`) and differ in who answers them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rlaif_assets.feedback.errors import JudgeStoppedError as JudgeStoppedError
from rlaif_assets.language_models.local import Conversation, LocalModel
from rlaif_assets.language_models.prompts import JUDGE_OPTIONS, JUDGE_PREFILL

__all__ = ["Failure", "Judge", "JudgeStoppedError", "LocalJudge", "Method", "Outcomes", "Reading"]

Method = Literal["logprobs", "votes"]


@dataclass(frozen=True)
class Reading:
    """A judge's answer to one two-option question.

    `logprob_first` and `logprob_second`: natural log of the probability of each option's letter, not normalised, so
    that their exponentials sum to the mass on both letters. By votes they are log shares of the sampled verdicts,
    smoothed (see the endpoint judge). `rationale` is what a chain-of-thought judge wrote before its verdict.
    """

    logprob_first: float
    logprob_second: float
    tokens_in: int
    tokens_out: int = 0
    method: Method = "logprobs"
    rationale: str | None = None

    @property
    def mass(self) -> float:
        return math.exp(self.logprob_first) + math.exp(self.logprob_second)


@dataclass(frozen=True)
class Failure:
    """Why a question has no reading. `reason` never holds a secret or more than a line."""

    reason: str


Outcomes = dict[int, Reading | Failure]


class Judge(Protocol):
    """Answers two-option questions. `fingerprint` identifies everything about it that could change an answer: weights
    (or endpoint and model name), chain of thought and its settings, how verdicts are read."""

    @property
    def fingerprint(self) -> str: ...

    def read(self, questions: Sequence[Conversation]) -> Iterator[Outcomes]:
        """Outcomes by question number, a batch at a time, as they come; every number once.

        A judge that must stop (budget spent, too many failures in a row) yields what it has and then raises
        `JudgeStoppedError`: the questions that are missing were not answered.
        """
        ...


class LocalJudge:
    """A local transformers model that chooses by its next-token probabilities (Constitutional AI 4.1)."""

    def __init__(self, model: LocalModel) -> None:
        self.model = model

    @property
    def fingerprint(self) -> str:
        return self.model.fingerprint

    def read(self, questions: Sequence[Conversation]) -> Iterator[Outcomes]:
        fitting = [i for i, question in enumerate(questions) if self.model.fits(question, 0, JUDGE_PREFILL)]
        too_long = set(range(len(questions))).difference(fitting)
        if too_long:
            yield {i: Failure("the judge's question exceeds its context") for i in sorted(too_long)}
        for rows, logprobs, tokens in self.model.option_batches(
            [questions[i] for i in fitting], JUDGE_PREFILL, JUDGE_OPTIONS
        ):
            yield {
                fitting[row]: Reading(float(first), float(second), count)
                if math.isfinite(first) and math.isfinite(second)
                else Failure("the judge gave a log-probability that is not finite")
                for row, (first, second), count in zip(rows, logprobs, tokens, strict=True)
            }
