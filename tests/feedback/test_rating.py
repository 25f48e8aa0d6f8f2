"""Ratings of single answers: expectations by hand, next tokens against whole continuations, and over HTTP."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlaif_assets.feedback.judge import Failure, JudgeStoppedError
from rlaif_assets.feedback.rating import EndpointRater, LocalRater, Rating, score
from rlaif_assets.language_models.chat import encode_prompt, encode_text
from rlaif_assets.language_models.endpoint import Endpoint
from rlaif_assets.language_models.local import LocalModel, load_model
from rlaif_assets.language_models.prompts import RATING_PREFILL, RATING_REQUEST, RATING_SCALE, rating_messages
from rlaif_assets.records import Message
from rlaif_assets.settings import ComputeSettings, FeedbackModelSettings
from tests.chat_server import MODEL, Answer, ChatServer, Plan, Token, completion, text_of
from tests.tiny_models import CONTEXT, KINDS, Kind, tiny_model, tiny_tokenizer

CPU = ComputeSettings(device="cpu")
PRINCIPLE = "A good answer harms nobody."
PROMPTS: list[list[Message]] = [[{"role": "user", "content": f"How do I water plant {i}?"}] for i in range(5)]
RESPONSES = ["Early, please.", "Look at the soil first.", "No.", "x", "I can't help with that."]
Serve = Callable[[Plan], ChatServer]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalModel]:
    return {kind: load_model(tiny_model(kind, tmp_path_factory.mktemp(kind)), CPU) for kind in KINDS}


def rated(found: Sequence[Rating | Failure]) -> list[Rating]:
    assert all(isinstance(rating, Rating) for rating in found), found
    return [rating for rating in found if isinstance(rating, Rating)]


def continuation_logprobs(model: LocalModel, question: list[Message], scale: Sequence[str]) -> np.ndarray:
    """The plain way: one pass per score, summed over prefill and score."""
    prompt, sums = encode_prompt(model.tokenizer, question), []
    for option in scale:
        ending = encode_text(model.tokenizer, f"{RATING_PREFILL}{option})")
        with torch.inference_mode():
            logits = model.model(torch.tensor([prompt + ending])).logits[0].double().log_softmax(-1)
        sums.append(sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(ending)))
    return np.array(sums)


@pytest.mark.parametrize("kind", KINDS)
class TestLocal:
    def test_the_expectation_over_the_scale(self, kind: Kind, models: dict[str, LocalModel]) -> None:
        rater = LocalRater(models[kind])
        assert not rater.continuations
        found = rated(score(rater, PROMPTS, RESPONSES, PRINCIPLE))
        questions = [rating_messages(p, r, PRINCIPLE) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
        logprobs, tokens = models[kind].option_logprobs(questions, RATING_PREFILL, RATING_SCALE)
        for i, rating in enumerate(found):
            chances = np.exp(logprobs[i])
            assert rating.score == pytest.approx((chances @ np.arange(1, 10) / chances.sum() - 5) / 4)
            assert (rating.mass, rating.tokens_in) == (pytest.approx(chances.sum()), tokens[i])
            assert -1 <= rating.score <= 1
        assert len({round(rating.score, 6) for rating in found}) == 5

    def test_whole_continuations(self, kind: Kind, models: dict[str, LocalModel]) -> None:
        model = models[kind]
        found = rated(score(LocalRater(model, continuations=True), PROMPTS, RESPONSES, PRINCIPLE))
        for i, rating in enumerate(found):
            sums = continuation_logprobs(model, rating_messages(PROMPTS[i], RESPONSES[i], PRINCIPLE), RATING_SCALE)
            chances = np.exp(sums - sums.max())
            assert rating.score == pytest.approx((chances @ np.arange(1, 10) / chances.sum() - 5) / 4, abs=1e-4)
            assert rating.method == "continuations"
            question = encode_prompt(model.tokenizer, rating_messages(PROMPTS[i], RESPONSES[i], PRINCIPLE))
            endings = [encode_text(model.tokenizer, f"{RATING_PREFILL}{option})") for option in RATING_SCALE]
            assert rating.tokens_in == sum(len(question) + len(ending) for ending in endings)

    def test_a_scale_that_one_token_cannot_tell_apart(self, kind: Kind, models: dict[str, LocalModel]) -> None:
        ten = tuple(str(number) for number in range(1, 11))
        rater = LocalRater(models[kind], ten)
        assert rater.continuations  # "1" begins "10"
        rating = rated(score(rater, PROMPTS[:1], RESPONSES[:1], PRINCIPLE))[0]
        sums = continuation_logprobs(models[kind], rating_messages(PROMPTS[0], RESPONSES[0], PRINCIPLE), ten)
        chances = np.exp(sums - sums.max())
        expected = chances @ np.arange(1, 11) / chances.sum()
        assert rating.score == pytest.approx(2 * (expected - 1) / 9 - 1, abs=1e-4)
        assert rater.fingerprint != LocalRater(models[kind]).fingerprint

    def test_what_does_not_fit_fails_alone(self, kind: Kind, models: dict[str, LocalModel]) -> None:
        long = "water " * CONTEXT
        for rater in (LocalRater(models[kind]), LocalRater(models[kind], continuations=True)):
            found = score(rater, PROMPTS[:2], [long, "No."], PRINCIPLE)
            assert isinstance(found[0], Failure) and "exceeds" in found[0].reason and isinstance(found[1], Rating)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split_words", [True, False])
def test_every_tokenizer_can_be_read(kind: Kind, split_words: bool, models: dict[str, LocalModel]) -> None:
    """Where "(1" is a token of its own too, a score's own token is found or whole continuations are read."""
    sentences = tuple(f"The rating is: ({number}) (1 (2 " for number in range(1, 10))
    tokenizer = tiny_tokenizer(kind, sentences, split_words)
    model = models[kind]
    other = LocalModel(model.model, tokenizer, model.fingerprint, model.device, model.batch_tokens)
    for continuations in (None, True):
        found = rated(score(LocalRater(other, continuations=continuations), PROMPTS, RESPONSES, PRINCIPLE))
        assert all(math.isfinite(rating.score) and -1 <= rating.score <= 1 for rating in found)


