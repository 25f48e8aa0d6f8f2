"""Labels and their metrics, by hand."""

import dataclasses
import math
import random
from collections.abc import Sequence
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif_assets.feedback.labels import Gold, label_metrics, make_labels
from rlaif_assets.records import Judgement, Label
from tests.feedback.fakes import make_judgements

Row = tuple[float, float, Literal[0, 1] | None]
Table = Sequence[Row]
probability = st.floats(0, 1)


def test_a_label_is_the_mean_of_both_orders():
    label = make_labels(make_judgements([(0.9, 0.6)]))[0]
    assert label.p_a == pytest.approx(0.75)
    assert (label.flipped, label.source, label.annotator) == (False, "ai", "judge")
    assert label.judgement_ids == ("pair-0-ab", "pair-0-ba")


@pytest.mark.parametrize(
    ("ab", "ba", "flipped"),
    [(0.9, 0.6, False), (0.1, 0.4, False), (0.9, 0.4, True), (0.4, 0.9, True), (0.5, 0.9, None), (0.9, 0.5, None)],
)
def test_flipped(ab: float, ba: float, flipped: bool | None):
    assert make_labels(make_judgements([(ab, ba)]))[0].flipped is flipped


def test_several_principles_make_one_label_that_names_none():
    rows = make_judgements([(0.9, 0.6)])
    more = [dataclasses.replace(row, judgement_id=f"j1-{row.order}", principle_id="j1", p_a=0.2) for row in rows]
    (label,) = make_labels([*rows, *more])
    assert (label.p_a, label.principle_id, label.orders) == (pytest.approx(0.475), None, "both")
    assert label.flipped is True  # 0.55 in order ab, 0.4 in order ba
    assert set(label.judgement_ids) == {"pair-0-ab", "pair-0-ba", "j1-ab", "j1-ba"}


def test_log_odds_are_averaged_where_it_is_asked():
    rows = make_judgements([(0.9, 0.6)], mass=0.7)
    (label,) = make_labels(rows, "log_odds")
    odds = math.sqrt(9 * 1.5)
    assert label.p_a == pytest.approx(odds / (1 + odds))
    assert label.label_id != make_labels(rows)[0].label_id
    (certain,) = make_labels([dataclasses.replace(rows[0], logprob_first=0.0, logprob_second=-1e4)], "log_odds")
    assert certain.p_a == 1.0


def test_single_orders_are_marked_and_tell_no_flip():
    rows = make_judgements([(0.9, 0.2)])
    more = [dataclasses.replace(rows[1], judgement_id="other", principle_id="j1")]
    (label,) = make_labels([rows[0], *more], orders="single")
    assert (label.orders, label.flipped) == ("single", None)


def test_one_order_alone_gives_a_label_that_says_so():
    label = make_labels(make_judgements([(0.9, 0.1)])[:1])[0]
    assert (label.p_a, label.flipped, label.judgement_ids) == (0.9, None, ("pair-0-ab",))


@given(st.lists(st.tuples(probability, probability), max_size=12), st.randoms(use_true_random=False))
def test_labels_average_and_do_not_depend_on_row_order(values: list[tuple[float, float]], shuffler: random.Random):
    judgements = make_judgements(values)
    labels = make_labels(judgements)
    assert len(labels) == len(values)
    for label, (ab, ba) in zip(labels, values, strict=True):
        assert label.p_a == pytest.approx((ab + ba) / 2)
        assert min(ab, ba) - 1e-12 <= label.p_a <= max(ab, ba) + 1e-12
    shuffled = list(judgements)
    shuffler.shuffle(shuffled)
    assert {label.label_id: label for label in make_labels(shuffled)} == {label.label_id: label for label in labels}


def test_several_judgements_in_one_order_and_several_judges_are_errors():
    rows = make_judgements([(0.9, 0.6)])
    with pytest.raises(ValueError, match="pair-0: several judgements in one order"):
        make_labels([*rows, rows[0]])
    other = make_judgements([(0.9, 0.6)], judge="other")
    with pytest.raises(ValueError, match="pair-0: its judgements come from different judges"):
        make_labels([rows[0], other[1]])


