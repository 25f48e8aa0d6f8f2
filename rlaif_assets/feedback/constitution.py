"""How a row draws its principle. Reading files belongs to `ingest`, wording to `language_models.prompts`."""

from collections.abc import Sequence
from typing import TypeVar

from rlaif_assets.records import CritiquePrinciple, JudgingPrinciple
from rlaif_assets.store.fingerprint import draw_seeds

P = TypeVar("P", CritiquePrinciple, JudgingPrinciple)


def draw_principle(principles: Sequence[P], row_id: str, seed: int, purpose: str, round: int = 0) -> P:
    """One principle, uniform and independent for every row, purpose and round (Constitutional AI 3.1, 4.1).

    See `draw_principles`.
    """
    return draw_principles(principles, row_id, seed, purpose, 1, round)[0]


def draw_principles(
    principles: Sequence[P], row_id: str, seed: int, purpose: str, count: int, round: int = 0
) -> list[P]:
    """`count` different principles, or all where there are not more.

    Every principle's name gets a number from the row's hash and the largest win (rendezvous hashing). So the order of
    the file does not matter, a reworded principle keeps its rows, an added one takes only the rows that it wins, a
    removed one leaves only its own, and those of a smaller count are among those of a larger. Raises ValueError where
    there is no principle.
    """
    if not principles:
        raise ValueError("the constitution holds no principle to draw from: add at least one")

    numbers = draw_seeds(row_id, seed, [f"{purpose}:{principle.name}" for principle in principles], round)
    if count == 1:
        return [principles[numbers.index(max(numbers))]]
    ranked = sorted(range(len(principles)), key=numbers.__getitem__, reverse=True)
    return [principles[place] for place in ranked[:count]]
