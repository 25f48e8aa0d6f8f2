"""What the pocket world hands to the pipeline: prompts, simulated annotators' comparisons, community votes, the model.

All of it is the same in every run; the disagreement of annotators and the votes depend on the seed alone.
"""

import random
from collections import Counter
from itertools import product
from pathlib import Path

from rlaif_assets.pocket import texts
from rlaif_assets.pocket.annotator import classify, intent_of
from rlaif_assets.pocket.intents import Intent, Kind, intents
from rlaif_assets.records import CommunityAnswer, Comparison, Message, Prompt
from rlaif_assets.store.fingerprint import draw_seed, draw_unit, row_id

ASKS_PER_TRAIN_INTENT = 6
COMPARISONS_PER_PROMPT = 2
QUESTIONS_PER_INTENT = 2
ANSWERS_PER_QUESTION = 3
REFERENCE_DRAWS = 100
SOURCE = "pocket"
# Forms of the two answers in a comparison.
COMPARED = (
    *(("comply", "evade"),) * 2,
    *(("comply", "redirect"),) * 2,
    ("comply", "other"),
    ("evade", "other"),
    ("comply", "cut"),
    ("redirect", "cut"),
)


def model_folder() -> Path:
    """The packaged model: helpful-only base model and feedback model at once."""
    return Path(__file__).parent / "model"


def red_team_prompts() -> list[Prompt]:
    return _prompts(("harmful",))


def helpful_prompts() -> list[Prompt]:
    """Harmless prompts and look-alikes."""
    return _prompts(("harmless", "lookalike"))


def _prompts(kinds: tuple[Kind, ...]) -> list[Prompt]:
    """Train intents with six of the common ways to ask; dev and test intents with the three held-out ways."""
    rows: list[Prompt] = []
    for intent in intents():
        if intent.kind not in kinds:
            continue
        for ask in _asks(intent):
            messages: tuple[Message, ...] = ({"role": "user", "content": ask},)
            rows.append(
                Prompt(
                    prompt_id=row_id("prompt", messages),
                    messages=messages,
                    split=intent.split,
                    kind=intent.kind,
                    source=SOURCE,
                    category=intent.category,
                    intent=intent.text,
                )
            )
    return rows


def _asks(intent: Intent) -> list[str]:
    if intent.split != "train":
        return [ask.format(intent=intent.text) for ask in texts.HELDOUT_ASKS]
    asks = sorted(texts.ASKS, key=lambda ask: draw_unit(intent.text, 0, ask))
    return [ask.format(intent=intent.text) for ask in asks[:ASKS_PER_TRAIN_INTENT]]


def _helpful_train_prompts() -> list[Prompt]:
    return [prompt for prompt in helpful_prompts() if prompt.split == "train"]


def _rng(prompt: Prompt, seed: int, purpose: str) -> random.Random:
    return random.Random(draw_seed(prompt.prompt_id, seed, purpose))


def _intent(prompt: Prompt) -> Intent:
    intent = intent_of(prompt.text)
    assert intent is not None
    return intent


def _written(form: str, intent: Intent, rng: random.Random) -> str:
    """An answer of this form; `other` answers another question of the train split, `cut` breaks off."""
    if form in texts.FORMS:
        return texts.answer(form, intent, rng)
    if form == "cut":
        sentences = texts.answer(rng.choice(("comply", "redirect")), intent, rng).split(". ")
        return ". ".join(sentences[: rng.randint(1, min(2, len(sentences) - 1))]) + "."
    others = [other for other in intents() if other.split == "train" and other.kind != "harmful" and other != intent]
    return texts.comply(rng.choice(others), rng)


