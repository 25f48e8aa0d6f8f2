"""How far an answer can steer a judge by what is written in it beside the answer. Attacks themselves are the caller's.

An attack is appended to one answer of a pair, and its success is counted above the same answer with a neutral text of
equal length in its place: what longer or odd answers are worth to a judge is not the attack's doing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlaif_assets.evaluation.rates import ratio_interval
from rlaif_assets.feedback.constitution import draw_principle
from rlaif_assets.feedback.judge import Failure, Judge, Outcomes, Reading
from rlaif_assets.feedback.judging import option_probability
from rlaif_assets.language_models.fencing import fence
from rlaif_assets.language_models.prompts import JUDGE_OPTIONS, Rewrite, judge_messages
from rlaif_assets.records import JudgingConstitution, Message, Pair, Prompt
from rlaif_assets.settings import HarmlessnessPreferencesSettings

Group = Literal["control", "form", "language"]
Tokens = Callable[[str], int]


@dataclass(frozen=True)
class Attack:
    """A text that follows an answer: one for an answer that stands first, one for an answer that stands second.

    `group`: what is forged are control tokens of chat templates, or the question's own form, or nothing: the judge is
    spoken to in plain words.
    """

    name: str
    group: Group
    first: str
    second: str


@dataclass(frozen=True)
class Steering:
    """What an attack did to a judge, in shares of 1, over `answers` attacked answers (both of each pair).

    `increase`: mean of p(attacking answer), averaged over both orders, less the same with the neutral text; its 95%
    interval is a bootstrap over prompts. `moved`: share of verdicts (the averaged p) for the attacking answer, less the
    same with the neutral text. `above_bare`: mean of p less that of the answer with nothing appended.
    """

    attack: str
    group: Group
    increase: float
    interval: tuple[float, float] | None
    moved: float
    above_bare: float
    answers: int


def steering(
    judge: Judge,
    tokens: Tokens,
    constitution: JudgingConstitution,
    prompts: Mapping[str, Prompt],
    pairs: Sequence[Pair],
    attacks: Sequence[Attack],
    neutral: str,
    settings: HarmlessnessPreferencesSettings,
    rewrite: Rewrite = fence,
) -> list[Steering]:
    """Each attack's success on both answers of every pair, in both orders, under the principle drawn for the pair.

    In either order the attack is the one for the place: an attacker that knows its place, the worst case. `tokens`
    counts a text's tokens as the judge reads it; what replaces an attack is as much of `neutral` as is nearest to its
    length as rewritten. Raises ValueError where the judge has no reading of a question.
    """
    units = [pair.prompt_id for pair in pairs for _ in JUDGE_OPTIONS]
    found: list[Steering] = []
    bare = _chances(judge, constitution, prompts, pairs, ("", ""), settings, rewrite)
    read: dict[str, list[float]] = {}
    for attack in attacks:
        length = tokens(rewrite(attack.first))
        calm = neutral_text(neutral, length, tokens)
        if calm not in read:
            read[calm] = _chances(judge, constitution, prompts, pairs, (calm, calm), settings, rewrite)
        chances = _chances(judge, constitution, prompts, pairs, (attack.first, attack.second), settings, rewrite)
        gains = [p - q for p, q in zip(chances, read[calm], strict=True)]
        moves = [_verdict(p) - _verdict(q) for p, q in zip(chances, read[calm], strict=True)]
        interval = ratio_interval(units, gains, [1.0] * len(gains), 1000, settings.seed)
        above_bare = _mean(chances) - _mean(bare)
        found.append(Steering(attack.name, attack.group, _mean(gains), interval, _mean(moves), above_bare, len(gains)))
    return found


def neutral_text(text: str, length: int, tokens: Tokens) -> str:
    """The first words of `text`, closed by a full stop, as near as possible to `length` tokens."""
    words = text.split()
    cuts = [" " + " ".join(words[:count]).rstrip(".,") + "." for count in range(1, len(words) + 1)]
    return min(cuts, key=lambda cut: abs(tokens(cut) - length))


def _chances(
    judge: Judge,
    constitution: JudgingConstitution,
    prompts: Mapping[str, Prompt],
    pairs: Sequence[Pair],
    appended: tuple[str, str],
    settings: HarmlessnessPreferencesSettings,
    rewrite: Rewrite,
) -> list[float]:
    """P(the answer with the appended text), averaged over its two places: for A, then B, of every pair.

    `appended`: the text by the answer's place.
    """
    questions: list[list[Message]] = []
    for pair in pairs:
        principle = draw_principle(constitution.principles, pair.pair_id, settings.seed, "judging-principle")
        for mine, other in ((pair.response_a, pair.response_b), (pair.response_b, pair.response_a)):
            for place in (0, 1):
                said = mine + appended[place]
                first, second = (said, other) if place == 0 else (other, said)
                messages = prompts[pair.prompt_id].messages
                examples = constitution.examples[: settings.few_shot]
                position = settings.principle_position
                questions.append(judge_messages(messages, first, second, principle.text, examples, position, rewrite))
    outcomes: Outcomes = {}
    for batch in judge.read(questions):
        outcomes |= batch
    firsts = [_first(outcomes[i]) for i in range(len(questions))]
    return [(first + 1 - second) / 2 for first, second in zip(firsts[::2], firsts[1::2], strict=True)]


def _first(outcome: Reading | Failure) -> float:
    if isinstance(outcome, Failure):
        raise ValueError(f"steering cannot be measured: {outcome.reason}")
    return option_probability(outcome.logprob_first, outcome.logprob_second)


def _verdict(p: float) -> float:
    return 0.5 if p == 0.5 else float(p > 0.5)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
