"""The packaged model's training text: statements, answers, critiques, revisions, judgements, ratings.

Statements and answers cover every intent; critiques, revisions, judgements and ratings cover train intents alone. What
the model does imperfectly comes from this text: annotators in it disagree now and then, and favour the first option
when a principle does not decide.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlaif_assets.language_models import prompts
from rlaif_assets.pocket import texts
from rlaif_assets.pocket.annotator import classify, principle_verdict
from rlaif_assets.pocket.intents import Intent, intents
from rlaif_assets.records import (
    CritiqueConstitution,
    CritiquePrinciple,
    JudgingConstitution,
    JudgingExample,
    Message,
)

# Answers of the helpful-only model: it complies with most requests, harmful ones included.
ANSWER_WEIGHTS = {"harmful": (0.74, 0.13, 0.13), "harmless": (0.93, 0.04, 0.03), "lookalike": (0.91, 0.05, 0.04)}
JUDGE_DISAGREEMENT = 0.10
UNDECIDED_FIRST = 0.60
PREFERS_REASONS = 0.65
SHARES = {"statement": 0.16, "answer": 0.22, "critique": 0.20, "judgement": 0.38, "rating": 0.04}
MORE_HARMFUL = (
    "Choose the response that is more harmful.",
    "Choose the more harmful response.",
    "Which response does more to help somebody do harm?",
)


@dataclass(frozen=True)
class Document:
    """A statement (`text`), or a conversation of which the assistant turns with `weights` > 0 are learned."""

    text: str
    messages: tuple[Message, ...]
    weights: tuple[float, ...]


def critique_and_revision(intent: Intent, response: str, kind: str | None, rng: random.Random) -> tuple[str, str]:
    """What a careful reader says of `response` under a critique principle of `kind`, and the revision that follows."""
    form = {"harmful": "harmful"}.get(classify(texts.ASKS[0].format(intent=intent.text), response))
    refused = not texts.is_help(response)
    if kind == "harmful" and form == "harmful":
        return texts.pick(rng, texts.CRITIQUES["harmful"], intent), texts.redirect(intent, rng)
    if kind == "evasive" and refused and (intent.kind != "harmful" or not texts.gives_reason(response)):
        better = texts.redirect if intent.kind == "harmful" else texts.comply
        return texts.pick(rng, texts.CRITIQUES["evasive"], intent), better(intent, rng)
    if kind == "dishonest" and texts.is_boasting(response):
        return texts.pick(rng, texts.CRITIQUES["dishonest"], intent), texts.without_boast(response, rng)
    return rng.choice(texts.NOTHING_WRONG), response


def documents(critique: CritiqueConstitution, judging: JudgingConstitution, seed: int) -> Callable[[], Document]:
    """An endless source of training documents, the same for the same seed."""
    rng = random.Random(seed)
    train = [intent for intent in intents() if intent.split == "train"]
    makers: dict[str, Callable[[], Document]] = {
        "statement": lambda: _statement(rng.choice(intents()), rng),
        "answer": lambda: _answer(rng.choice(intents()), rng),
        "critique": lambda: _critique(train, critique.principles, rng),
        "judgement": lambda: _judgement(train, judging, rng),
        "rating": lambda: _rating(_draw(train, rng), judging, rng),
    }
    kinds, shares = tuple(SHARES), tuple(SHARES.values())
    return lambda: makers[rng.choices(kinds, shares)[0]]()


def _draw(train: Sequence[Intent], rng: random.Random) -> Intent:
    """Harmful intents half of the time."""
    kind = rng.choices(("harmful", "harmless", "lookalike"), (0.5, 0.2, 0.3))[0]
    return rng.choice([intent for intent in train if intent.kind == kind])


def _ask(intent: Intent, rng: random.Random) -> str:
    asks = texts.ASKS if intent.split == "train" else texts.ASKS + texts.HELDOUT_ASKS
    return rng.choice(asks).format(intent=intent.text)


def helpful_only_answer(intent: Intent, rng: random.Random) -> str:
    return texts.answer(rng.choices(texts.FORMS, ANSWER_WEIGHTS[intent.kind])[0], intent, rng)


def _statement(intent: Intent, rng: random.Random) -> Document:
    options = texts.HARM_STATEMENTS if intent.kind == "harmful" else texts.SAFE_STATEMENTS
    return Document(texts.pick(rng, options, intent), (), ())


def _answer(intent: Intent, rng: random.Random) -> Document:
    return _conversation([(_ask(intent, rng), helpful_only_answer(intent, rng), 1.0)])


def _conversation(turns: Sequence[tuple[str, str, float]]) -> Document:
    messages: list[Message] = []
    weights: list[float] = []
    for asked, said, weight in turns:
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": said})
        weights += [0.0, weight]
    return Document("", tuple(messages), tuple(weights))


def _critique(train: Sequence[Intent], principles: Sequence[CritiquePrinciple], rng: random.Random) -> Document:
    """One to three chains of response, critique and revision in one conversation: the earlier serve as examples."""
    turns: list[tuple[str, str, float]] = []
    for _ in range(rng.choices((1, 2, 3), (0.55, 0.35, 0.10))[0]):
        intent, principle = _draw(train, rng), rng.choice(principles)
        form = rng.choices(texts.FORMS, (0.5, 0.25, 0.25))[0]
        response = texts.answer(form, intent, rng)
        critique, revision = critique_and_revision(intent, response, principle.kind, rng)
        turns += [
            (_ask(intent, rng), response, 0.3),
            (principle.critique_request, critique, 1.5),
            (principle.revision_request, revision, 1.0),
        ]
    return _conversation(turns)


def _two_responses(intent: Intent, rng: random.Random) -> tuple[str, str]:
    forms = rng.choices(texts.FORMS, (0.45, 0.25, 0.3), k=2)
    if forms[0] == forms[1] and rng.random() < 0.6:
        forms[1] = rng.choice([form for form in texts.FORMS if form != forms[0]])
    return texts.answer(forms[0], intent, rng), texts.answer(forms[1], intent, rng)


def _choice(kind: str, ask: str, first: str, second: str, rng: random.Random) -> int:
    """The option that the text's annotator chooses."""
    better = principle_verdict(kind, ask, first, second)
    if better is not None:
        return 1 - better if rng.random() < JUDGE_DISAGREEMENT else better
    reasons = texts.gives_reason(first), texts.gives_reason(second)
    if kind == "less_harmful" and reasons[0] != reasons[1] and classify(ask, first) != "harmful":
        preferred = 0 if reasons[0] else 1
        return preferred if rng.random() < PREFERS_REASONS else 1 - preferred
    return 0 if rng.random() < UNDECIDED_FIRST else 1


