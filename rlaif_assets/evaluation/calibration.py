"""How well predicted preferences agree with labels: reliability bins, calibration error, Brier score, cross-entropy."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions of similar confidence: their mean confidence in the predicted side, its mean label, and how many."""

    confidence: float
    agreement: float
    count: int


def reliability(predicted: np.ndarray, labels: np.ndarray, bins: int = 10) -> list[ReliabilityBin]:
    """Non-empty equal bins of the confidence (0.5 to 1) in the predicted side; swapping A and B changes nothing.

    `predicted` [n] and `labels` [n] are probabilities that response A is the better one. Raises ValueError on unequal
    length, on no rows, and outside [0, 1].
    """
    if len(predicted) != len(labels) or len(predicted) == 0:
        raise ValueError(f"{len(predicted)} predictions and {len(labels)} labels: give one of each per pair")
    for name, values in (("predicted", predicted), ("labels", labels)):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name}: probabilities between 0 and 1 are needed")
    confidence = np.maximum(predicted, 1 - predicted)
    agreement = np.where(predicted >= 0.5, labels, 1 - labels)
    index = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    members = [index == i for i in range(bins)]
    return [
        ReliabilityBin(float(confidence[m].mean()), float(agreement[m].mean()), int(m.sum()))
        for m in members
        if m.any()
    ]


def ece(predicted: np.ndarray, labels: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: mean over rows of |confidence - agreement| of their bin."""
    found = reliability(predicted, labels, bins)
    return sum(abs(b.confidence - b.agreement) * b.count for b in found) / len(predicted)


def brier(predicted: np.ndarray, labels: np.ndarray) -> float:
    return float(((predicted - labels) ** 2).mean())


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean soft cross-entropy of sigma(logits) in nats; finite also where sigma rounds to 0 or 1."""
    return float((labels * np.logaddexp(0, -logits) + (1 - labels) * np.logaddexp(0, logits)).mean())
