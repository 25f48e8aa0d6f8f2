"""Single answers rated on a scale, as direct RLAIF takes its reward (Lee et al. 2309.00267): no reward model between.

A score is the expectation over the scale's likelihoods, normalised over the scale and rescaled to [-1, 1].
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rlaif_assets.feedback.endpoint_judge import VERDICT_TOKENS, outcomes, sample_replies
from rlaif_assets.feedback.judge import Failure, Method
from rlaif_assets.feedback.replies import MAX_DOUBT, RULES_VERSION, chosen_by, option_masses, require_certain
from rlaif_assets.language_models.chat import encode_prompt, encode_text
from rlaif_assets.language_models.endpoint import Endpoint
from rlaif_assets.language_models.errors import ModelError, QuestionError
from rlaif_assets.language_models.local import Conversation, LocalModel, option_tokens
from rlaif_assets.language_models.prompts import (
    RATING_PREFILL,
    RATING_REQUEST,
    RATING_SCALE,
    RATING_TEMPLATE,
    rating_messages,
    with_request,
)
from rlaif_assets.records import Message
from rlaif_assets.settings import FeedbackModelSettings
from rlaif_assets.store.fingerprint import canonical_json, sha256_text


@dataclass(frozen=True)
class Rating:
    """`score` in [-1, 1]; `mass`: the probability on the scale before normalising (votes: the share that was valid)."""

    score: float
    mass: float
    tokens_in: int
    tokens_out: int = 0
    method: Literal["logprobs", "votes", "continuations"] = "logprobs"


Ratings = dict[int, Rating | Failure]


class Rater(Protocol):
    """Rates what a `rating_messages` conversation asks about. `fingerprint` as a judge's."""

    @property
    def fingerprint(self) -> str: ...

    def rate(self, questions: Sequence[Conversation]) -> Iterator[Ratings]:
        """Ratings by question number as they come, every number once; JudgeStoppedError as `Judge.read`."""
        ...


def score(
    rater: Rater, conversations: Sequence[Conversation], responses: Sequence[str], principle: str
) -> list[Rating | Failure]:
    """One rating per conversation and its response, under one principle, in the order given.

    Where the rater must stop it raises JudgeStoppedError; a reward is needed for every answer.
    """
    questions: list[list[Message]] = [
        rating_messages(conversation, response, principle)
        for conversation, response in zip(conversations, responses, strict=True)
    ]
    found: Ratings = {}
    for batch in rater.rate(questions):
        found |= batch
    return [found[i] for i in range(len(questions))]


class LocalRater:
    """A local model that continues RATING_PREFILL with a score.

    One forward pass reads the scores where one token tells them apart; where it cannot ("10" beside "1"), or with
    `continuations`, the log-probability of each whole continuation "7)" is summed, at one pass per score.
    """

    def __init__(
        self, model: LocalModel, scale: Sequence[str] = RATING_SCALE, continuations: bool | None = None
    ) -> None:
        self.model, self.scale = model, tuple(scale)
        self.continuations = not _one_token(model, self.scale) if continuations is None else continuations

    @property
    def fingerprint(self) -> str:
        return _fingerprint([self.model.fingerprint, self.scale, self.continuations])

    def rate(self, questions: Sequence[Conversation]) -> Iterator[Ratings]:
        endings = [encode_text(self.model.tokenizer, f"{RATING_PREFILL}{option})") for option in self.scale]
        room = max(map(len, endings)) if self.continuations else 0
        fitting = [
            i for i, q in enumerate(questions) if self.model.fits(q, room, "" if self.continuations else RATING_PREFILL)
        ]
        if len(fitting) < len(questions):
            yield {
                i: Failure("the rating's question exceeds the judge's context")
                for i in sorted(set(range(len(questions))).difference(fitting))
            }
        if self.continuations:
            yield from self._by_continuations(fitting, questions, endings)
            return
        batches = self.model.option_batches([questions[i] for i in fitting], RATING_PREFILL, self.scale)
        for rows, logprobs, tokens in batches:
            yield {
                fitting[row]: _rated(self.scale, [float(value) for value in found], count, 0, "logprobs")
                for row, found, count in zip(rows, logprobs, tokens, strict=True)
            }

    def _by_continuations(
        self, fitting: Sequence[int], questions: Sequence[Conversation], endings: Sequence[list[int]]
    ) -> Iterator[Ratings]:
        """The prefill's tokens are read with the score's, which may share one; those that all endings share say nothing
        about the score and are left out."""
        shared = 0
        while len({tuple(ids[: shared + 1]) for ids in endings}) == 1:
            shared += 1
        for i in fitting:
            found = self.model.answer_logprobs([questions[i]] * len(endings), endings)
            sums = [math.fsum(float(value) for value in row[shared:]) for row in found]
            question = len(encode_prompt(self.model.tokenizer, questions[i]))
            read = len(endings) * question + sum(map(len, endings))
            yield {i: _rated(self.scale, sums, read, 0, "continuations")}