def comparisons(disagreement: float, seed: int) -> list[Comparison]:
    """Simulated annotators compare two answers to a harmless or look-alike prompt of the train split.

    They prefer engaged > evasive > incoherent by the gold annotator, draw lots on ties, and say the opposite in a
    share `disagreement` of the comparisons. They never see a harmful prompt.
    """
    rank = {"engaged": 2, "evasive": 1, "harmful": 0, "incoherent": 0}
    rows: list[Comparison] = []
    for number, prompt in product(range(COMPARISONS_PER_PROMPT), _helpful_train_prompts()):
        rng = _rng(prompt, seed, f"comparison {number}")
        intent = _intent(prompt)
        forms = rng.choice(COMPARED)
        first, second = (_written(form, intent, rng) for form in forms)
        if rng.random() < 0.5:
            first, second = second, first
        ranks = rank[classify(prompt.text, first)], rank[classify(prompt.text, second)]
        prefers_first = rng.random() < 0.5 if ranks[0] == ranks[1] else ranks[0] > ranks[1]
        if rng.random() < disagreement:
            prefers_first = not prefers_first
        rows.append(
            Comparison(
                comparison_id=row_id("comparison", prompt.messages, first, second),
                messages=prompt.messages,
                response_a=first,
                response_b=second,
                p_a=1.0 if prefers_first else 0.0,
                source="human",
                annotator=f"pocket annotator {rng.randrange(5)}",
            )
        )
    return rows


def reference_comparisons() -> list[Comparison]:
    """Pairs on harmful train prompts, one each: compliance beside a refusal. The gold annotator says which is harmless.

    They tell audits whether a judge agrees with people. No step trains on them. As compliance is mostly the longer
    text, each pair is drawn again until a coin says so: length alone does not give the answer away.
    """
    rows: list[Comparison] = []
    for prompt in red_team_prompts():
        if prompt.split != "train":
            continue
        rng = _rng(prompt, 0, "reference")
        intent = _intent(prompt)
        pair = _compliance_and_refusal(intent, rng)
        rng.shuffle(pair)
        harmful = [classify(prompt.text, text) == "harmful" for text in pair]
        rows.append(
            Comparison(
                comparison_id=row_id("comparison", prompt.messages, *pair),
                messages=prompt.messages,
                response_a=pair[0],
                response_b=pair[1],
                p_a=0.5 if harmful[0] == harmful[1] else float(harmful[1]),
                source="gold",
                annotator="pocket annotator",
            )
        )
    return rows


def _compliance_and_refusal(intent: Intent, rng: random.Random) -> list[str]:
    longer_complies = rng.random() < 0.5
    pair: list[str] = []
    for _ in range(REFERENCE_DRAWS):
        pair = [_written(form, intent, rng) for form in ("comply", rng.choice(("evade", "redirect")))]
        if (len(pair[0]) > len(pair[1])) == longer_complies:
            break
    return pair


def community_answers(seed: int) -> list[CommunityAnswer]:
    """Questions about harmless and look-alike train intents, with answers and noisy votes, in Stack Exchange form."""
    from rlaif_assets.ingest.community import community_score

    typical = {"comply": 9.0, "redirect": 1.0, "evade": 0.5, "other": -1.0}
    rows: list[CommunityAnswer] = []
    asked: Counter[Intent] = Counter()
    for prompt in _helpful_train_prompts():
        rng = _rng(prompt, seed, "community")
        intent = _intent(prompt)
        asked[intent] += 1
        if asked[intent] > QUESTIONS_PER_INTENT:
            continue
        forms = [
            "comply",
            *(rng.choice(("comply", "evade", "redirect", "other")) for _ in range(ANSWERS_PER_QUESTION - 1)),
        ]
        answers = [_written(form, intent, rng) for form in forms]
        votes = [
            round(rng.gauss(typical[form], 3.0)) - 3 * texts.is_boasting(text)
            for form, text in zip(forms, answers, strict=True)
        ]
        best = max(range(len(votes)), key=votes.__getitem__)
        for place, (text, count) in enumerate(zip(answers, votes, strict=True)):
            accepted = place == best
            rows.append(
                CommunityAnswer(
                    answer_id=row_id("community-answer", prompt.text, text, place),
                    question_id=prompt.prompt_id,
                    question=prompt.text,
                    text=text,
                    votes=count,
                    accepted=accepted,
                    score=community_score(count, accepted),
                )
            )
    return rows
