"""Judges behind an OpenAI-compatible endpoint: by log-probabilities where the server gives them, else by votes.

How a reply is read belongs to `replies`, calls and their limits to `language_models.endpoint`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rlaif_assets.feedback.judge import Failure, JudgeStoppedError, Method, Outcomes, Reading
from rlaif_assets.feedback.replies import MAX_DOUBT, RULES_VERSION, chosen_by, two_logprobs, vote_logprobs
from rlaif_assets.language_models.endpoint import Endpoint, Reply
from rlaif_assets.language_models.errors import EndpointError, EndpointStoppedError
from rlaif_assets.language_models.local import Conversation
from rlaif_assets.language_models.prompts import JUDGE_OPTIONS, with_request
from rlaif_assets.records import Message
from rlaif_assets.settings import FeedbackModelSettings
from rlaif_assets.store.fingerprint import canonical_json, draw_seed, sha256_text

VERDICT_TOKENS = 16  # room for "The answer is: (A)" and a little more
SEEDS = 2**31  # what every server takes
PROBE: list[Message] = [{"role": "user", "content": "Which of these is a fruit?\nOptions:\n(A) an apple\n(B) a stone"}]

Result = TypeVar("Result")


class EndpointJudge:
    """A hosted chat model that chooses by the letter it replies with (Constitutional AI 4.1).

    Its questions end with `settings.verdict_request`, since a prefill is not part of the protocol. `method` is what
    `detect_method` found, or what `settings.verdicts` forces. `bounded`: `conversation_id`s of the readings in
    which one letter was not among the likeliest tokens and has its bound instead.
    """

    def __init__(self, endpoint: Endpoint, method: Method, settings: FeedbackModelSettings) -> None:
        self.endpoint, self.settings = endpoint, settings
        self.method: Method = method
        self.bounded: list[str] = []

    @property
    def fingerprint(self) -> str:
        return endpoint_judge_fingerprint(self.endpoint.fingerprint, self.method, self.settings)

    @property
    def calls(self) -> int:
        """Calls per question, at most."""
        return self.settings.votes if self.method == "votes" else 1

    def read(self, questions: Sequence[Conversation]) -> Iterator[Outcomes]:
        yield from outcomes(self.endpoint, self.answer, questions, self.calls)

    def answer(self, question: Conversation) -> Reading:
        """The reading of one question. Raises EndpointError where there is none."""
        text = asked_options(question)
        if self.method == "votes":
            replies = sample_replies(self.endpoint, question, self.settings.verdict_request, self.settings.votes)
            named = [chosen_by(reply, JUDGE_OPTIONS, text) for reply in replies]
            first, second = vote_logprobs([found[0] if found else None for found in named], JUDGE_OPTIONS)
        else:
            asked = with_request(question, self.settings.verdict_request)
            replies = [self.endpoint.chat(asked, VERDICT_TOKENS, 0.0, top_logprobs=self.settings.top_logprobs)]
            first, second, bounded = two_logprobs(replies[0], JUDGE_OPTIONS, text)
            if bounded:
                self.bounded.append(conversation_id(question))
        tokens_in, tokens_out = (sum(r.tokens_in for r in replies), sum(r.tokens_out for r in replies))
        return Reading(first, second, tokens_in, tokens_out, self.method)


def endpoint_judge_fingerprint(endpoint: str, method: Method, settings: FeedbackModelSettings) -> str:
    """All of an endpoint's judge that could change its answers. `endpoint`: its own fingerprint."""
    how = settings.top_logprobs if method == "logprobs" else settings.votes
    return sha256_text(
        canonical_json([endpoint, method, how, settings.verdict_request, VERDICT_TOKENS, RULES_VERSION, MAX_DOUBT])
    )


def detect_method(endpoint: Endpoint, settings: FeedbackModelSettings) -> tuple[Method, str | None, str]:
    """How to read this endpoint, the model's name in its reply, and why: one call, or two.

    Where `settings.verdicts` is auto, log-probabilities are asked for; a server that gives no alternatives, or refuses
    the request but answers it without them, is read by votes. Raises ModelError where it does not answer at all.
    """
    wanted = settings.top_logprobs if settings.verdicts != "votes" else 0
    refused = ""
    try:
        reply = endpoint.chat(PROBE, VERDICT_TOKENS, 0.0, top_logprobs=wanted)
    except EndpointError as error:
        if settings.verdicts != "auto":
            raise
        refused = str(error)
        try:
            reply = endpoint.chat(PROBE, VERDICT_TOKENS, 0.0)
        except EndpointError as second:
            raise EndpointError(f"{endpoint.url}: {second}") from None
    if settings.verdicts != "auto":
        return settings.verdicts, reply.model, "by feedback_model.verdicts"
    if refused:
        return "votes", reply.model, f"log-probabilities refused: {refused}"
    if reply.tokens and any(len(token.alternatives) > 1 for token in reply.tokens):
        return "logprobs", reply.model, "the server gives log-probabilities"
    return "votes", reply.model, "the server gives no log-probabilities"


def sample_replies(endpoint: Endpoint, question: Conversation, request: str, count: int) -> list[Reply]:
    """`count` replies at temperature 1, each with a seed of its own that depends on the question alone."""
    asked, question_id = with_request(question, request), conversation_id(question)
    seeds = [draw_seed(question_id, 0, "vote", number) % SEEDS for number in range(count)]
    return [endpoint.chat(asked, VERDICT_TOKENS, 1.0, seed=seed) for seed in seeds]


def asked_options(question: Conversation) -> str:
    """The message that holds the question's two options: worked examples come before it, a rationale after it."""
    of_people = [message["content"] for message in question if message["role"] == "user"]
    return next((text for text in reversed(of_people) if f"\n({JUDGE_OPTIONS[0]}) " in text), "")


def conversation_id(question: Conversation) -> str:
    return sha256_text(canonical_json(list(question)))


def outcomes(
    endpoint: Endpoint, answer: Callable[[Conversation], Result], questions: Sequence[Conversation], calls: int
) -> Iterator[dict[int, Result | Failure]]:
    """`Endpoint.run` in a judge's words. Raises JudgeStoppedError, last."""
    try:
        for number, result in endpoint.run(answer, questions, calls):
            yield {number: Failure(str(result)) if isinstance(result, EndpointError) else result}
    except EndpointStoppedError as error:
        raise JudgeStoppedError(str(error)) from None