#             ab    ba    label  gold
TABLE: Table = [
    (0.90, 0.80, 0),  # 0.85: right, right, right
    (0.90, 0.40, 0),  # 0.65: right, right, wrong; flipped
    (0.30, 0.60, 1),  # 0.45: right, right, wrong; flipped
    (0.30, 0.40, 0),  # 0.35: wrong three times
    (0.70, 0.30, 1),  # 0.50: half, wrong, right; flipped
    (0.99, 0.99, None),  # undecided; saturated
    (0.01, 0.30, None),  # undecided; saturated in one order
    (0.20, 0.10, 1),  # 0.15: right three times
]


def gold_of(table: Table) -> Gold:
    return lambda label: table[int(label.pair_id.removeprefix("pair-"))][2]


def measure(table: Table, **options: Any) -> dict[str, Any]:
    judgements = make_judgements([(ab, ba) for ab, ba, _ in table])
    return label_metrics(make_labels(judgements), judgements, gold_of(table), **options)


def test_metrics_by_hand():
    metrics = measure(TABLE)
    assert metrics["pairs"] == 6
    assert metrics["accuracy"] == pytest.approx(4.5 / 6)
    assert metrics["accuracy_first_order"] == pytest.approx(4 / 6)
    assert metrics["accuracy_second_order"] == pytest.approx(3 / 6)
    assert metrics["position_flip_rate"] == pytest.approx(3 / 8)
    assert metrics["saturated_share"] == pytest.approx(1 / 8)
    assert metrics["saturated_share_one_order"] == pytest.approx(3 / 16)
    low, high = metrics["interval"]
    assert low < 4.5 / 6 < high


def test_the_interval_covers_what_a_binomial_would():
    right: Row = (0.9, 0.9, 0)
    wrong: Row = (0.9, 0.9, 1)
    table = [*[right] * 800, *[wrong] * 200]
    low, high = measure(table, bootstrap=20_000)["interval"]
    assert low == pytest.approx(0.775, abs=0.0021) and high == pytest.approx(0.824, abs=0.0021)  # 90% begins at 0.779
    assert measure(table, seed=4) == measure(table, seed=4)


def test_the_interval_draws_whole_units():
    # Two units of 50 equal pairs each: drawing pairs would give a narrow interval, drawing units gives 0 to 1.
    judgements = make_judgements([(0.9, 0.9)] * 100)

    def number(label: Label) -> int:
        return int(label.pair_id.removeprefix("pair-"))

    metrics = label_metrics(
        make_labels(judgements),
        judgements,
        lambda label: 1 if number(label) % 2 else 0,
        lambda label: str(number(label) % 2),
    )
    assert metrics["accuracy"] == 0.5 and metrics["interval"] == [0.0, 1.0]


def test_certain_labels_have_no_spread_and_no_labels_have_no_value():
    assert measure([(0.9, 0.9, 0) for _ in range(5)])["interval"] == [1.0, 1.0]
    empty = label_metrics([], [], lambda label: None)
    assert empty.pop("pairs") == 0 and set(empty.values()) == {None}


def test_without_gold_the_position_is_measured_still():
    metrics = measure([(ab, ba, None) for ab, ba, _ in TABLE])
    assert metrics["accuracy"] is None and metrics["interval"] is None and metrics["pairs"] == 0
    assert metrics["position_flip_rate"] == pytest.approx(3 / 8)


@given(st.permutations(range(len(TABLE))))
def test_metrics_do_not_depend_on_row_order(order: list[int]):
    judgements = make_judgements([(ab, ba) for ab, ba, _ in TABLE])
    labels = make_labels(judgements)
    shuffled: list[Label] = [labels[i] for i in order]
    rows: list[Judgement] = judgements[::-1]
    assert label_metrics(shuffled, rows, gold_of(TABLE)) == label_metrics(labels, judgements, gold_of(TABLE))
