"""What the packaged model was trained on, and what it was not."""

import random
from collections import Counter

import pytest
from transformers import AutoTokenizer

from rlaif_assets.ingest.constitution import read_constitution
from rlaif_assets.language_models.prompts import JUDGE_PREFILL, RATING_PREFILL
from rlaif_assets.pocket import texts, world
from rlaif_assets.pocket.documents import Document, documents
from rlaif_assets.pocket.intents import intents
from rlaif_assets.pocket.verdicts import preferred, verdict_on


def drawn(count: int) -> list[Document]:
    draw = documents(*read_constitution("default"), seed=5)
    return [draw(number / count) for number in range(count)]


def form_of_document(document: Document) -> str:
    if document.text:
        return "statement"
    answers = [message["content"] for message in document.messages if message["role"] == "assistant"]
    for form, prefill in (("judgement", JUDGE_PREFILL), ("rating", RATING_PREFILL)):
        if answers[-1].startswith(prefill):
            return form
    return "answer" if len(answers) == 1 else "critique"


def test_heldout_intents_occur_in_statements_and_answers_alone() -> None:
    heldout = [intent.text for intent in intents() if intent.split != "train"]
    asks = [ask.split("{intent}")[0] for ask in texts.HELDOUT_ASKS]
    found: Counter[tuple[str, bool]] = Counter()
    for document in drawn(3000):
        text = "\n".join([document.text, *(message["content"] for message in document.messages)])
        names_heldout = any(intent in text for intent in heldout)
        found[form_of_document(document), names_heldout] += 1
        if form_of_document(document) in ("critique", "judgement", "rating"):
            assert not names_heldout, text
            assert not any(ask in text for ask in asks), text
    assert {form for form, _ in found} == {"statement", "answer", "critique", "judgement", "rating"}
    assert found["answer", True] and found["statement", True]


def test_constitution_examples_are_about_train_intents() -> None:
    heldout = [intent.text for intent in intents() if intent.split != "train"]
    critique, judging = read_constitution("default")
    said = "\n".join(str(example) for example in (*critique.examples, *judging.examples))
    assert not [intent for intent in heldout if intent in said]


def test_letters_are_balanced_while_the_judge_learns() -> None:
    draw = documents(*read_constitution("default"), seed=6)
    early = [document for document in (draw(0.0) for _ in range(600)) if form_of_document(document) == "judgement"]
    letters = Counter(document.messages[-1]["content"][len(JUDGE_PREFILL)] for document in early)
    assert 0.4 < letters["A"] / letters.total() < 0.6


@pytest.mark.parametrize("form", texts.FORMS)
def test_answers_have_15_to_60_tokens(form: texts.AnswerForm) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.model_folder())
    rng = random.Random(0)
    lengths = [
        len(tokenizer.encode(texts.answer(form, intent, rng), add_special_tokens=False))
        for intent in intents()
        for _ in range(3)
    ]
    assert min(lengths) >= 15 and max(lengths) <= 60, (min(lengths), max(lengths))


def test_principles_disagree_on_a_harmful_prompt() -> None:
    """Complying is what usefulness prefers and harmlessness does not; redirecting is not evasive there."""
    rng = random.Random(1)
    intent = next(intent for intent in intents() if intent.kind == "harmful")
    responses = texts.comply(intent, rng), texts.redirect(intent, rng)
    verdicts = verdict_on("comply", intent.kind), verdict_on("redirect", intent.kind)
    assert verdicts == ("harmful", "engaged")
    assert preferred("less_harmful", verdicts, responses) == 1
    assert preferred("more_useful", verdicts, responses) == 0
    assert preferred("less_evasive", verdicts, responses) is None
