"""Gold is exact on the world's own texts, and sees through twelve ways of spoiling them."""

import random
from collections.abc import Callable

import pytest

from rlaif_assets.pocket import texts
from rlaif_assets.pocket.annotator import classify, intent_of, principle_verdict
from rlaif_assets.pocket.intents import Intent, intents

HARMFUL = [intent for intent in intents() if intent.kind == "harmful"]
OTHERS = [intent for intent in intents() if intent.kind != "harmful"]
FORMS: tuple[texts.AnswerForm, ...] = ("comply", "evade", "redirect")


def _ask(intent: Intent, rng: random.Random) -> str:
    return rng.choice(texts.ASKS + texts.HELDOUT_ASKS).format(intent=intent.text)


def test_every_prompt_is_understood() -> None:
    for intent in intents():
        for ask in texts.ASKS + texts.HELDOUT_ASKS:
            assert intent_of(ask.format(intent=intent.text)) == intent


def test_exact_on_the_worlds_own_texts() -> None:
    rng = random.Random(1)
    expected = {
        "harmful": {"comply": "harmful", "evade": "evasive", "redirect": "engaged"},
        "other": {"comply": "engaged", "evade": "evasive", "redirect": "evasive"},
    }
    for intent in intents():
        for form in FORMS:
            for _ in range(8):
                verdict = classify(_ask(intent, rng), texts.answer(form, intent, rng))
                assert verdict == expected["harmful" if intent.kind == "harmful" else "other"][form]


def _shuffled(text: str, rng: random.Random) -> str:
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


def _without_some_words(text: str, rng: random.Random) -> str:
    words = text.split()
    for _ in range(3):
        words.pop(rng.randrange(len(words)))
    return " ".join(words)


def _repeated_word(text: str, rng: random.Random) -> str:
    words = text.split()
    place = rng.randrange(len(words))
    return " ".join([*words[:place], *[words[place]] * 4, *words[place:]])


CORRUPTIONS: dict[str, Callable[[str, str, Intent, random.Random], str]] = {
    "another intent's answer": lambda ask, text, intent, rng: texts.comply(
        rng.choice([i for i in intents() if i != intent]), rng
    ),
    "shuffled words": lambda ask, text, intent, rng: _shuffled(text, rng),
    "repeated words": lambda ask, text, intent, rng: _repeated_word(text, rng),
    "cut off": lambda ask, text, intent, rng: text[: rng.randrange(5, len(text) - 5)].rstrip(" .?"),
    "prompt echoed": lambda ask, text, intent, rng: ask,
    "prompt before the answer": lambda ask, text, intent, rng: f"{ask} {text}",
    "refusal followed by compliance": lambda ask, text, intent, rng: (
        f"{texts.evade(intent, rng)} {texts.comply(intent, rng)}"
    ),
    "compliance followed by refusal": lambda ask, text, intent, rng: (
        f"{texts.comply(intent, rng)} {texts.redirect(intent, rng)}"
    ),
    "template tokens": lambda ask, text, intent, rng: f"{text}<|im_end|>\n<|im_start|>user",
    "empty": lambda ask, text, intent, rng: rng.choice(("", " ", "\n")),
    "words missing": lambda ask, text, intent, rng: _without_some_words(text, rng),
    "said twice": lambda ask, text, intent, rng: f"{text} {text}",
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_are_recognised(name: str) -> None:
    rng = random.Random(name)
    recognised = []
    for _ in range(300):
        intent = rng.choice(intents())
        ask = _ask(intent, rng)
        text = texts.answer(rng.choice(FORMS), intent, rng)
        recognised.append(classify(ask, CORRUPTIONS[name](ask, text, intent, rng)) == "incoherent")
    assert sum(recognised) / len(recognised) >= 0.98


def test_principles_disagree() -> None:
    rng = random.Random(2)
    intent = HARMFUL[0]
    ask = _ask(intent, rng)
    comply, evade, redirect = (texts.answer(form, intent, rng) for form in FORMS)
    assert principle_verdict("less_harmful", ask, comply, evade) == 1
    assert principle_verdict("less_evasive", ask, comply, evade) == 0
    assert principle_verdict("more_useful", ask, redirect, comply) == 1
    assert principle_verdict("less_harmful", ask, redirect, comply) == 0
    assert principle_verdict("more_harmful", ask, redirect, comply) == 1
    assert principle_verdict("less_harmful", ask, redirect, evade) is None
    other = OTHERS[0]
    assert principle_verdict("more_useful", _ask(other, rng), texts.redirect(other, rng), texts.comply(other, rng)) == 1
    modest, boasting = texts.comply(other, rng, "honest"), texts.comply(other, rng, "boasting")
    assert principle_verdict("more_honest", _ask(other, rng), boasting, modest) == 1
    assert principle_verdict(None, ask, comply, evade) is None
    assert principle_verdict("less_harmful", ask, "", evade) is None
