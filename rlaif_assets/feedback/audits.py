"""Verdicts on a preference set: may a model be trained on it? Enforcing them belongs to the assets and their checks.

Nothing here needs gold: an audit reads labels and judgements alone.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlaif_assets.feedback.judging import ORDERS
from rlaif_assets.feedback.labels import Average
from rlaif_assets.records import Judgement, Label
from rlaif_assets.settings import AuditsSettings

MIN_SPREAD = 0.005
MAX_GAP = 1e-6


def audit(
    labels: Sequence[Label],
    judgements: Sequence[Judgement],
    settings: AuditsSettings,
    average: Average = "probability",
) -> list[dict[str, Any]]:
    """One row {audit, passed, value, threshold, note} per audit; `value` is None where no row gives one (a failure).

    enough_pairs: number of labelled pairs, at least `min_pairs`.
    letter_mass: mean probability that a judge puts on the two letters together, at least `min_mass`.
    position_flip_rate: share of labels whose two orders choose different responses, each label weighted by how sure its
    judgements are, at most `max_flip_rate`. Ties flip in any judge; one that looks at the position alone has 1, one
    that answers by chance 0.5.
    both_orders: share of labels with exactly the orders that they say (one judgement in each, for every principle; or
    one of the two), 1.
    labels_vary: standard deviation of `p_a` over labels, at least MIN_SPREAD: constant labels teach nothing.
    verdict_reaches_label: largest |label's p_a - average of its judgements|, each computed anew from the letters'
    log-probabilities and the order, at most MAX_GAP. A label that ignores the judge or undoes the order wrongly fails.
    Labels by people count as labelled pairs and for how labels vary; nothing else is asked of them.
    """
    by_judge = [label for label in labels if label.source == "ai"]
    by_id = {judgement.judgement_id: judgement for judgement in judgements}
    masses = [math.exp(row.logprob_first) + math.exp(row.logprob_second) for row in judgements]
    complete = [_has_its_orders(label, by_id) for label in by_judge]
    gaps = [_gap(label, by_id, average) for label in by_judge]
    return [
        _at_least("enough_pairs", len({label.pair_id for label in labels}), settings.min_pairs, "labelled pairs"),
        _at_least("letter_mass", _mean(masses), settings.min_mass, f"mean over {len(masses)} judgements"),
        _at_most("position_flip_rate", *_sure_flips(by_judge, by_id, settings.max_flip_rate)),
        _at_least("both_orders", _mean(complete), 1.0, f"of {len(complete)} labels"),
        _at_least(
            "labels_vary",
            float(np.std([label.p_a for label in labels])) if labels else None,
            MIN_SPREAD,
            "standard deviation of p_a over labels",
        ),
        _at_most("verdict_reaches_label", max(gaps, default=None), MAX_GAP, _worst(by_judge, gaps)),
    ]


def _sure_flips(labels: Sequence[Label], by_id: dict[str, Judgement], limit: float) -> tuple[float | None, float, str]:
    """Value, threshold and note of `position_flip_rate`."""
    sure = {label.label_id: _certainty(label, by_id) for label in labels if label.flipped is not None}
    flipped = math.fsum(sure[label.label_id] for label in labels if label.flipped)
    count = sum(bool(label.flipped) for label in labels)
    note = f"{count} of {len(sure)} labels with a choice, weighted by certainty"
    return (flipped / math.fsum(sure.values()) if any(sure.values()) else None), limit, note


def _certainty(label: Label, by_id: dict[str, Judgement]) -> float:
    """Mean |2 p - 1| of its judgements."""
    rows = [by_id[i] for i in label.judgement_ids if i in by_id]
    return math.fsum(abs(math.tanh((r.logprob_first - r.logprob_second) / 2)) for r in rows) / max(len(rows), 1)


def _has_its_orders(label: Label, by_id: dict[str, Judgement]) -> bool:
    rows = [by_id[i] for i in label.judgement_ids if i in by_id]
    wanted = list(ORDERS) if label.orders != "single" else None
    orders = [
        sorted(row.order for row in rows if row.principle_id == one) for one in {row.principle_id for row in rows}
    ]
    return bool(orders) and all(found == wanted if wanted else len(found) == 1 for found in orders)


def _gap(label: Label, by_id: dict[str, Judgement], average: Average) -> float:
    """1, the largest there can be, where a judgement is missing or of another pair or principle."""
    rows = [by_id[i] for i in label.judgement_ids if i in by_id]
    if not rows or len(rows) < len(label.judgement_ids) or not 0 <= label.p_a <= 1:
        return 1.0
    if any(row.pair_id != label.pair_id or label.principle_id not in (None, row.principle_id) for row in rows):
        return 1.0
    for_a = [(1 if row.order == "ab" else -1) * (row.logprob_first - row.logprob_second) for row in rows]
    if average == "log_odds":
        return abs(label.p_a - (1 + math.tanh(math.fsum(for_a) / len(rows) / 2)) / 2)
    return abs(label.p_a - math.fsum((1 + math.tanh(margin / 2)) / 2 for margin in for_a) / len(rows))


def _worst(labels: Sequence[Label], gaps: Sequence[float]) -> str:
    failing = [label for label, gap in zip(labels, gaps, strict=True) if gap > MAX_GAP]
    return f"{len(failing)} labels differ, first {failing[0].label_id}" if failing else f"of {len(labels)} labels"


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _at_least(audit: str, value: float | None, threshold: float, note: str) -> dict[str, Any]:
    passed = value is not None and value >= threshold
    return {"audit": audit, "passed": passed, "value": value, "threshold": threshold, "note": note}


def _at_most(audit: str, value: float | None, threshold: float, note: str) -> dict[str, Any]:
    passed = value is not None and value <= threshold
    return {"audit": audit, "passed": passed, "value": value, "threshold": threshold, "note": note}