class EndpointRater:
    """A hosted model that replies with a score; `method` as an `EndpointJudge` has it."""

    def __init__(
        self,
        endpoint: Endpoint,
        method: Method,
        settings: FeedbackModelSettings,
        scale: Sequence[str] = RATING_SCALE,
    ) -> None:
        self.endpoint, self.settings, self.scale = endpoint, settings, tuple(scale)
        self.method: Method = method

    @property
    def fingerprint(self) -> str:
        how = self.settings.top_logprobs if self.method == "logprobs" else self.settings.votes
        return _fingerprint(
            [self.endpoint.fingerprint, self.scale, self.method, how, RATING_REQUEST, RULES_VERSION, MAX_DOUBT]
        )

    def rate(self, questions: Sequence[Conversation]) -> Iterator[Ratings]:
        calls = self.settings.votes if self.method == "votes" else 1
        yield from outcomes(self.endpoint, self._answer, questions, calls)

    def _answer(self, question: Conversation) -> Rating | Failure:
        if self.method == "votes":
            replies = sample_replies(self.endpoint, question, RATING_REQUEST, self.settings.votes)
            named = [found[0] for reply in replies if (found := chosen_by(reply, self.scale))]
            if not named:
                raise QuestionError(f"none of {len(replies)} sampled replies names a score: {', '.join(self.scale)}")
            counts = [named.count(option) for option in self.scale]
            shares = [math.log(count / len(replies)) if count else -math.inf for count in counts]
            tokens_in, tokens_out = sum(r.tokens_in for r in replies), sum(r.tokens_out for r in replies)
            return _rated(self.scale, shares, tokens_in, tokens_out, "votes")
        asked = with_request(question, RATING_REQUEST)
        reply = self.endpoint.chat(asked, VERDICT_TOKENS, 0.0, top_logprobs=self.settings.top_logprobs)
        masses = option_masses(reply, self.scale)
        require_certain(masses, self.scale)  # what is left out hardly moves the score
        logprobs = [-math.inf if value is None else value for value in masses.logprobs]
        return _rated(self.scale, logprobs, reply.tokens_in, reply.tokens_out, "logprobs")


def _one_token(model: LocalModel, scale: tuple[str, ...]) -> bool:
    try:
        option_tokens(model.tokenizer, RATING_PREFILL, scale)
    except ModelError:
        return False
    return True


def _rated(
    scale: Sequence[str],
    logprobs: Sequence[float],
    tokens_in: int,
    tokens_out: int,
    method: Literal["logprobs", "votes", "continuations"],
) -> Rating | Failure:
    """2 (E - lowest) / (highest - lowest) - 1, E the expectation of the scale under its normalised likelihoods."""
    if not math.isfinite(math.fsum(math.exp(value) for value in logprobs)) or max(logprobs) == -math.inf:
        return Failure("the judge gave a log-probability that is not finite")
    top = max(logprobs)
    weights = [math.exp(value - top) for value in logprobs]
    values = [float(option) for option in scale]
    expected = math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)
    lowest, highest = min(values), max(values)
    mass = math.fsum(math.exp(value) for value in logprobs)
    return Rating(2 * (expected - lowest) / (highest - lowest) - 1, mass, tokens_in, tokens_out, method)


def _fingerprint(parts: list[object]) -> str:
    return sha256_text(canonical_json(["rating", RATING_TEMPLATE, *parts]))
