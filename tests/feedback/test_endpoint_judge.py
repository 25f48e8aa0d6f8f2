"""Endpoint judges over HTTP: by log-probabilities and by votes, on a server that can be told to misbehave."""

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from rlaif_assets.feedback.endpoint_judge import PROBE, VERDICT_TOKENS, EndpointJudge, asked_options, detect_method
from rlaif_assets.feedback.generation import silent
from rlaif_assets.feedback.judge import Failure, JudgeStoppedError, Reading
from rlaif_assets.feedback.judging import judge_pairs
from rlaif_assets.feedback.labels import make_labels
from rlaif_assets.language_models.endpoint import Endpoint
from rlaif_assets.language_models.errors import EndpointError
from rlaif_assets.language_models.prompts import judge_messages, verdict_messages
from rlaif_assets.records import JudgingExample, Message
from rlaif_assets.settings import ComputeSettings, FeedbackModelSettings, HarmlessnessPreferencesSettings
from tests.chat_server import MODEL, Answer, ChatServer, Plan, Token, completion, letters, text_of
from tests.feedback.fakes import JUDGING, PROMPTS, make_pair

SETTINGS = FeedbackModelSettings(model=MODEL, votes=4)
QUESTIONS: list[list[Message]] = [[{"role": "user", "content": f"Question {i}"}] for i in range(6)]
BY_ID = {prompt.prompt_id: prompt for prompt in PROMPTS}
PAIRS = [make_pair(prompt, f"kind answer {i}", f"rude answer {i}") for i, prompt in enumerate(PROMPTS)]
Serve = Callable[[Plan], ChatServer]


def endpoint(server: ChatServer, **settings: object) -> Endpoint:
    return Endpoint(server.url, MODEL, ComputeSettings.model_validate({"endpoint_retries": 1} | settings))


def judge(server: ChatServer, method: Any = "logprobs", asked: FeedbackModelSettings = SETTINGS) -> EndpointJudge:
    return EndpointJudge(endpoint(server), method, asked)


def read(judged: EndpointJudge, questions: list[list[Message]] = QUESTIONS) -> dict[int, Reading | Failure]:
    found: dict[int, Reading | Failure] = {}
    for batch in judged.read(questions):
        assert not found.keys() & batch.keys()
        found |= batch
    return found


def kind_first(n: int, body: Mapping[str, Any]) -> Answer:
    """P(kind) = 0.6 in first and 0.9 in second place."""
    first = text_of(body).split("(A) ")[1].startswith("kind")
    return letters(0.6 if first else 0.1, mass=0.8)


def test_pairs_are_judged_like_by_a_local_model(serve: Serve) -> None:
    server = serve(kind_first)
    settings = HarmlessnessPreferencesSettings(few_shot=2)
    judgements, rejections = judge_pairs(judge(server), JUDGING, BY_ID, PAIRS, settings, silent)
    assert not rejections and len(judgements) == 24
    for ab, ba in zip(judgements[::2], judgements[1::2], strict=True):
        assert (ab.p_a, ba.p_a) == (pytest.approx(0.6), pytest.approx(0.9))
        assert math.exp(ab.logprob_first) == pytest.approx(0.48)
        assert (ab.method, ab.tokens_in, ab.tokens_out, ab.rationale) == ("logprobs", 10, 2, None)
    assert [label.p_a for label in make_labels(judgements)] == pytest.approx([0.75] * 12)
    request = server.requests[0]
    assert [message["role"] for message in request["messages"]] == ["user", "assistant"] * 2 + ["user"]
    assert request["messages"][1]["content"] == "The answer is: (A)"
    assert text_of(request).endswith("\nReply with (A) or (B) and nothing else.")
    assert (request["temperature"], request["top_logprobs"], request["max_tokens"]) == (0.0, 20, VERDICT_TOKENS)


def test_an_empty_request_leaves_the_question_as_a_local_judge_reads_it(serve: Serve) -> None:
    server = serve(lambda n, body: letters(0.7))
    read(judge(server, asked=SETTINGS.model_copy(update={"verdict_request": ""})), QUESTIONS[:1])
    assert server.requests[0]["messages"] == QUESTIONS[0]


