from rlaif_assets.feedback.audits import audit
from rlaif_assets.feedback.labels import make_labels
from rlaif_assets.feedback.limits import failed_audits, under_limits
from rlaif_assets.settings import AuditsSettings
from tests.feedback.fakes import make_judgements


def test_stored_verdicts_under_other_limits_are_those_of_a_new_audit():
    judgements = make_judgements([(0.9, 0.7), (0.2, 0.6), (0.6, 0.9), (0.1, 0.4)] * 5, mass=0.8)
    labels = make_labels(judgements)
    lenient, strict = (
        AuditsSettings(min_pairs=n, min_mass=m, max_flip_rate=f) for n, m, f in ((1, 0, 1), (99, 0.9, 0))
    )
    stored, anew = audit(labels, judgements, lenient), audit(labels, judgements, strict)
    assert under_limits(stored, strict) == anew and under_limits(anew, lenient) == stored
    assert [row["passed"] for row in anew] == [False, False, False, True, True, True]


def test_what_was_not_measured_never_passes():
    lenient = AuditsSettings(min_pairs=0, min_mass=0, max_flip_rate=1)
    assert under_limits(audit([], [], AuditsSettings()), lenient) == audit([], [], lenient)
    assert [row["passed"] for row in audit([], [], lenient)] == [True, *[False] * 5]


def test_a_failure_is_told_with_what_was_measured_and_what_moves_the_limit():
    strict = AuditsSettings(min_pairs=99, min_mass=0.9, max_flip_rate=0)
    judgements = make_judgements([(0.9, 0.7), (0.2, 0.6), (0.6, 0.9), (0.1, 0.4)] * 5, mass=0.8)
    assert failed_audits(audit(make_labels(judgements), judgements, strict)) == (
        "enough_pairs (20, limit 99 by audits.min_pairs), letter_mass (0.8, limit 0.9 by audits.min_mass), "
        "position_flip_rate (0.2, limit 0 by audits.max_flip_rate)"
    )
    assert "both_orders (nothing to measure, limit 1)" in failed_audits(audit([], [], strict))
    assert failed_audits([]) == ""
