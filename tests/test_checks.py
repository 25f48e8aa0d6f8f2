"""The verdict of the warning on the reward model, from the metrics that its snapshot holds."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from rlaif_assets import checks
from rlaif_assets.checks import agrees_with_labels
from rlaif_assets.resources import Storage
from rlaif_assets.settings import AuditsSettings
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse


def verdict(home: Path, heldout: dict[str, Any] | None) -> dg.AssetCheckResult:
    if heldout is not None:
        warehouse = Warehouse(home)
        record = SnapshotRecord(asset="reward_model", key="k", metrics={"heldout": heldout})
        warehouse.record_materialization(warehouse.publish(record, {}).snapshot_id, None, reused=False)
    found = agrees_with_labels(storage=Storage(home=str(home)))
    assert isinstance(found, dg.AssetCheckResult) and found.severity == dg.AssetCheckSeverity.WARN
    return found


@pytest.mark.parametrize(
    ("ai", "human", "passed"), [(0.8, 0.6, True), (0.8, 0.5, False), (0.4, 0.9, False), (0.8, None, True)]
)
def test_every_source_with_held_out_comparisons_must_beat_chance(
    tmp_path: Path, ai: float, human: float | None, passed: bool
) -> None:
    found = verdict(tmp_path, {"ai": {"accuracy": ai}, "human": {"accuracy": human}})
    assert found.passed is passed
    values = {name: value.value for name, value in (found.metadata or {}).items()}
    assert values == {f"accuracy/{s}": v for s, v in (("ai", ai), ("human", human)) if v is not None}


@pytest.mark.parametrize("heldout", [None, {}, {"ai": {"accuracy": None}}])
def test_without_a_held_out_comparison_it_does_not_pass(tmp_path: Path, heldout: dict[str, Any] | None) -> None:
    found = verdict(tmp_path, heldout)
    assert not found.passed
    assert found.description == "no held-out comparison to measure on"


@pytest.mark.parametrize("enforce", [True, False])
def test_a_set_that_was_never_audited_fails_and_stops_unless_audits_are_not_enforced(enforce: bool) -> None:
    found = checks._result("letter_mass", None, AuditsSettings(enforce=enforce), None, checks.NEVER, {})
    assert not found.passed and found.description == "never audited"
    assert found.severity == (dg.AssetCheckSeverity.ERROR if enforce else dg.AssetCheckSeverity.WARN)
