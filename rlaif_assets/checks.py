"""Checks on the assets: the blocking gate before training, and warnings. What is audited belongs to `feedback.audits`.

A blocking check stops its own run alone; `reward_model` refuses failed audits in any later run too (`Stage`).
"""

import dagster as dg

from rlaif_assets.assets.configuration import AuditsCheckConfig
from rlaif_assets.assets.recording import user_errors
from rlaif_assets.feedback.limits import ADVICE, failed_audits, under_limits
from rlaif_assets.resources import Storage


@dg.asset_check(asset="harmlessness_preferences", blocking=True)
def audits(context: dg.AssetCheckExecutionContext, config: AuditsCheckConfig, storage: Storage) -> dg.AssetCheckResult:
    """All audits of the current preference set passed. With audits.enforce=false a failure is a warning."""
    with user_errors():
        warehouse = storage.warehouse()
        snapshot = warehouse.current("harmlessness_preferences")
        verdicts = under_limits(warehouse.rows("verdicts", snapshot.snapshot_id) if snapshot else [], config.audits())
    failed = failed_audits(verdicts)
    told = f"{failed}. {ADVICE}" if failed and config.audits_enforce else failed
    return dg.AssetCheckResult(
        passed=bool(verdicts) and not failed,
        severity=dg.AssetCheckSeverity.ERROR if config.audits_enforce else dg.AssetCheckSeverity.WARN,
        description=told or ("passed" if verdicts else "never audited"),
        metadata={
            "snapshot_id": snapshot.snapshot_id if snapshot else "none",
            "verdicts": dg.MetadataValue.json(verdicts),
        },
    )


@dg.asset_check(asset="reward_model")
def agrees_with_labels(storage: Storage) -> dg.AssetCheckResult:
    """A warning where the reward model is no better than chance on the held-out comparisons of a source."""
    with user_errors():
        snapshot = storage.warehouse().current("reward_model")
    heldout = snapshot.metrics.get("heldout", {}) if snapshot else {}
    accuracy = {source: found["accuracy"] for source, found in heldout.items() if found["accuracy"] is not None}
    return dg.AssetCheckResult(
        passed=bool(accuracy) and min(accuracy.values()) > 0.5,
        severity=dg.AssetCheckSeverity.WARN,
        description="held-out accuracy by source" if accuracy else "no held-out comparison to measure on",
        metadata={f"accuracy/{source}": value for source, value in accuracy.items()},
    )
