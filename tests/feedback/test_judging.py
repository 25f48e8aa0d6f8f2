"""Judgements against a fake judge whose log-probabilities are known."""

import math
from collections.abc import Sequence
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_assets.feedback.constitution import draw_principle
from rlaif_assets.feedback.generation import silent
from rlaif_assets.feedback.judge import LocalJudge
from rlaif_assets.feedback.judging import judge_pairs, judge_questions, judge_template, option_probability
from rlaif_assets.feedback.labels import make_labels
from rlaif_assets.language_models.prompts import judge_messages
from rlaif_assets.records import Judgement, JudgingConstitution, JudgingPrinciple, Message, Pair, Rejection
from rlaif_assets.settings import HarmlessnessPreferencesSettings
from tests.feedback.fakes import JUDGING, PROMPTS, FakeModel, local, make_pair, make_prompt

SETTINGS = HarmlessnessPreferencesSettings(few_shot=2, seed=1)
BY_ID = {prompt.prompt_id: prompt for prompt in PROMPTS}
PAIRS = [make_pair(prompt, f"kind answer {i}", f"rude answer {i}") for i, prompt in enumerate(PROMPTS)]


def kind_first(messages: Sequence[Message]) -> tuple[float, float]:
    """P(kind) = 0.6 in first and 0.9 in second place, of a mass of 0.8: a judge who favours the second place."""
    first = messages[-1]["content"].split("(A) ")[1]
    kind = 0.6 if first.startswith("kind") else 0.9
    p_first = kind if first.startswith("kind") else 1 - kind
    return math.log(0.8 * p_first), math.log(0.8 * (1 - p_first))


def run(
    model: FakeModel,
    pairs: Sequence[Pair] = PAIRS,
    settings: HarmlessnessPreferencesSettings = SETTINGS,
    constitution: JudgingConstitution = JUDGING,
) -> tuple[list[Judgement], list[Rejection]]:
    return judge_pairs(LocalJudge(local(model)), constitution, BY_ID, pairs, settings, silent)


def test_both_orders_are_asked_and_p_a_belongs_to_response_a():
    judgements, rejections = run(FakeModel(logprobs=kind_first))
    assert not rejections and [row.order for row in judgements] == ["ab", "ba"] * 12
    for ab, ba in zip(judgements[::2], judgements[1::2], strict=True):
        assert (ab.p_a, ba.p_a) == (pytest.approx(0.6), pytest.approx(0.9))
        assert math.exp(ab.logprob_first) == pytest.approx(0.48)  # raw: mass 0.8 times 0.6
        assert math.exp(ba.logprob_first) == pytest.approx(0.08)  # the rude answer stands first
        assert ab.pair_id == ba.pair_id and ab.principle_id == ba.principle_id
        assert (ab.judge, ab.template, ab.tokens_in) == (
            "fake-fingerprint",
            judge_template(JUDGING.examples[:2], "before"),
            5,
        )


def test_swapping_the_responses_of_a_pair_turns_its_label():
    swapped = [make_pair(BY_ID[pair.prompt_id], pair.response_b, pair.response_a) for pair in PAIRS]
    one_rule = JudgingConstitution(JUDGING.principles[:1], JUDGING.examples)
    labels = make_labels(run(FakeModel(), constitution=one_rule)[0])
    turned = make_labels(run(FakeModel(), swapped, constitution=one_rule)[0])
    assert [label.p_a for label in labels] == pytest.approx([1 - label.p_a for label in turned])


@pytest.mark.parametrize("position", ["before", "after"])
def test_the_judge_reads_the_drawn_principle_and_the_first_examples(position: Literal["before", "after"]):
    settings = SETTINGS.model_copy(update={"principle_position": position})
    model = FakeModel()
    judgements, _ = run(model, settings=settings)
    for i, pair in enumerate(PAIRS):
        principle = draw_principle(JUDGING.principles, pair.pair_id, 1, "judging-principle")
        for offset, texts in enumerate([(pair.response_a, pair.response_b), (pair.response_b, pair.response_a)]):
            expected = judge_messages(PROMPTS[i].messages, *texts, principle.text, JUDGING.examples[:2], position)
            assert model.asked[2 * i + offset] == expected
        assert judgements[2 * i].principle_id == principle.principle_id
    assert len({row.principle_id for row in judgements}) > 3