def test_log_probabilities_that_are_not_numbers(models: dict[str, LocalModel], monkeypatch: pytest.MonkeyPatch) -> None:
    bad = np.full((1, 9), math.nan)
    monkeypatch.setattr(LocalModel, "option_batches", lambda *_: iter([([0], bad, [3])]))
    found = score(LocalRater(models["llama"]), PROMPTS[:1], RESPONSES[:1], PRINCIPLE)
    assert found == [Failure("the judge gave a log-probability that is not finite")]


class TestEndpoint:
    def rater(self, server: ChatServer, method: Any, **compute: object) -> EndpointRater:
        endpoint = Endpoint(server.url, MODEL, ComputeSettings.model_validate({"endpoint_retries": 0} | compute))
        return EndpointRater(endpoint, method, FeedbackModelSettings(model=MODEL, votes=4))

    def test_log_probabilities(self, serve: Serve) -> None:
        values = {
            "7": math.log(0.6),
            "9": math.log(0.2),
            "1": math.log(0.1),
            "The": math.log(0.09),
            "x": math.log(0.001),
        }
        tokens: list[Token] = [("7", values["7"], values)]
        server = serve(lambda n, body: Answer(completion("7", tokens)))
        found = rated(score(self.rater(server, "logprobs"), PROMPTS, RESPONSES, PRINCIPLE))
        expected = (0.6 * 7 + 0.2 * 9 + 0.1) / 0.9
        assert [rating.score for rating in found] == pytest.approx([(expected - 5) / 4] * 5)
        assert [rating.mass for rating in found] == pytest.approx([0.9] * 5)
        assert text_of(server.requests[0]).endswith(RATING_REQUEST)

    def test_scores_that_are_not_listed_and_could_matter(self, serve: Serve) -> None:
        tokens: list[Token] = [("7", math.log(0.5), {"7": math.log(0.5), "9": math.log(0.2)})]
        found = score(self.rater(serve(lambda n, body: Answer(completion("7", tokens))), "logprobs"), *self.one())
        assert isinstance(found[0], Failure) and "1, 2, 3, 4, 5, 6, 8; their share may be 0.30" in found[0].reason

    def test_votes(self, serve: Serve) -> None:
        replies = ["7", "The rating is: (9)", "I cannot say", "8."]
        found = rated(score(self.rater(serve(lambda n, b: Answer(completion(replies[n]))), "votes"), *self.one()))[0]
        assert (found.score, found.mass, found.method) == (pytest.approx(0.75), pytest.approx(0.75), "votes")
        none = score(self.rater(serve(lambda n, b: Answer(completion("?"))), "votes"), *self.one())[0]
        assert isinstance(none, Failure) and "none of 4 sampled replies names a score" in none.reason

    def test_a_stop_is_an_error_since_every_answer_needs_its_reward(self, serve: Serve) -> None:
        def plan(n: int, body: Mapping[str, Any]) -> Answer:
            return Answer(completion("7"))

        with pytest.raises(JudgeStoppedError):
            score(self.rater(serve(plan), "votes", endpoint_max_calls=9), PROMPTS, RESPONSES, PRINCIPLE)

    @staticmethod
    def one() -> tuple[list[list[Message]], list[str], str]:
        return PROMPTS[:1], RESPONSES[:1], PRINCIPLE


def test_the_packaged_model_rates_with_one_token(tmp_path: Path) -> None:
    from rlaif_assets.pocket.world import model_folder

    model = load_model(model_folder(), CPU)
    rater = LocalRater(model)
    assert not rater.continuations
    one, whole = (score(LocalRater(model, continuations=c), PROMPTS, RESPONSES, PRINCIPLE) for c in (None, True))
    assert [rating.score for rating in rated(one)] == pytest.approx([r.score for r in rated(whole)], abs=0.02)
    assert all(rating.mass > 0.9 for rating in rated(one))
