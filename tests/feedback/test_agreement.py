"""Agreement with people by hand-counted examples."""

import math

import pytest

from rlaif_assets.feedback.agreement import agreement_metrics
from rlaif_assets.records import AuditProbe, Pair

# a's length, b's length, people's p_a, the label's p_a
ROWS = [(1, 3, 1.0, 0.9), (1, 3, 0.0, 0.2), (5, 2, 1.0, 0.3), (2, 2, 0.0, 0.5), (4, 1, 0.5, 0.9)]


def metrics(rows: list[tuple[int, int, float, float]]) -> dict:
    pairs = {f"p{i}": Pair(f"p{i}", f"q{i}", "", "", "x" * row[0], "x" * row[1], 0, 0, 0) for i, row in enumerate(rows)}
    return agreement_metrics([AuditProbe("agreement", f"p{i}", "j", r[2], r[3]) for i, r in enumerate(rows)], pairs)


def test_hits_of_labels_and_of_both_length_rules():
    found = metrics(ROWS)
    assert (found["pairs"], found["decided"]) == (5, 4)
    assert found["agreement"] == (1 + 1 + 0 + 0.5) / 4
    assert found["shorter"] == (1 + 0 + 0 + 0.5) / 4 and found["longer"] == (0 + 1 + 1 + 0.5) / 4
    assert found["margin"] == found["agreement"] - found["longer"] == 0.0
    low, high = found["interval"]
    assert 0 <= low < found["agreement"] < high <= 1
    assert found["brier"] == pytest.approx((0.01 + 0.04 + 0.49 + 0.25 + 0.16) / 5)
    assert sum(one[2] for one in found["reliability"]) == 5


def test_pairs_of_one_prompt_go_together_in_the_interval():
    rows = [AuditProbe("agreement", f"p{i}", "j", 1.0, 0.9 if i < 20 else 0.1) for i in range(40)]
    apart = {f"p{i}": Pair(f"p{i}", f"q{i}", "", "", "x", "yy", 0, 0, 0) for i in range(40)}
    together = {f"p{i}": Pair(f"p{i}", f"q{i // 10}", "", "", "x", "yy", 0, 0, 0) for i in range(40)}
    narrow, wide = (agreement_metrics(rows, pairs)["interval"] for pairs in (apart, together))
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])


def test_nothing_to_compare_gives_nothing():
    empty = metrics([])
    assert empty["pairs"] == 0 and empty["agreement"] is None and empty["interval"] is None and empty["ece"] is None
    assert metrics([(1, 2, 1.0, math.nan)])["pairs"] == 0
    ties = metrics([(1, 2, 0.5, 0.7)])
    assert ties["agreement"] is None and ties["ece"] == pytest.approx(0.2)