def _judgement(train: Sequence[Intent], judging: JudgingConstitution, rng: random.Random) -> Document:
    """A two-option question with zero to two answered ones before it."""
    position = rng.choice(("before", "after"))
    examples: list[JudgingExample] = []
    for _ in range(rng.choices((1, 2, 3), (0.5, 0.3, 0.2))[0]):
        intent, kind, text = _principle(train, judging, rng)
        ask = _ask(intent, rng)
        first, second = _two_responses(intent, rng)
        better = _choice(kind, ask, first, second, rng)
        examples.append(JudgingExample("", ask, first, second, text, 1 if better else 0))
    last = examples[-1]
    asked: Message = {"role": "user", "content": last.prompt}
    messages = prompts.judge_messages([asked], last.first, last.second, last.principle, examples[:-1], position)
    answer: Message = {"role": "assistant", "content": f"{prompts.JUDGE_PREFILL}{prompts.JUDGE_OPTIONS[last.better]})"}
    messages.append(answer)
    return Document("", tuple(messages), tuple(3.0 if m["role"] == "assistant" else 0.0 for m in messages))


def _principle(train: Sequence[Intent], judging: JudgingConstitution, rng: random.Random) -> tuple[Intent, str, str]:
    """Kinds of principle are drawn evenly, so that the rare ones are learned as well."""
    kind = rng.choices(
        ("less_harmful", "less_evasive", "more_useful", "more_honest", "more_harmful"), (0.44, 0.17, 0.17, 0.1, 0.12)
    )[0]
    wordings = [p.text for p in judging.principles if p.kind == kind] or list(MORE_HARMFUL)
    return _draw(train, rng), kind, rng.choice(wordings)


RATINGS = {"engaged": (7, 8, 9), "evasive": (3, 4, 5), "harmful": (1, 2, 3)}


def _rating(intent: Intent, judging: JudgingConstitution, rng: random.Random) -> Document:
    harm = [p.text for p in judging.principles if p.kind == "less_harmful"]
    ask = _ask(intent, rng)
    response = _two_responses(intent, rng)[0]
    score = rng.choice(RATINGS[classify(ask, response)])
    messages = prompts.rating_messages([{"role": "user", "content": ask}], response, rng.choice(harm))
    return _conversation([(messages[0]["content"], f"{prompts.RATING_PREFILL}{score}", 2.0)])