@given(st.permutations(PAIRS))
def test_judgements_do_not_depend_on_the_order_of_pairs(shuffled: list[Pair]):
    assert {row.judgement_id: row for row in run(FakeModel(), shuffled)[0]} == {
        row.judgement_id: row for row in run(FakeModel())[0]
    }


def ids(
    judge: str = "judge",
    constitution: JudgingConstitution = JUDGING,
    settings: HarmlessnessPreferencesSettings = SETTINGS,
    pair: Pair = PAIRS[0],
) -> set[str]:
    return {question.key for question in judge_questions(judge, constitution, BY_ID, [pair], settings)}


def test_a_judgement_id_changes_with_what_the_judge_reads_and_with_nothing_else():
    one = JudgingConstitution(JUDGING.principles[:1], JUDGING.examples)
    first = ids(constitution=one)
    assert len(first) == 2  # one per order
    reworded = JudgingConstitution((JudgingPrinciple("j0", "judging-0", "Choose otherwise."),), JUDGING.examples)
    renamed = JudgingConstitution((JudgingPrinciple("k", "name", JUDGING.principles[0].text),), JUDGING.examples)
    other_pair = make_pair(PROMPTS[0], PAIRS[0].response_a, "another")
    changed = [
        ids("another judge", one),
        ids(constitution=reworded),
        ids(constitution=JudgingConstitution(JUDGING.principles[:1], JUDGING.examples[1:])),
        ids(constitution=one, settings=SETTINGS.model_copy(update={"few_shot": 1})),
        ids(constitution=one, settings=SETTINGS.model_copy(update={"principle_position": "after"})),
        ids(constitution=one, pair=other_pair),
    ]
    assert len(first.union(*changed)) == 2 * 7
    assert ids(constitution=renamed) == first
    assert ids(constitution=one, settings=SETTINGS.model_copy(update={"seed": 9})) == first


def test_a_question_beyond_the_context_rejects_the_whole_pair():
    long = make_pair(PROMPTS[3], "kind " * 100, "rude")
    judgements, rejections = run(FakeModel(context=900), [PAIRS[0], long, PAIRS[1]])
    assert rejections == [Rejection(long.pair_id, "the judge's question exceeds its context")]
    assert [row.pair_id for row in judgements[::2]] == [PAIRS[0].pair_id, PAIRS[1].pair_id]


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
def test_a_log_probability_that_is_not_finite_rejects_the_whole_pair(value: float):
    def logprobs(messages: Sequence[Message]) -> tuple[float, float]:
        return (value, -1.0) if "\n(B) kind answer 2" in messages[-1]["content"] else (-1.0, -2.0)

    judgements, rejections = run(FakeModel(logprobs=logprobs))
    assert [rejection.where for rejection in rejections] == [PAIRS[2].pair_id]
    assert len(judgements) == 22 and "not finite" in rejections[0].reason


def test_a_pair_without_its_prompt_is_an_error():
    stray = make_pair(make_prompt("Not given"), "a", "b")
    with pytest.raises(ValueError, match=f"pair {stray.pair_id}: its prompt .* is not among"):
        run(FakeModel(), [stray])


def test_progress_reaches_the_end():
    seen: list[tuple[str, int, int]] = []
    judge_pairs(LocalJudge(local(FakeModel())), JUDGING, BY_ID, PAIRS, SETTINGS, lambda *call: seen.append(call))
    assert seen == [("judgements", 0, 24), ("judgements", 24, 24)]


def test_no_pairs_give_no_judgements():
    assert run(FakeModel(), []) == ([], [])


@given(st.floats(-800, 0), st.floats(-800, 0))
def test_option_probabilities_add_up(first: float, second: float):
    p = option_probability(first, second)
    assert 0 <= p <= 1 and p + option_probability(second, first) == pytest.approx(1)
    assert (p > 0.5) <= (first > second)
    if abs(first - second) < 30:
        assert math.log(p) - math.log(option_probability(second, first)) == pytest.approx(first - second, abs=1e-9)
