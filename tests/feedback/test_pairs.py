"""Sampled answers and response pairs against a fake model."""

import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from rlaif_assets.feedback.generation import silent
from rlaif_assets.feedback.pairs import sample_answers, sample_pairs
from rlaif_assets.records import Message, Pair, Prompt, Rejection
from rlaif_assets.settings import ResponsePairsSettings
from rlaif_assets.store.fingerprint import draw_seed
from tests.feedback.fakes import PROMPTS, FakeModel, hashed_answer, local, make_prompt

SETTINGS = ResponsePairsSettings(max_new_tokens=32, pairs_per_prompt=2, seed=3)


def run(
    model: FakeModel, prompts: Sequence[Prompt] = PROMPTS, settings: ResponsePairsSettings = SETTINGS
) -> tuple[list[Pair], list[Rejection]]:
    return sample_pairs(local(model), prompts, settings, silent)


def test_two_samples_per_prompt_and_draw():
    pairs, rejections = run(FakeModel())
    assert not rejections and len(pairs) == 24
    assert [pair.prompt_id for pair in pairs] == [prompt.prompt_id for prompt in PROMPTS for _ in range(2)]
    for i, pair in enumerate(pairs):
        prompt = PROMPTS[i // 2]
        assert pair.seed_a == draw_seed(prompt.prompt_id, 3, "pair-a", i % 2)
        assert pair.seed_b == draw_seed(prompt.prompt_id, 3, "pair-b", i % 2)
        assert pair.response_a == hashed_answer(prompt.messages, pair.seed_a)
        assert pair.response_b == hashed_answer(prompt.messages, pair.seed_b)
        assert pair.tokens_out == 4


def test_identical_answers_are_rejected():
    def answer(messages: Sequence[Message], seed: int) -> str:
        return "same" if messages[0]["content"] == PROMPTS[4].text else hashed_answer(messages, seed)

    pairs, rejections = run(FakeModel(answer))
    assert rejections == [Rejection(PROMPTS[4].prompt_id, "the two answers are identical", "same")] * 2
    assert len(pairs) == 22


def test_a_pair_that_only_swaps_an_earlier_one_is_rejected():
    prompt = PROMPTS[0]
    texts = {
        draw_seed(prompt.prompt_id, 3, purpose, index): "xy"[(index + (purpose == "pair-b")) % 2]
        for purpose in ("pair-a", "pair-b")
        for index in (0, 1)
    }
    pairs, rejections = run(FakeModel(lambda messages, seed: texts[seed]), [prompt])
    assert [(pair.response_a, pair.response_b) for pair in pairs] == [("x", "y")]
    assert "earlier pair" in rejections[0].reason


def test_empty_answers_and_long_prompts_are_rejected():
    empty = FakeModel(lambda messages, seed: "" if seed % 2 else hashed_answer(messages, seed))
    pairs, rejections = run(empty)
    assert all(pair.seed_a % 2 == 0 and pair.seed_b % 2 == 0 for pair in pairs)
    assert len(pairs) + len(rejections) == 24 and {r.reason for r in rejections} == {
        "answers: the model gave an empty text"
    }
    long = make_prompt("x" * 200)
    pairs, rejections = run(FakeModel(context=100), [long, PROMPTS[0]])
    assert [rejection.where for rejection in rejections] == [long.prompt_id] * 2 and len(pairs) == 2
    assert "exceed the model's context" in rejections[0].reason


def test_an_answer_that_did_not_end_makes_no_pair():
    whole = FakeModel()
    cut = {run(whole, PROMPTS[:1])[0][0].response_b, run(whole, PROMPTS[1:2])[0][1].response_a}
    pairs, rejections = run(FakeModel(ends=lambda text: text not in cut))
    assert len(pairs) == 22 and not cut & {text for pair in pairs for text in (pair.response_a, pair.response_b)}
    assert [rejection.where for rejection in rejections] == [prompt.prompt_id for prompt in PROMPTS[:2]]
    assert {rejection.text for rejection in rejections} == cut
    assert {rejection.reason for rejection in rejections} == {"not finished within max_new_tokens=32"}


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 5))
def test_prompts_times_draws_are_pairs_plus_rejections(salt: int, draws: int, vocabulary: int):
    def answer(messages: Sequence[Message], seed: int) -> str:
        return "abcd "[random.Random(f"{salt}{seed}").randrange(vocabulary)].strip()

    settings = SETTINGS.model_copy(update={"pairs_per_prompt": draws})
    pairs, rejections = run(FakeModel(answer), settings=settings)
    assert len(pairs) + len(rejections) == len(PROMPTS) * draws
    assert len({pair.pair_id for pair in pairs}) == len(pairs)
    assert all(pair.response_a != pair.response_b and pair.response_a and pair.response_b for pair in pairs)


@given(st.permutations(PROMPTS))
def test_pairs_do_not_depend_on_the_order_of_prompts(shuffled: list[Prompt]):
    assert {pair.pair_id: pair for pair in run(FakeModel(), shuffled)[0]} == {
        pair.pair_id: pair for pair in run(FakeModel())[0]
    }


def test_answers_keep_order_seeds_and_ids():
    long = make_prompt("x" * 200)
    answers, rejections = sample_answers(
        local(FakeModel(context=150)), [*PROMPTS, long], "helpful", 1.0, 32, seed=7, round=2, progress=silent
    )
    assert [answer.prompt_id for answer in answers] == [prompt.prompt_id for prompt in PROMPTS]
    assert [rejection.where for rejection in rejections] == [long.prompt_id]
    assert answers[0].seed == draw_seed(PROMPTS[0].prompt_id, 7, "helpful", 2)
    assert answers[0].text == hashed_answer(PROMPTS[0].messages, answers[0].seed)


def test_the_same_text_has_the_same_answer_id_in_a_pair_and_alone():
    texts = FakeModel(lambda messages, seed: "x" if seed == draw_seed(PROMPTS[0].prompt_id, 3, "pair-a", 0) else "y")
    pair = run(texts, PROMPTS[:1], SETTINGS.model_copy(update={"pairs_per_prompt": 1}))[0][0]
    answers, _ = sample_answers(local(texts), PROMPTS[:1], "pair-a", 1.0, 32, 3)
    assert answers[0].answer_id == pair.response_a_id != pair.response_b_id