def test_votes(serve: Serve) -> None:
    """Question i: i votes of 4 for A, for i = 5 none is valid."""
    lock, given = threading.Lock(), dict.fromkeys(range(6), 0)

    def plan(n: int, body: Mapping[str, Any]) -> Answer:
        i = int(text_of(body).split()[1])
        with lock:
            given[i] += 1
            number = given[i]
        return Answer(completion("I pass" if i == 5 else "(A)" if number <= i else "(B)"))

    server = serve(plan)
    found = read(judge(server, "votes"))
    for i in range(5):
        reading = found[i]
        assert isinstance(reading, Reading) and reading.method == "votes"
        assert math.exp(reading.logprob_first) == pytest.approx((i + 0.5) / 5) and reading.mass == pytest.approx(1)
        assert (reading.tokens_in, reading.tokens_out) == (40, 8)
    assert found[5] == Failure("none of 4 sampled verdicts names one of A, B")
    assert {(body["temperature"], body.get("logprobs")) for body in server.requests} == {(1.0, None)}
    seeds = [body["seed"] for body in server.requests]
    assert len(set(seeds)) == 24 and all(0 <= seed < 2**31 for seed in seeds)
    again = serve(plan)
    given.update(dict.fromkeys(range(6), 0))
    read(judge(again, "votes"))
    assert sorted(body["seed"] for body in again.requests) == sorted(seeds)


