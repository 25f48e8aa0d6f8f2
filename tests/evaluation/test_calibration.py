import math

import numpy as np
import pytest

from rlaif_assets.evaluation.calibration import brier, ece, nll, reliability


def test_values_worked_out_by_hand():
    predicted, labels = np.array([0.9, 0.9, 0.2]), np.array([1.0, 0.0, 0.0])
    # Bin of 0.9: confidence 0.9, agreement 0.5, two rows; bin of 0.8: confidence 0.8, agreement 1, one row.
    assert ece(predicted, labels) == pytest.approx((2 * 0.4 + 0.2) / 3)
    assert brier(predicted, labels) == pytest.approx((0.01 + 0.81 + 0.04) / 3)
    logits = np.log(predicted / (1 - predicted))
    assert nll(logits, labels) == pytest.approx(-(math.log(0.9) + math.log(0.1) + math.log(0.8)) / 3)


def test_swapping_the_responses_changes_nothing():
    rng = np.random.default_rng(0)
    predicted, labels = rng.random(100), rng.random(100)
    assert ece(predicted, labels) == pytest.approx(ece(1 - predicted, 1 - labels))


def test_soft_labels_equal_to_the_predictions_are_calibrated():
    predicted = np.linspace(0.01, 0.99, 50)
    assert ece(predicted, predicted) == pytest.approx(0)
    assert sum(found.count for found in reliability(predicted, predicted)) == 50


def test_a_certain_prediction_that_is_wrong_has_a_finite_cost():
    assert nll(np.array([800.0]), np.array([0.0])) == pytest.approx(800)


@pytest.mark.parametrize(("predicted", "labels"), [([], []), ([0.5], []), ([1.2], [0.5]), ([0.5], [float("nan")])])
def test_bad_rows_are_refused(predicted: list[float], labels: list[float]):
    with pytest.raises(ValueError, match=r"prob|pair"):
        reliability(np.array(predicted), np.array(labels))
