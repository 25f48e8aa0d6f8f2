"""Every audit passes on a sound preference set and fails on the defect that it is there for."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from scipy import stats

from rlaif_assets.feedback.audits import Evidence, audit
from rlaif_assets.feedback.labels import Average, make_labels
from rlaif_assets.feedback.limits import RULES
from rlaif_assets.records import AuditProbe, Judgement, Label, Pair
from rlaif_assets.settings import AuditsSettings
from tests.feedback.fakes import make_judgements

SETTINGS = AuditsSettings(min_pairs=10, min_mass=0.5, max_flip_rate=0.4)
SOUND = [(0.9, 0.7), (0.2, 0.3), (0.6, 0.9), (0.1, 0.4)] * 5
COLUMNS = {"audit", "passed", "value", "threshold", "note", "count", "blocks"}


def pair(number: int, a: str = "some text", b: str = "a text") -> Pair:
    return Pair(f"pair-{number}", f"prompt-{number}", "", "", a, b, 0, 0, 0)


PAIRS = [pair(i, "x" * (7 * i % 20), "x" * (3 * i % 20)) for i in range(20)]


def probe(audit: str, p_a: float, other: float, number: int = 0) -> AuditProbe:
    return AuditProbe(audit, f"pair-{number}", "j0", p_a, other)


TURNED = [probe(audit, 0.9, 0.1, i) for audit in ("texts_swap", "counter_principle") for i in range(20)]


def verdicts_of(evidence: Evidence, settings: AuditsSettings = SETTINGS) -> dict[str, dict[str, Any]]:
    return {verdict["audit"]: verdict for verdict in audit(evidence, settings)}


def failed(
    labels: Sequence[Label],
    judgements: Sequence[Judgement],
    settings: AuditsSettings = SETTINGS,
    average: Average = "probability",
) -> list[str]:
    """Names of the failed audits that stop training, of a set whose probes are sound."""
    found = audit(Evidence(labels, judgements, PAIRS, probes=TURNED, has_counter=True, average=average), settings)
    return [verdict["audit"] for verdict in found if verdict["blocks"] and not verdict["passed"]]


def probed(*probes: AuditProbe, settings: AuditsSettings = SETTINGS, **more: Any) -> dict[str, dict[str, Any]]:
    """The verdicts on a sound set of which the judge said this when it was asked again."""
    judgements = make_judgements(SOUND)
    return verdicts_of(Evidence(make_labels(judgements), judgements, PAIRS, probes=probes, **more), settings)


FEW = SETTINGS.model_copy(update={"probe_pairs": 4})


def test_a_sound_set_passes():
    judgements = make_judgements(SOUND, mass=0.8)
    evidence = Evidence(make_labels(judgements), judgements, PAIRS, probes=TURNED, has_counter=True, shared=[])
    verdicts = audit(evidence, SETTINGS)
    assert [verdict["audit"] for verdict in verdicts] == list(RULES)
    assert all(set(verdict) == COLUMNS for verdict in verdicts)
    unasked = next(row for row in verdicts if row["audit"] == "agreement")
    assert [row for row in verdicts if not row["passed"]] == [unasked]
    assert not unasked["blocks"] and "nothing tells a sound judge from an inverted one" in unasked["note"]
    values = {verdict["audit"]: verdict["value"] for verdict in verdicts}
    assert values["enough_pairs"] == 20 and values["letter_mass"] == pytest.approx(0.8)
    assert values["position_flip_rate"] < 0.2 and values["verdict_reaches_label"] < 1e-12
    people = {"agreement", "agreement_verdicts", "calibration", "calibration_verdicts"}
    assert {name for name, value in values.items() if value is None} == {"other_principle", *people}


def test_too_few_pairs():
    judgements = make_judgements(SOUND[:9])
    assert failed(make_labels(judgements), judgements) == ["enough_pairs", "failed_judgements"]
    twice = make_labels(judgements) * 2
    assert "enough_pairs" in failed(twice, judgements)  # a label repeated is no second pair


def test_a_judge_that_does_not_answer_with_a_letter():
    judgements = make_judgements(SOUND, mass=0.3)
    assert failed(make_labels(judgements), judgements) == ["letter_mass"]


def test_a_judge_that_looks_at_the_position_alone():
    judgements = make_judgements([(0.9, 0.1 + 0.001 * i) for i in range(20)])
    assert failed(make_labels(judgements), judgements) == ["position_flip_rate", "labels_vary", "undecided_labels"]


def test_ties_that_flip_do_not_condemn_a_judge_that_is_sure_of_the_others():
    """25 of 45 labels flip, all near 0.5: as many sure ones would fail."""
    ties, pairs = [(0.52, 0.49)] * 25, [pair(i) for i in range(45)]
    judgements = make_judgements([*ties, *SOUND])
    found = verdicts_of(Evidence(make_labels(judgements), judgements, pairs))["position_flip_rate"]
    tie, sure = (0.04 + 0.02) / 2, [(0.8 + 0.4) / 2, (0.6 + 0.4) / 2, (0.2 + 0.8) / 2, (0.8 + 0.2) / 2]
    total, squares = 25 * tie + 5 * sum(sure), 25 * tie**2 + 5 * sum(weight**2 for weight in sure)
    share, rows = 25 * tie / total, total**2 / squares
    assert stats.beta(share * rows + 0.5, (1 - share) * rows + 0.5).cdf(found["value"]) == pytest.approx(0.975)
    assert found["passed"] and found["note"].startswith("25 of 45")
    sure = make_judgements([(0.95, 0.06)] * 15 + SOUND[:5])
    assert "position_flip_rate" in failed(make_labels(sure), sure)


def test_few_flips_of_few_labels_do_not_clear_a_judge():
    """A judge that answers by chance flips 8 of 20 or fewer in a quarter of all cases, 3 or fewer in 0.1%."""
    flip, same = (0.9, 0.1), (0.9, 0.9)
    for flips, passed in ((3, True), (4, False)):
        judgements = make_judgements([flip] * flips + [same] * (20 - flips))
        found = verdicts_of(Evidence(make_labels(judgements), judgements, PAIRS))["position_flip_rate"]
        assert found["passed"] is passed and found["value"] > flips / 20


def test_a_judge_that_chooses_in_one_order_alone_is_not_let_off():
    """An order at exactly 0.5 cannot flip: a judge that answers in 2 of 20 labels would show no flip."""
    for tied, passed in ((10, True), (11, False)):
        judgements = make_judgements([(0.9, 0.5)] * tied + [(0.9, 0.9)] * (20 - tied))
        found = verdicts_of(Evidence(make_labels(judgements), judgements, PAIRS))["position_flip_rate"]
        assert found["passed"] is passed and (found["value"] is None) is not passed
    assert found["note"].endswith("with a choice in both orders flipped; only 9 of 20 have one")


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
    verdict = verdicts_of(Evidence(bad, judgements, PAIRS))["verdict_reaches_label"]
    assert not verdict["passed"] and verdict["value"] == 1.0
    assert verdict["note"] == f"1 labels differ, first {labels[0].label_id}"


def test_an_empty_set_fails_everything_that_can_stop_training():
    found = verdicts_of(Evidence([], [], [], has_counter=True, people={"agreement": {}, "agreement_verdicts": {}}))
    always = {name for name, rule in RULES.items() if rule.blocks == "always"}
    assert {name for name, row in found.items() if row["blocks"]} >= always
    assert {name for name, row in found.items() if row["passed"]} == {"other_principle", "judge_in_ancestry"}


def test_judgements_that_are_not_numbers_fail():
    judgements = [replace(row, logprob_first=float("nan"), p_a=float("nan")) for row in make_judgements(SOUND)]
    found = verdicts_of(Evidence(make_labels(judgements), judgements, PAIRS))
    for name in ("letter_mass", "position_flip_rate", "labels_vary", "verdict_reaches_label"):
        assert not found[name]["passed"] and found[name]["blocks"], name
    assert found["letter_mass"]["value"] is None  # NaN has no place in what is shown


def test_labels_that_do_not_swap_with_the_texts():
    """Certainty: 0.8 + 0.8 that turns, 0.2 + 0.1 that stays."""
    found = probed(probe("texts_swap", 0.9, 0.1), probe("texts_swap", 0.6, 0.55), settings=FEW)["texts_swap"]
    assert found["value"] == pytest.approx(0.3 / 1.9) and not found["passed"] and found["count"] == 2
    constant = probed(*[probe("texts_swap", 0.9, 0.9)] * 5, settings=FEW)["texts_swap"]
    assert constant["value"] == 1 and constant["blocks"] and constant["note"].startswith("5 of 5 labels (100.0% [56.6%")


@pytest.mark.parametrize("audit", ["texts_swap", "counter_principle"])
def test_a_judge_that_answers_few_of_what_an_audit_asks_is_not_let_off(audit: str):
    """20 pairs are labelled, so 20 are asked again, or `probe_pairs` where that is less."""
    sound = [probe(audit, 0.99, 0.01, i) for i in range(10)]
    enough, few = (probed(*rows, has_counter=True)[audit] for rows in (sound, sound[:9]))
    assert enough["passed"] and "20 asked" in enough["note"]
    assert (few["value"], few["passed"], few["blocks"], few["count"]) == (None, False, True, 9)
    dozen = SETTINGS.model_copy(update={"probe_pairs": 12})
    assert probed(*sound[:9], settings=dozen, has_counter=True)[audit]["passed"]
    assert not probed(has_counter=True)[audit]["passed"]


def test_a_judge_that_ignores_the_principle():
    same, turned = probe("counter_principle", 0.9, 0.9), probe("counter_principle", 0.9, 0.2)
    found = probed(*[same] * 4, *[turned] * 36, has_counter=True)
    total, squares = 4 * 1.6 + 36 * 1.4, 4 * 1.6**2 + 36 * 1.4**2
    share, rows = 36 * 1.4 / total, total**2 / squares
    low = found["counter_principle"]["value"]
    assert stats.beta(share * rows + 0.5, (1 - share) * rows + 0.5).cdf(low) == pytest.approx(0.025)
    assert found["counter_principle"]["passed"] and found["counter_principle"]["blocks"]
    assert not probed(*[same] * 6, *[turned] * 14, has_counter=True)["counter_principle"]["passed"]  # 70% of few
    assert probed(*[same] * 60, *[turned] * 140, has_counter=True)["counter_principle"]["passed"]
    assert found["other_principle"]["count"] is None


def test_without_a_declared_opposite_the_principle_only_warns():
    found = probed(probe("other_principle", 0.9, 0.9), probe("other_principle", 0.7, 0.701))
    assert found["other_principle"]["value"] == pytest.approx(0.0005)
    assert not found["other_principle"]["passed"] and not found["other_principle"]["blocks"]
    assert found["counter_principle"]["passed"] and not found["counter_principle"]["blocks"]
    assert probed(probe("other_principle", 0.9, 0.6))["other_principle"]["passed"]


def of_people(right: int, wrong: int, audit: str = "agreement") -> dict[str, dict[str, Any]]:
    """Verdicts where so many labels agree with people; of five pairs in turn the shorter text is right in three."""
    probes = [probe(audit, 1.0, 0.9 if i < right else 0.1, i) for i in range(right + wrong)]
    reference = {f"pair-{i}": pair(i, "xx", "xxx" if i % 5 < 3 else "x") for i in range(right + wrong)}
    return probed(*probes, people={audit: reference})


def test_notes_tell_the_share_by_certainty_and_few_prompts():
    rows = [probe("texts_swap", 0.9, 0.1), probe("texts_swap", 0.6, 0.55)]
    note = probed(*rows, settings=FEW)["texts_swap"]["note"]
    assert "1 of 2 labels" in note and ", 15.8% by certainty, stayed with exchanged texts" in note
    people = {"agreement": {pair(i).pair_id: pair(i) for i in range(2)}}
    found = probed(probe("agreement", 1.0, 0.9, 0), probe("agreement", 1.0, 0.9, 1), people=people)["agreement"]
    assert "prompts, too few for the interval to be trusted" in found["note"]


def test_agreement_with_people_must_beat_the_ruler_and_stops_training_from_200_pairs_on():
    good, poor, few = of_people(180, 40), of_people(120, 100), of_people(20, 100)
    assert good["agreement"]["passed"] and good["agreement"]["blocks"]
    assert "81.8% [" in good["agreement"]["note"] and "the shorter text wins on 60.0%" in good["agreement"]["note"]
    assert 0 < good["agreement"]["value"] < 180 / 220 - 0.6
    assert not poor["agreement"]["passed"] and poor["agreement"]["blocks"]
    assert not few["agreement"]["passed"] and not few["agreement"]["blocks"]
    ruler = [probe("agreement", 1.0, 0.9 if i % 5 < 3 else 0.1, i) for i in range(220)]  # the shorter text, always
    reference = {f"pair-{i}": pair(i, "xx", "xxx" if i % 5 < 3 else "x") for i in range(220)}
    same = probed(*ruler, people={"agreement": reference})["agreement"]
    assert same["value"] == 0.0 and not same["passed"] and same["blocks"]


def test_peoples_verdicts_on_the_homes_own_pairs_are_an_audit_of_their_own():
    """A reference that agrees does not make up for verdicts that contradict."""
    poor = of_people(20, 200, "agreement_verdicts")
    assert poor["agreement"]["count"] is None and poor["agreement"]["passed"]
    assert not poor["agreement_verdicts"]["passed"] and poor["agreement_verdicts"]["blocks"]
    assert not poor["calibration_verdicts"]["passed"] and not poor["calibration_verdicts"]["blocks"]
    few = of_people(20, 100, "agreement_verdicts")["agreement_verdicts"]
    assert not few["passed"] and not few["blocks"]
    assert of_people(180, 40, "agreement_verdicts")["agreement_verdicts"]["passed"]
    none = of_people(180, 40)["agreement_verdicts"]
    assert none["passed"] and "no verdict of a person is about a pair of this home" in none["note"]


@pytest.mark.parametrize("audit", ["agreement", "agreement_verdicts"])
def test_a_judge_that_answers_few_of_peoples_pairs_is_not_let_off(audit: str):
    pairs = {f"people-{i}": pair(i, "xx", "xxx") for i in range(250)}
    right = [replace(probe(audit, 1.0, 0.9), pair_id=f"people-{i}") for i in range(15)]
    found = probed(*right, people={audit: pairs})[audit]
    assert (found["value"], found["passed"], found["blocks"], found["count"]) == (None, False, True, 250)


def test_a_judge_that_answers_few_of_the_reference_is_not_let_off():
    reference = {f"people-{i}": pair(i) for i in range(250)}
    found = probed(people={"agreement": reference})
    assert found["failed_judgements"]["value"] == pytest.approx(250 / 270) and found["failed_judgements"]["blocks"]
    assert found["failed_judgements"]["note"] == "0 of 20 pairs, 250 of 250 of the reference"
    assert not found["agreement"]["passed"] and found["agreement"]["blocks"]
    assert found["agreement"]["note"].startswith("250 pairs that people decided, 0 with a label")


def test_calibration_against_people_warns():
    """All at 0.9: right in 180 of 220, so 0.9 - 0.818 off; Brier 0.01 where right, 0.81 where wrong."""
    found = of_people(180, 40)["calibration"]
    assert found["value"] == pytest.approx(0.9 - 180 / 220) and found["passed"]
    assert found["note"] == f"Brier score {(180 * 0.01 + 40 * 0.81) / 220:.3f} of 220 labels"
    assert not of_people(120, 100)["calibration"]["passed"] and not of_people(120, 100)["calibration"]["blocks"]


def test_labels_that_follow_length_warn():
    judgements = make_judgements([(0.05 + 0.045 * i, 0.05 + 0.045 * i) for i in range(20)])
    labels = make_labels(judgements)
    pairs = [pair(i, "x" * (i + 1), "x") for i in range(20)]
    found = verdicts_of(Evidence(labels, judgements, pairs))["length_correlation"]
    assert found["value"] == pytest.approx(1.0) and not found["passed"] and not found["blocks"]
    mixed = verdicts_of(Evidence(labels, judgements, PAIRS))["length_correlation"]
    lengths = [len(one.response_a) - len(one.response_b) for one in PAIRS]
    wanted: Any = stats.spearmanr([label.p_a for label in labels], lengths)
    assert mixed["value"] == pytest.approx(abs(wanted.statistic))
    assert verdicts_of(Evidence(labels[:3], judgements, pairs))["length_correlation"]["value"] is None
    assert (
        verdicts_of(Evidence(labels, judgements, [pair(i) for i in range(20)]))["length_correlation"]["value"] is None
    )


@pytest.mark.parametrize(("undecided", "passed", "blocks"), [(0, True, False), (12, False, False), (19, False, True)])
def test_undecided_labels_warn_and_stop_past_a_limit(undecided: int, passed: bool, blocks: bool):
    judgements = make_judgements([(0.52, 0.47)] * undecided + SOUND[undecided:])
    found = verdicts_of(Evidence(make_labels(judgements), judgements, PAIRS))["undecided_labels"]
    assert (found["value"], found["passed"], found["blocks"]) == (undecided / 20, passed, blocks)
    assert found["threshold"] == (SETTINGS.max_undecided if blocks else SETTINGS.warn_undecided)


def test_refused_draws_and_failed_judgements_are_counted():
    judgements = make_judgements(SOUND[:15])
    found = verdicts_of(Evidence(make_labels(judgements), judgements, PAIRS, refused=10))
    assert found["rejected_pairs"]["value"] == pytest.approx(10 / 30) and not found["rejected_pairs"]["blocks"]
    assert found["failed_judgements"]["value"] == 0.25 and found["failed_judgements"]["blocks"]
    assert not found["rejected_pairs"]["passed"] and not found["failed_judgements"]["passed"]


def test_a_judge_that_the_policy_came_from_must_be_accepted():
    found = probed(shared=["base_model"])["judge_in_ancestry"]
    assert not found["passed"] and not found["blocks"] and found["note"] == "the judge is base_model"
    accepted = SETTINGS.model_copy(update={"accept_shared_ancestry": True})
    assert verdicts_of(Evidence([], [], [], shared=["base_model"]), accepted)["judge_in_ancestry"]["passed"]
    assert probed(shared=[])["judge_in_ancestry"]["passed"]


def test_what_people_said_is_not_held_against_the_judge():
    judgements = make_judgements(SOUND[:19])
    human = Label("h", "pair-19", "j0", 1.0, (), None, "human", "a person")
    assert failed([*make_labels(judgements), human], judgements) == []


def test_a_set_that_people_labelled_alone_is_not_asked_what_a_judge_is():
    human = [Label(f"h{i}", f"pair-{i}", None, 1.0, (), None, "human", "a person") for i in range(20)]
    assert failed(human, []) == []


def test_a_judge_that_made_few_labels_among_peoples_is_not_audited_and_one_that_made_more_is():
    judgements = make_judgements([(0.9, 0.1)] * 20)  # each label is 0.5 and flips
    labels = make_labels(judgements)

    def stopped(by_judge: int, human: int) -> bool:
        people = [
            Label(f"h{i}", f"pair-{by_judge + i}", None, 1.0, (), None, "human", "a person") for i in range(human)
        ]
        return bool(failed([*labels[:by_judge], *people], judgements))

    assert not stopped(1, 50) and not stopped(9, 500)
    assert stopped(1, 10) and stopped(19, 200) and stopped(20, 1000)


def test_other_averages_and_single_orders_pass_where_they_are_what_was_asked():
    judgements = make_judgements(SOUND)
    labels = make_labels(judgements, "log_odds")
    assert failed(labels, judgements, average="log_odds") == []
    assert failed(labels, judgements) == ["verdict_reaches_label"]
    one_each = judgements[::2]
    single = make_labels(one_each, orders="single")
    assert failed(single, one_each) == []
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


@pytest.mark.parametrize(("judged", "asked"), [(2, False), (7, False), (8, True), (20, True)])
def test_a_few_labels_of_the_judge_among_peoples_are_not_audited(judged: int, asked: bool):
    judgements = make_judgements(SOUND)
    labels = make_labels(judgements)
    people = [replace(label, source="human", p_a=1.0, orders=None, flipped=None) for label in labels[judged:]]
    more = [replace(label, label_id=f"h{i}", pair_id=f"other-{i}", source="human") for i, label in enumerate(labels)]
    found = verdicts_of(
        Evidence([*labels[:judged], *people, *more], judgements, PAIRS, probes=TURNED, has_counter=True)
    )
    assert (found["position_flip_rate"]["count"] is not None) is asked
    assert found["position_flip_rate"]["passed"] and found["counter_principle"]["passed"]
