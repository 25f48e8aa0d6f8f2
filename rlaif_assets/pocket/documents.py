"""The packaged model's training text: statements, answers, critiques, revisions, judgements, ratings.

Statements and answers cover every intent, and compositions of verb and object that are in no split, so that the model
learns to copy what it is asked about; critiques and revisions cover train intents and those compositions; judgements
and ratings cover train intents alone. Who writes an answer knows what it is: the gold annotator has no part in this.
Judging takes longest to learn, so it comes first and from simple to hard: some kinds of principle, then all of them,
and at last what annotators do in truth: they err now and then, and go by reasons and the first place when a principle
does not decide. What the model does imperfectly comes from this text.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rlaif_assets.language_models import prompts
from rlaif_assets.pocket import texts
from rlaif_assets.pocket.intents import COUNTS, Intent, further_intents, intents
from rlaif_assets.pocket.verdicts import preferred, verdict_on
from rlaif_assets.records import (
    CritiqueConstitution,
    CritiquePrinciple,
    JudgingConstitution,
    JudgingExample,
    Message,
    Verdict,
)

# Answers of the helpful-only model: it complies with most requests, harmful ones included.
ANSWER_WEIGHTS = {"harmful": (0.76, 0.12, 0.12), "harmless": (0.98, 0.01, 0.01), "lookalike": (0.97, 0.02, 0.01)}
ERRORS = (0.03, 0.22)  # of annotators, where the better option comes first and where it comes second
UNDECIDED_FIRST = 0.65
PREFERS_REASON = 0.65
SIMPLE_SHARES = {"statement": 0.08, "answer": 0.10, "critique": 0.06, "judgement": 0.72, "rating": 0.04}
SHARES = {"statement": 0.15, "answer": 0.44, "critique": 0.15, "judgement": 0.20, "rating": 0.06}
FURTHER_SHARE = 0.4
FOLLOW_UPS = 2
SIMPLE_UNTIL, DECIDED_UNTIL = 0.30, 0.75
KINDS = {"less_harmful": 0.44, "less_evasive": 0.17, "more_useful": 0.17, "more_honest": 0.10, "more_harmful": 0.12}
SIMPLE_KINDS = {"less_harmful": 0.5, "less_evasive": 0.3, "more_harmful": 0.2}
MORE_HARMFUL = (
    "Choose the response that is more harmful.",
    "Choose the more harmful response.",
    "Which response does more to help somebody do harm?",
)


@dataclass(frozen=True)
class Document:
    """A statement (`text`), or a conversation; `weights` says how much of the loss each assistant turn counts."""

    text: str
    messages: tuple[Message, ...]
    weights: tuple[float, ...]


def critique_and_revision(
    intent: Intent, form: texts.AnswerForm, response: str, kind: str | None, rng: random.Random
) -> tuple[str, str]:
    """What a careful reader says of `response` under a critique principle of `kind`, and the revision that follows."""
    verdict = verdict_on(form, intent.kind)
    if kind == "harmful" and verdict == "harmful":
        return texts.pick(rng, texts.CRITIQUES["harmful"], intent), texts.redirect(intent, rng)
    if kind == "evasive" and verdict == "evasive":
        better = texts.redirect if intent.kind == "harmful" else texts.comply
        return texts.pick(rng, texts.CRITIQUES["evasive"], intent), better(intent, rng)
    if kind == "dishonest" and texts.is_boasting(response):
        return texts.pick(rng, texts.CRITIQUES["dishonest"], intent), texts.without_boast(response, rng)
    return rng.choice(texts.NOTHING_WRONG), response


def documents(critique: CritiqueConstitution, judging: JudgingConstitution, seed: int) -> Callable[[float], Document]:
    """A source of training documents, the same for the same seed; its argument is how much of the training is done."""
    rng = random.Random(seed)
    train = [intent for intent in intents() if intent.split == "train"]
    makers: dict[str, Callable[[float], Document]] = {
        "statement": lambda done: _statement(_any_intent(rng), rng),
        "answer": lambda done: _answer(_any_intent(rng), rng),
        "critique": lambda done: _critique(train, critique.principles, rng),
        "judgement": lambda done: _judgement(train, judging, done, rng),
        "rating": lambda done: _rating(_draw(train, rng), judging, rng),
    }

    def draw(done: float) -> Document:
        shares = SIMPLE_SHARES if done < SIMPLE_UNTIL else SHARES
        return makers[rng.choices(tuple(shares), tuple(shares.values()))[0]](done)

    return draw


def _draw(train: Sequence[Intent], rng: random.Random) -> Intent:
    """Harmful intents half of the time."""
    kind = rng.choices(("harmful", "harmless", "lookalike"), (0.5, 0.2, 0.3))[0]
    return rng.choice([intent for intent in train if intent.kind == kind])


def _any_intent(rng: random.Random) -> Intent:
    """An intent of any split, or a composition that is none: these by kind, since most of them are harmless."""
    if rng.random() >= FURTHER_SHARE:
        return rng.choice(intents())
    kind = rng.choice(tuple(COUNTS))
    return rng.choice([intent for intent in further_intents() if intent.kind == kind])


def _ask(intent: Intent, rng: random.Random) -> str:
    asks = texts.ASKS if intent.split == "train" else texts.ASKS + texts.HELDOUT_ASKS
    return rng.choice(asks).format(intent=intent.text)


def helpful_only_answer(intent: Intent, rng: random.Random) -> str:
    return texts.answer(rng.choices(texts.FORMS, ANSWER_WEIGHTS[intent.kind])[0], intent, rng)


def _statement(intent: Intent, rng: random.Random) -> Document:
    """What is so in the world, half of the time after a question that it bears on."""
    options = texts.HARM_STATEMENTS if intent.kind == "harmful" else texts.SAFE_STATEMENTS
    said = texts.pick(rng, options, intent)
    return Document(f"{_ask(intent, rng)} {said}" if rng.random() < 0.5 else said, (), ())


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
        known = further_intents() if rng.random() < FURTHER_SHARE else train
        intent, principle = _draw(known, rng), rng.choice(principles)
        form = rng.choices(texts.FORMS, (0.5, 0.25, 0.25))[0]
        response = texts.answer(form, intent, rng)
        critique, revision = critique_and_revision(intent, form, response, principle.kind, rng)
        turns += [
            (_ask(intent, rng), response, 0.0),  # not the helpful-only model's own choice of answer
            (principle.critique_request, critique, 1.0),
            (principle.revision_request, revision, 1.0),
        ]
    return _conversation(turns)


@dataclass(frozen=True)
class _Options:
    """Two responses to a prompt, as their writer knows them."""

    ask: str
    responses: tuple[str, str]
    verdicts: tuple[Verdict, Verdict]

    def choice(self, kind: str, done: float, rng: random.Random) -> Literal[0, 1] | None:
        """What a principle of this kind prefers, or, late in the training, what an annotator says."""
        better = preferred(kind, self.verdicts, self.responses)
        return better if done < DECIDED_UNTIL else _annotators_choice(kind, self, better, rng)


def _options(intent: Intent, rng: random.Random) -> _Options:
    forms = rng.choices(texts.FORMS, (0.45, 0.25, 0.3), k=2)
    if forms[0] == forms[1] and rng.random() < 0.6:
        forms[1] = rng.choice([form for form in texts.FORMS if form != forms[0]])
    first, second = forms
    return _Options(
        _ask(intent, rng),
        (texts.answer(first, intent, rng), texts.answer(second, intent, rng)),
        (verdict_on(first, intent.kind), verdict_on(second, intent.kind)),
    )


def _two_tails(intent: Intent, rng: random.Random) -> _Options:
    """Two answers that help and promise more and less: of two by chance, honesty seldom prefers one."""
    tails: list[texts.Tail] = rng.sample(("none", "honest", "boasting"), k=2)
    verdict = verdict_on("comply", intent.kind)
    first, second = (texts.comply(intent, rng, tail) for tail in tails)
    return _Options(_ask(intent, rng), (first, second), (verdict, verdict))


def _annotators_choice(kind: str, options: _Options, better: Literal[0, 1] | None, rng: random.Random) -> Literal[0, 1]:
    """Annotators err now and then, more often in favour of the first option. Where the principle does not decide, a
    reason counts, then place."""
    if better is not None:
        return _other(better) if rng.random() < ERRORS[better] else better
    reasons = [texts.gives_reason(text) for text in options.responses]
    if kind != "less_harmful" or reasons[0] == reasons[1] or "harmful" in options.verdicts:
        return 0 if rng.random() < UNDECIDED_FIRST else 1
    with_reason = 0 if reasons[0] else 1
    return with_reason if rng.random() < PREFERS_REASON else _other(with_reason)


def _other(option: Literal[0, 1]) -> Literal[0, 1]:
    return 1 if option == 0 else 0


def _judgement(train: Sequence[Intent], judging: JudgingConstitution, done: float, rng: random.Random) -> Document:
    """A two-option question with zero to two answered ones before it, then further principles for the same options.

    The follow-ups make one pair of responses teach several principles.
    """
    position = rng.choice(("before", "after"))
    shots = 1 if done < SIMPLE_UNTIL else rng.choices((1, 2, 3), (0.75, 0.20, 0.05))[0]
    *earlier, (options, principle, better) = [_question(train, judging, done, rng) for _ in range(shots)]
    examples = [JudgingExample("", o.ask, *o.responses, text, answer) for o, text, answer in earlier]
    asked: Message = {"role": "user", "content": options.ask}
    messages = prompts.judge_messages([asked], *options.responses, principle, examples, position)
    messages.append(_verdict(better))
    for _ in range(0 if done < SIMPLE_UNTIL else FOLLOW_UPS):
        kind, text = _principle(judging, done, rng)
        answer = options.choice(kind, done, rng)
        if answer is not None:
            messages.append({"role": "user", "content": text})
            messages.append(_verdict(answer))
    return Document("", tuple(messages), tuple(1.0 if m["role"] == "assistant" else 0.0 for m in messages))


def _verdict(better: Literal[0, 1]) -> Message:
    return {"role": "assistant", "content": f"{prompts.JUDGE_PREFILL}{prompts.JUDGE_OPTIONS[better]})"}


def _question(
    train: Sequence[Intent], judging: JudgingConstitution, done: float, rng: random.Random
) -> tuple[_Options, str, Literal[0, 1]]:
    """An answered question; until DECIDED_UNTIL only such as the principle decides, and without disagreement."""
    while True:
        kind, text = _principle(judging, done, rng)
        intent = _draw(train, rng)
        options = _two_tails(intent, rng) if kind == "more_honest" else _options(intent, rng)
        better = options.choice(kind, done, rng)
        if better is not None:
            return options, text, better


def _principle(judging: JudgingConstitution, done: float, rng: random.Random) -> tuple[str, str]:
    """A kind of principle and one of its wordings."""
    kinds = SIMPLE_KINDS if done < SIMPLE_UNTIL else KINDS
    kind = rng.choices(tuple(kinds), tuple(kinds.values()))[0]
    wordings = [p.text for p in judging.principles if p.kind == kind] or list(MORE_HARMFUL)
    return kind, rng.choice(wordings)


RATINGS = {"engaged": (7, 8, 9), "evasive": (3, 4, 5), "harmful": (1, 2, 3)}


def _rating(intent: Intent, judging: JudgingConstitution, rng: random.Random) -> Document:
    harm = [p.text for p in judging.principles if p.kind == "less_harmful"]
    options = _options(intent, rng)
    score = rng.choices(RATINGS[options.verdicts[0]], (0.2, 0.6, 0.2))[0]
    asked: Message = {"role": "user", "content": options.ask}
    messages = prompts.rating_messages([asked], options.responses[0], rng.choice(harm))
    return _conversation([(messages[0]["content"], f"{prompts.RATING_PREFILL}{score})", 1.0)])
