import pytest

from rlaif_assets.feedback.audits import Evidence, audit
from rlaif_assets.feedback.labels import make_labels
from rlaif_assets.feedback.limits import RULES, failed_audits, make_verdict, measured, under_limits
from rlaif_assets.settings import AuditsSettings
from tests.feedback.fakes import make_judgements

JUDGEMENTS = make_judgements([(0.9, 0.7), (0.2, 0.6), (0.6, 0.9), (0.1, 0.4)] * 5, mass=0.8)
SET = Evidence(make_labels(JUDGEMENTS), JUDGEMENTS, [], shared=["base_model"])
NOTHING = Evidence([], [], [])
LENIENT = AuditsSettings(min_pairs=1, min_mass=0, max_flip_rate=1, accept_shared_ancestry=True, warn_undecided=1)
STRICT = AuditsSettings(min_pairs=99, min_mass=0.9, max_flip_rate=0, warn_undecided=0, max_undecided=0)


def test_stored_verdicts_under_other_limits_are_those_of_a_new_audit():
    stored, anew = audit(SET, LENIENT), audit(SET, STRICT)
    assert stored != anew
    assert under_limits(stored, STRICT) == anew and under_limits(anew, LENIENT) == stored
    assert [row["passed"] for row in anew[:6]] == [False, False, False, True, True, True]


def test_what_was_not_measured_never_passes():
    assert under_limits(audit(NOTHING, AuditsSettings()), LENIENT) == audit(NOTHING, LENIENT)
    assert [row["passed"] for row in audit(NOTHING, LENIENT)[1:6]] == [False] * 5


def test_an_audit_that_an_older_set_lacks_fails():
    found = under_limits([row for row in audit(SET, LENIENT) if row["audit"] != "texts_swap"], LENIENT)
    missing = next(row for row in found if row["audit"] == "texts_swap")
    assert not missing["passed"] and missing["blocks"] and missing["note"] == "never audited"
    assert under_limits([], LENIENT) == []


def test_a_failure_is_told_with_what_was_measured_and_what_moves_the_limit():
    told = failed_audits(audit(SET, STRICT))
    assert told.startswith(
        "enough_pairs (20, limit 99 by audits.min_pairs), letter_mass (0.8, limit 0.9 by audits.min_mass), "
        "position_flip_rate (0.4"
    )
    assert "both_orders (nothing to measure, limit 1)" in failed_audits(audit(NOTHING, STRICT))
    assert failed_audits([]) == ""


def test_only_audits_that_may_block_are_told_as_failures():
    rows = [make_verdict(name, None, 1, "", STRICT) for name, rule in RULES.items() if not rule.may_block]
    assert len(rows) == 5 and not any(row["passed"] for row in rows)
    assert failed_audits(rows) == ""


@pytest.mark.parametrize(
    ("value", "told", "blocks"),
    [(0.1, "0.1, limit 0.25 by audits.warn_rejected", False), (0.95, "0.95, limit 0.9 by audits.max_rejected", True)],
)
def test_of_two_limits_the_one_that_matters_is_told(value: float, told: str, blocks: bool):
    row = make_verdict("rejected_pairs", value, 20, "", AuditsSettings())
    assert measured(row) == told and row["blocks"] is blocks and row["passed"] is not blocks


def test_every_rule_names_settings_that_exist_and_says_what_to_do():
    for rule in RULES.values():
        for name in (rule.limit, rule.blocks_from, rule.blocks_past):
            assert not isinstance(name, str) or name in AuditsSettings.model_fields
        assert rule.shows.endswith(".") and rule.advice and not rule.advice.endswith(".")
