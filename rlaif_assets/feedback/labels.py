"""Soft labels made from judgements, and how good they are. Gates on them belong to `audits`, gold to the caller."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from rlaif_assets.evaluation.rates import ratio_interval
from rlaif_assets.records import Judgement, Label
from rlaif_assets.store.fingerprint import row_id
from rlaif_assets.store.judgements import judgements_hash

Average = Literal["probability", "log_odds"]
Orders = Literal["both", "single"]
Gold = Callable[[Label], Literal[0, 1] | None]
SATURATED = 0.02


def make_labels(
    judgements: Sequence[Judgement], average: Average = "probability", orders: Orders = "both"
) -> list[Label]:
    """One label per pair, of all its judgements: the mean of `p_a` (Lee et al. 2309.00267, 4.1), or of the log-odds.

    `orders`: as they were asked, marked on each label.

    Labels come in the order of their pairs' first judgements; neither id nor value depends on the rows' order.
    `flipped` is None where an order is missing or chose neither response. Raises ValueError for two judgements of one
    pair and principle in one order, or by different judges.
    """
    groups: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        groups.setdefault(judgement.pair_id, []).append(judgement)
    return [_label(group, average, orders) for group in groups.values()]


def _label(judgements: list[Judgement], average: Average, orders: Orders) -> Label:
    rows = sorted(judgements, key=lambda row: (row.principle_id, row.order))
    pair_id, judge = rows[0].pair_id, rows[0].judge
    principles = {row.principle_id for row in rows}
    if len({(row.principle_id, row.order) for row in rows}) != len(rows):
        raise ValueError(f"pair {pair_id}: several judgements in one order under one principle")
    if any(row.judge != judge for row in rows):
        raise ValueError(f"pair {pair_id}: its judgements come from different judges; label each judge's rows apart")
    ids = tuple(row.judgement_id for row in rows)
    principle_id = rows[0].principle_id if len(principles) == 1 else None
    return Label(
        label_id=row_id("label", pair_id, principle_id, ids, *([average] if average != "probability" else [])),
        pair_id=pair_id,
        principle_id=principle_id,
        p_a=average_p_a(rows, average),
        judgement_ids=ids,
        flipped=_flipped(rows) if orders == "both" else None,
        source="ai",
        annotator=judge,
        orders=orders,
        judgements_hash=judgements_hash(rows),
    )


def average_p_a(judgements: Sequence[Judgement], average: Average) -> float:
    """The probability that response A is better, in [0, 1]. Raises ZeroDivisionError where there is no judgement."""
    if average == "probability":
        return math.fsum(row.p_a for row in judgements) / len(judgements)
    for_a = [(row.logprob_first - row.logprob_second) * (1 if row.order == "ab" else -1) for row in judgements]
    return (1 + math.tanh(math.fsum(for_a) / len(for_a) / 2)) / 2


def _flipped(rows: Sequence[Judgement]) -> bool | None:
    """Each order's choice is that of its judgements' mean."""
    ab, ba = (_mean([row.p_a for row in rows if row.order == order]) for order in ("ab", "ba"))
    if ab is None or ba is None or 0.5 in (ab, ba):
        return None
    return (ab > 0.5) != (ba > 0.5)


def label_metrics(
    labels: Sequence[Label],
    judgements: Sequence[Judgement],
    gold: Gold,
    unit: Callable[[Label], str] = lambda label: label.pair_id,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Agreement of labels with `gold` (0: response A is better, 1: B, None: undecided, left out of accuracies).

    accuracy, accuracy_first_order, accuracy_second_order: share of decisive pairs whose label, or whose judgement in
    order "ab" or "ba", chooses gold's response; an exact 0.5 counts half.
    interval: [low, high], 95%, bootstrap of `accuracy` over the units (the intents) of the decisive pairs, since pairs
    of one unit go together. pairs: how many decisive pairs there are.
    position_flip_rate: share of all labels, decisive or not, whose two orders choose different responses.
    saturated_share: share of labels with `p_a` within 0.02 of 0 or 1; saturated_share_one_order: of their judgements.
    A value is None where no row gives one. Raises KeyError for a label whose judgement is not among `judgements`.
    """
    by_id = {judgement.judgement_id: judgement for judgement in judgements}
    used = [by_id[judgement_id] for label in labels for judgement_id in label.judgement_ids]
    hits: dict[str, list[float]] = {"label": [], "ab": [], "ba": []}
    units: list[str] = []
    for label in labels:
        better = gold(label)
        if better is None:
            continue
        units.append(unit(label))
        hits["label"].append(_hit(label.p_a, better))
        for judgement_id in label.judgement_ids:
            hits[by_id[judgement_id].order].append(_hit(by_id[judgement_id].p_a, better))
    flips = [label.flipped for label in labels if label.flipped is not None]
    return {
        "accuracy": _mean(hits["label"]),
        "accuracy_first_order": _mean(hits["ab"]),
        "accuracy_second_order": _mean(hits["ba"]),
        "position_flip_rate": _mean(flips),
        "pairs": len(hits["label"]),
        "interval": _interval(units, hits["label"], bootstrap, seed),
        "saturated_share": _mean([_saturated(label.p_a) for label in labels]),
        "saturated_share_one_order": _mean([_saturated(judgement.p_a) for judgement in used]),
    }


def _hit(p_a: float, better: Literal[0, 1]) -> float:
    if p_a == 0.5:
        return 0.5
    return float((p_a > 0.5) == (better == 0))


def _saturated(p_a: float) -> bool:
    return min(p_a, 1 - p_a) <= SATURATED


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _interval(units: Sequence[str], hits: Sequence[float], bootstrap: int, seed: int) -> list[float] | None:
    found = ratio_interval(units, hits, [1.0] * len(hits), bootstrap, seed) if hits else None
    return list(found) if found else None
