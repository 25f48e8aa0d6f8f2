"""Labels against what people said about the same pairs, beside what a ruler would say. Limits belong to `limits`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlaif_assets.evaluation.calibration import brier, ece, reliability
from rlaif_assets.evaluation.rates import ratio_interval
from rlaif_assets.records import AuditProbe, Pair

BOOTSTRAP = 2000


def agreement_metrics(probes: Sequence[AuditProbe], pairs: Mapping[str, Pair]) -> dict[str, Any]:
    """How well the probes' labels (`other`) agree with people (`p_a`); `pairs` by id hold the texts.

    pairs: how many have a label; decided: those about which people were not at 0.5, on which the shares are read;
    prompts: of how many prompts those are.
    agreement, shorter, longer: share of decided pairs on which the label, "the shorter text wins" and "the longer text
    wins" choose the people's response; an exact tie counts half. interval: 95% of agreement. margin, margin_interval:
    agreement less that of the better length rule, pair by pair. Intervals are bootstraps that draw whole prompts.
    ece, brier, reliability: calibration of all labels (see `evaluation.calibration`).
    Values are None where there is no row. Labels that are not finite are left out.
    """
    rows = [probe for probe in probes if math.isfinite(probe.other)]
    decided = [probe for probe in rows if probe.p_a != 0.5]
    people = np.array([probe.p_a for probe in decided])
    labels = np.array([probe.other for probe in decided])
    texts = [pairs[probe.pair_id] for probe in decided]
    longer = np.array([np.sign(len(pair.response_a) - len(pair.response_b)) for pair in texts])
    hits = _hits(labels - 0.5, people)
    rules = {"shorter": _hits(-longer, people), "longer": _hits(longer, people)}
    best = max(rules.values(), key=lambda found: float(found.sum()))
    prompts = [pair.prompt_id for pair in texts]
    found: dict[str, Any] = {
        "pairs": len(rows),
        "decided": len(decided),
        "prompts": len(set(prompts)),
        "agreement": _mean(hits),
        "interval": _interval(prompts, hits),
        **{name: _mean(values) for name, values in rules.items()},
        "margin": _mean(hits - best),
        "margin_interval": _interval(prompts, hits - best),
        "ece": None,
        "brier": None,
        "reliability": [],
    }
    if rows:
        predicted, said = (np.array([getattr(probe, name) for probe in rows]) for name in ("other", "p_a"))
        bins = reliability(predicted, said)
        found |= {
            "ece": float(ece(predicted, said)),
            "brier": brier(predicted, said),
            "reliability": [[one.confidence, one.agreement, one.count] for one in bins],
        }
    return found


def _hits(chosen: np.ndarray, people: np.ndarray) -> np.ndarray:
    """[n] 1 where the sign chooses the people's response (positive: A), 0 where it does not, 0.5 where it is 0."""
    return 0.5 + 0.5 * np.sign(chosen) * np.sign(people - 0.5)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _interval(clusters: Sequence[str], values: np.ndarray) -> list[float] | None:
    found = ratio_interval(clusters, list(values), [1.0] * len(values), BOOTSTRAP, 0) if len(values) else None
    return list(found) if found else None
