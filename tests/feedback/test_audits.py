"""Every audit passes on a sound preference set and fails on the defect that it is there for."""

from dataclasses import replace

import pytest

from rlaif_assets.feedback.audits import audit
from rlaif_assets.feedback.labels import make_labels
from rlaif_assets.records import Judgement, Label
from rlaif_assets.settings import AuditsSettings
from tests.feedback.fakes import make_judgements

SETTINGS = AuditsSettings(min_pairs=10, min_mass=0.5, max_flip_rate=0.4)
SOUND = [(0.9, 0.7), (0.2, 0.3), (0.6, 0.9), (0.1, 0.4)] * 5
NAMES = ["enough_pairs", "letter_mass", "position_flip_rate", "both_orders", "labels_vary", "verdict_reaches_label"]


def failed(labels: list[Label], judgements: list[Judgement], settings: AuditsSettings = SETTINGS) -> list[str]:
    return [verdict["audit"] for verdict in audit(labels, judgements, settings) if not verdict["passed"]]


def test_a_sound_set_passes():
    judgements = make_judgements(SOUND, mass=0.8)
    verdicts = audit(make_labels(judgements), judgements, SETTINGS)
    assert [verdict["audit"] for verdict in verdicts] == NAMES
    assert all(set(verdict) == {"audit", "passed", "value", "threshold", "note"} for verdict in verdicts)
    assert all(verdict["passed"] is True for verdict in verdicts)
    values = {verdict["audit"]: verdict["value"] for verdict in verdicts}
    assert values["enough_pairs"] == 20 and values["letter_mass"] == pytest.approx(0.8)
    assert values["position_flip_rate"] == 0 and values["verdict_reaches_label"] < 1e-12


def test_too_few_pairs():
    judgements = make_judgements(SOUND[:9])
    assert failed(make_labels(judgements), judgements) == ["enough_pairs"]
    twice = make_labels(judgements) * 2
    assert "enough_pairs" in failed(twice, judgements)  # a label repeated is no second pair


def test_a_judge_that_does_not_answer_with_a_letter():
    judgements = make_judgements(SOUND, mass=0.3)
    assert failed(make_labels(judgements), judgements) == ["letter_mass"]


def test_a_judge_that_looks_at_the_position_alone():
    judgements = make_judgements([(0.9, 0.1 + 0.001 * i) for i in range(20)])
    assert failed(make_labels(judgements), judgements) == ["position_flip_rate", "labels_vary"]


def test_ties_that_flip_do_not_condemn_a_judge_that_is_sure_of_the_others():
    """15 of 20 labels flip, all near 0.5: as many sure ones would fail."""
    ties = [(0.55, 0.46)] * 15
    judgements = make_judgements([*ties, *SOUND[:5]])
    verdicts = {verdict["audit"]: verdict for verdict in audit(make_labels(judgements), judgements, SETTINGS)}
    certainty = 15 * (0.10 + 0.08) / 2, (0.8 + 0.4) / 2 + (0.6 + 0.4) / 2 + (0.2 + 0.8) / 2 + (0.8 + 0.2) / 2 + 0.6
    assert verdicts["position_flip_rate"]["value"] == pytest.approx(certainty[0] / sum(certainty))
    assert verdicts["position_flip_rate"]["passed"] and verdicts["position_flip_rate"]["note"].startswith("15 of 20")
    sure = make_judgements([(0.95, 0.06)] * 15 + SOUND[:5])
    assert "position_flip_rate" in failed(make_labels(sure), sure)


def test_constant_labels():
    judgements = make_judgements([(0.7, 0.7)] * 20)
    assert failed(make_labels(judgements), judgements) == ["labels_vary"]


def test_a_missing_order():
    judgements = make_judgements(SOUND)[:-1]
    assert failed(make_labels(judgements), judgements) == ["both_orders"]


def test_a_verdict_that_never_reaches_the_label():
    """As in open-instruct: the un-shuffle test cannot be true, so the first response is always the chosen one."""
    judgements = make_judgements(SOUND)
    ignored = [replace(label, p_a=0.9 + 0.001 * i) for i, label in enumerate(make_labels(judgements))]
    assert "verdict_reaches_label" in failed(ignored, judgements)


def test_an_order_that_is_not_undone():
    judgements = make_judgements(SOUND)
    wrong = [row if row.order == "ab" else replace(row, p_a=1 - row.p_a) for row in judgements]
    assert "verdict_reaches_label" in failed(make_labels(wrong), wrong)


@pytest.mark.parametrize(
    "change", [{"p_a": float("nan")}, {"judgement_ids": ("absent",)}, {"judgement_ids": ()}, {"pair_id": "x"}]
)
def test_one_bad_label_among_good_ones(change: dict):
    judgements = make_judgements(SOUND)
    labels = make_labels(judgements)
    bad = [replace(labels[0], **change), *labels[1:]]
    verdict = audit(bad, judgements, SETTINGS)[-1]
    assert not verdict["passed"] and verdict["value"] == 1.0
    assert verdict["note"] == f"1 labels differ, first {labels[0].label_id}"


def test_an_empty_set_fails_everything():
    assert failed([], []) == NAMES


def test_other_averages_and_single_orders_pass_where_they_are_what_was_asked():
    judgements = make_judgements(SOUND)
    labels = make_labels(judgements, "log_odds")
    assert all(row["passed"] for row in audit(labels, judgements, SETTINGS, "log_odds"))
    assert failed(labels, judgements) == ["verdict_reaches_label"]
    one_each = judgements[::2]
    single = make_labels(one_each, orders="single")
    assert failed(single, one_each) == ["position_flip_rate"]  # nothing to measure it on
    assert "both_orders" in failed(make_labels(judgements, orders="single"), judgements)


def test_labels_under_several_principles_need_both_orders_of_each():
    judgements = make_judgements(SOUND)
    more = [replace(row, judgement_id=f"j1-{row.judgement_id}", principle_id="j1") for row in judgements]
    assert failed(make_labels([*judgements, *more]), [*judgements, *more]) == []
    assert failed(make_labels([*judgements, *more[1:]]), [*judgements, *more[1:]]) == ["both_orders"]


def test_peoples_labels_are_not_asked_what_the_judge_is():
    judgements = make_judgements(SOUND)
    labels = make_labels(judgements)
    human = [replace(label, source="human", p_a=1 - label.p_a, orders=None, flipped=None) for label in labels[:3]]
    assert failed([*human, *labels[3:]], judgements) == []