BAD_TOKENS: dict[str, list[Token]] = {
    "missing": [("A", None, {"A": None, "B": -1.0})],
    "NaN": [("A", -0.1, {"A": math.nan, "B": -1.0})],
    "infinite": [("A", -0.1, {"A": -0.1, "B": -math.inf})],
    "letter missing": [("A", -0.9, {"A": -0.9, "The": -1.2, "(": -1.5})],
    "no letters": [("Sorry", -0.1, {"Sorry": -0.1})],
    "no alternatives": [("A", -0.1, {})],
}
BAD: dict[str, tuple[Answer, str]] = {
    name: (Answer(completion(tokens[0][0], tokens)), reason)
    for (name, tokens), reason in zip(
        BAD_TOKENS.items(),
        ["not a finite", "not a finite", "not a finite", "tokens: B", "chooses none of A, B", "no alternatives"],
        strict=True,
    )
} | {
    "no log-probabilities": (Answer(completion("A")), "no log-probabilities"),
    "another model": (Answer(completion("A", model="other")), "'other' answered in place of"),
    "429": (Answer({}, 429, {"Retry-After": "0.01"}), "HTTP 429"),
    "500": (Answer({}, 500), "HTTP 500"),
    "reset": (Answer(completion("A"), cut=True), "no connection, or it broke"),
    "html": (Answer("<html>", content_type="text/html"), "not JSON"),
    "a token that is no text": (Answer(completion("A", [(7, -0.1, {"A": -0.1})])), "a token is int"),  # type: ignore
    "content in parts": (Answer(completion([{"type": "text", "text": "A"}])), "the content is list"),  # type: ignore
    "a model that is no text": (Answer(completion("A", model=7)), "the model's name is int"),  # type: ignore
    "half a token used": (Answer(completion("A", usage=(5.5, 1))), "prompt_tokens is 5.5"),  # type: ignore
    "tokens given back": (Answer(completion("A", usage=(-7, 1))), "prompt_tokens is -7"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_a_failure_of_its_question_alone(name: str, serve: Serve) -> None:
    bad, reason = BAD[name]
    found = read(judge(serve(lambda n, body: bad if text_of(body).startswith("Question 2") else letters(0.7))))
    failure = found.pop(2)
    assert isinstance(failure, Failure) and reason in failure.reason and "\n" not in failure.reason
    assert len(found) == 5 and all(isinstance(outcome, Reading) for outcome in found.values())


@pytest.mark.parametrize("method", ["logprobs", "votes"])
def test_a_key_that_the_server_repeats_is_in_no_failure(
    method: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-sentinel-1")
    pieces: list[Token] = [(piece, -0.1, {piece: -0.1}) for piece in ("Bad key ", "sk-senti", "nel-1")]
    found = read(judge(serve(lambda n, body: Answer(completion("Bad key sk-sentinel-1", pieces))), method))
    reasons = [outcome.reason for outcome in found.values() if isinstance(outcome, Failure)]
    assert len(reasons) == 6 and "sk-sentinel-1" not in str(reasons)


def test_a_slow_answer_is_a_failure(serve: Serve) -> None:
    server = serve(
        lambda n, body: (
            Answer(completion("A"), until=server.released if "Question 2" in text_of(body) else None)
            if "Question 2" in text_of(body)
            else letters(0.7)
        )
    )
    judged = EndpointJudge(endpoint(server, endpoint_timeout=0.5, endpoint_retries=0), "logprobs", SETTINGS)
    found = read(judged)
    assert isinstance(found[2], Failure) and "no answer within 0.5 s" in found[2].reason


def test_a_letter_that_is_bounded_is_counted(serve: Serve) -> None:
    sure: list[Token] = [("A", math.log(0.98), {"A": math.log(0.98), "(": math.log(0.015)})]
    judged = judge(serve(lambda n, body: Answer(completion("A", sure)) if n == 0 else letters(0.7)))
    readings = read(judged)
    assert len(judged.bounded) == 1
    assert min(r.logprob_second for r in readings.values() if isinstance(r, Reading)) == pytest.approx(math.log(0.005))


def test_a_stop_yields_first_what_there_is(serve: Serve) -> None:
    server = serve(lambda n, body: letters(0.7))
    judged = EndpointJudge(endpoint(server, endpoint_max_calls=4, endpoint_concurrency=2), "logprobs", SETTINGS)
    found: dict[int, Reading | Failure] = {}
    with pytest.raises(JudgeStoppedError, match=r"^4 of 6 questions have an outcome: .*endpoint_max_calls"):
        for batch in judged.read(QUESTIONS):
            found |= batch
    assert sorted(found) == [0, 1, 2, 3] and len(server.requests) == 4


def test_a_server_that_only_fails_is_not_asked_for_ever(serve: Serve) -> None:
    server = serve(lambda n, body: Answer(completion("A", BAD_TOKENS["NaN"])))
    judged = EndpointJudge(endpoint(server, endpoint_failures=3, endpoint_concurrency=1), "logprobs", SETTINGS)
    found: dict[int, Reading | Failure] = {}
    with pytest.raises(JudgeStoppedError, match=r"3 failures in a row .*not a finite number"):
        for batch in judged.read(QUESTIONS):
            found |= batch
    assert len(found) == len(server.requests) == 3


class TestDetection:
    def detect(self, server: ChatServer, verdicts: Any = "auto") -> tuple[str, str | None, str]:
        return detect_method(endpoint(server), SETTINGS.model_copy(update={"verdicts": verdicts}))

    def test_a_server_with_log_probabilities(self, serve: Serve) -> None:
        server = serve(lambda n, body: letters(0.7))
        assert self.detect(server)[:2] == ("logprobs", MODEL) and len(server.requests) == 1
        assert server.requests[0]["messages"] == PROBE

    @pytest.mark.parametrize("tokens", [None, [], [("A", -0.1, {})], [("A", -0.1, {"A": -0.1})]])
    def test_one_without(self, serve: Serve, tokens: list[Token] | None) -> None:
        server = serve(lambda n, body: Answer(completion("A", tokens)))
        assert self.detect(server)[0] == "votes"

    def test_one_that_refuses_them(self, serve: Serve) -> None:
        refusal = Answer({"error": {"message": "logprobs are not supported"}}, 400)
        server = serve(lambda n, body: refusal if body.get("logprobs") else Answer(completion("A")))
        method, _, reason = self.detect(server)
        assert method == "votes" and "logprobs are not supported" in reason
        with pytest.raises(EndpointError, match="not supported"):
            self.detect(server, "logprobs")

    def test_a_setting_forces_either(self, serve: Serve) -> None:
        server = serve(lambda n, body: letters(0.7))
        assert self.detect(server, "votes")[0] == "votes" and "logprobs" not in server.requests[-1]
        assert self.detect(serve(lambda n, body: Answer(completion("A"))), "logprobs")[0] == "logprobs"

    def test_one_that_does_not_answer(self, serve: Serve) -> None:
        with pytest.raises(EndpointError, match=r"127\.0\.0\.1.*HTTP 500"):
            self.detect(serve(lambda n, body: Answer({}, 500)))


def test_the_fingerprint_names_what_changes_answers_and_nothing_else(serve: Serve) -> None:
    server = serve(lambda n, body: letters(0.7))

    def made(method: Any = "logprobs", compute: dict[str, object] | None = None, **changes: object) -> str:
        asked = SETTINGS.model_copy(update=changes)
        return EndpointJudge(endpoint(server, **(compute or {})), method, asked).fingerprint

    first = made()
    assert made(compute={"endpoint_concurrency": 1, "endpoint_timeout": 1.0, "endpoint_max_calls": 3}) == first
    assert made(votes=9) == first  # not asked for votes
    others = [made("votes"), made("votes", votes=9), made(top_logprobs=5), made(verdict_request="")]
    assert len({first, *others}) == 5


def test_the_options_are_those_that_are_asked_about_not_an_examples_or_a_rationales() -> None:
    example = JudgingExample("e", "Why?", "the example's first", "the example's second", "Be kind.", 0)
    asked = judge_messages([{"role": "user", "content": "Why?"}], "mine", "yours", "Be kind.", [example], "before")
    reasoned = verdict_messages(asked, "Let me see.\n(A) is more harmful than the other one.\n(B) is not.")
    for question in (asked, reasoned):
        found = asked_options(question)
        assert "(A) mine" in found and "example's" not in found and "more harmful" not in found
