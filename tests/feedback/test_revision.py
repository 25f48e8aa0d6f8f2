"""Step 1 against a fake model: the chain, its requests, its ids, and that prompts = finished chains + rejections."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_assets.feedback.constitution import draw_principle
from rlaif_assets.feedback.generation import silent
from rlaif_assets.feedback.revision import revise
from rlaif_assets.language_models.prompts import critique_messages, revision_messages
from rlaif_assets.records import CritiqueConstitution, Message, Prompt, Rejection, Revision
from rlaif_assets.settings import RevisedResponsesSettings
from rlaif_assets.store.fingerprint import draw_seed
from tests.feedback.fakes import CRITIQUE, PROMPTS, FakeModel, hashed_answer, local, make_prompt

SETTINGS = RevisedResponsesSettings(rounds=3, few_shot=2, max_new_tokens=32, seed=5)


def run(
    model: FakeModel, prompts: Sequence[Prompt] = PROMPTS, settings: RevisedResponsesSettings = SETTINGS
) -> tuple[list[Revision], list[Rejection]]:
    return revise(local(model), CRITIQUE, prompts, settings, silent)


def test_each_round_revises_the_text_before_it_under_its_own_principle():
    model = FakeModel()
    rows, rejections = run(model)
    assert not rejections and len(rows) == len(PROMPTS) * 4
    for start, prompt in zip(range(0, len(rows), 4), PROMPTS, strict=True):
        chain = rows[start : start + 4]
        assert [row.round for row in chain] == [0, 1, 2, 3]
        assert chain[0].text == hashed_answer(prompt.messages, draw_seed(prompt.prompt_id, 5, "response", 0))
        assert (chain[0].parent_id, chain[0].principle_id, chain[0].critique) == (None, None, None)
        for parent, row in pairwise(chain):
            principle = draw_principle(CRITIQUE.principles, prompt.prompt_id, 5, "critique-principle", row.round)
            examples = CRITIQUE.examples[:2]
            asked = critique_messages(prompt.messages, parent.text, principle, examples)
            assert row.critique == hashed_answer(asked, draw_seed(prompt.prompt_id, 5, "critique", row.round))
            assert row.critique is not None
            asked = revision_messages(prompt.messages, parent.text, principle, row.critique, examples)
            assert row.text == hashed_answer(asked, draw_seed(prompt.prompt_id, 5, "revision", row.round))
            assert (row.parent_id, row.principle_id) == (parent.revision_id, principle.principle_id)
            assert row.seed == draw_seed(prompt.prompt_id, 5, "revision", row.round)
            assert row.critique_seed == draw_seed(prompt.prompt_id, 5, "critique", row.round)
            assert row.tokens_out == 4  # two words of critique and two of revision
            assert row.tokens_in == 12 + 3 + 12 + 5  # messages: two worked examples of six, then the request


def test_without_critiques_the_revision_is_asked_for_at_once():
    model = FakeModel()
    rows, rejections = run(model, settings=SETTINGS.model_copy(update={"critique": False}))
    assert not rejections and len(rows) == len(PROMPTS) * 4 and len(model.asked) == len(rows)
    assert not any("Criticise" in message["content"] for asked in model.asked for message in asked)
    for parent, row in pairwise(rows[:4]):
        principle = draw_principle(CRITIQUE.principles, row.prompt_id, 5, "critique-principle", row.round)
        asked = revision_messages(PROMPTS[0].messages, parent.text, principle, None, CRITIQUE.examples[:2])
        assert row.text == hashed_answer(asked, draw_seed(row.prompt_id, 5, "revision", row.round))
        assert (row.critique, row.critique_seed, row.principle_id) == (None, None, principle.principle_id)
        assert (row.tokens_in, row.tokens_out) == (2 * 4 + 3, 2)  # worked examples of four messages, then the request


def test_principles_differ_over_prompts_and_rounds():
    rows, _ = run(FakeModel())
    assert len({row.principle_id for row in rows if row.round == 1}) > 3
    assert len({row.principle_id for row in rows if row.prompt_id == PROMPTS[0].prompt_id and row.round}) > 1


def test_ids_are_unique_and_differ_with_the_text_alone():
    rows, _ = run(FakeModel())
    other_seed, _ = run(FakeModel(), settings=SETTINGS.model_copy(update={"seed": 6}))
    constant = FakeModel(answer=lambda messages, seed: "same")
    same, same_again = run(constant)[0], run(constant, settings=SETTINGS.model_copy(update={"seed": 6}))[0]
    assert len({row.revision_id for row in rows}) == len(rows)
    assert not {row.revision_id for row in rows} & {row.revision_id for row in other_seed}
    assert {row.revision_id for row in same if row.round == 0} == {
        row.revision_id for row in same_again if row.round == 0
    }


@given(st.permutations(PROMPTS))
def test_rows_do_not_depend_on_the_order_of_prompts(shuffled: list[Prompt]):
    assert sorted(run(FakeModel(), shuffled)[0], key=lambda row: row.revision_id) == sorted(
        run(FakeModel())[0], key=lambda row: row.revision_id
    )


@pytest.mark.parametrize(
    ("request_text", "reason"),
    [
        ("Criticise", "critique 1/3: the model gave an empty text"),
        ("Rewrite", "revision 1/3: the model gave an empty text"),
    ],
)
def test_an_empty_critique_or_revision_ends_the_chain(request_text: str, reason: str):
    def answer(messages: Sequence[Message], seed: int) -> str:
        ours = any(PROMPTS[2].text == message["content"] for message in messages)
        return " \n" if ours and messages[-1]["content"].startswith(request_text) else hashed_answer(messages, seed)

    model = FakeModel(answer)
    rows, rejections = run(model)
    first = hashed_answer(PROMPTS[2].messages, draw_seed(PROMPTS[2].prompt_id, 5, "response", 0))
    assert rejections == [Rejection(PROMPTS[2].prompt_id, reason, first)]
    assert PROMPTS[2].prompt_id not in {row.prompt_id for row in rows}
    asked = sum(any(message["content"] == PROMPTS[2].text for message in messages) for messages in model.asked)
    assert asked == (2 if request_text == "Criticise" else 3)  # nothing more is asked after the empty text


def test_a_prompt_beyond_the_context_is_rejected_and_not_asked():
    long = make_prompt("x" * 2000)
    model = FakeModel(context=1500)
    rows, rejections = run(model, [PROMPTS[0], long, PROMPTS[1]])
    assert [rejection.where for rejection in rejections] == [long.prompt_id]
    assert rejections[0].reason == "response: the messages and 32 new tokens exceed the model's context"
    assert {row.prompt_id for row in rows} == {PROMPTS[0].prompt_id, PROMPTS[1].prompt_id}
    assert all(message["content"] != long.text for messages in model.asked for message in messages)


@given(st.integers(0, 2**32), st.floats(0, 0.4), st.integers(60, 400))
def test_prompts_are_finished_chains_plus_rejections(salt: int, empty_share: float, context: int):
    def answer(messages: Sequence[Message], seed: int) -> str:
        draw = random.Random(f"{salt}{seed}")
        return "" if draw.random() < empty_share else "word " * draw.randint(1, 12)

    prompts = [make_prompt(f"Question {number}{'?' * number * 9}") for number in range(10)]
    rows, rejections = run(FakeModel(answer, context=context), prompts)
    assert len(rows) == (len(prompts) - len(rejections)) * 4
    kept, refused = {row.prompt_id for row in rows}, {rejection.where for rejection in rejections}
    assert not kept & refused and kept | refused == {prompt.prompt_id for prompt in prompts}
    assert len(refused) == len(rejections)


def test_progress_names_the_phases_and_reaches_the_end():
    seen: list[tuple[str, int, int]] = []
    revise(local(FakeModel()), CRITIQUE, PROMPTS, SETTINGS, lambda *call: seen.append(call))
    phases = list(dict.fromkeys(phase for phase, _, _ in seen))
    assert phases == ["response", *(f"{kind} {n}/3" for n in (1, 2, 3) for kind in ("critique", "revision"))]
    assert [(done, total) for _, done, total in seen] == [(0, 12), (12, 12)] * 7


def test_repeated_prompts_and_an_empty_constitution_are_errors():
    with pytest.raises(ValueError, match="1 prompts repeat the id"):
        run(FakeModel(), [PROMPTS[0], PROMPTS[0]])
    with pytest.raises(ValueError, match="no principle"):
        revise(local(FakeModel()), CritiqueConstitution((), ()), PROMPTS, SETTINGS, silent)
