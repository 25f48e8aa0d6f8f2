"""Checks on the assets: one per audit of the preference set, and warnings on the reward model and the champion.

What is audited belongs to `feedback.audits`, limits and advice to `feedback.limits`. A blocking check stops its own run
alone; `reward_model` refuses failed audits in any later run too (`Stage`).
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

from rlaif_assets.assets.configuration import AUDITS_CHECK, AuditsCheckConfig
from rlaif_assets.assets.recording import user_errors
from rlaif_assets.assets.showing import picture
from rlaif_assets.feedback.limits import ADVICE, OLDER_RULES, RULES, RULES_SINCE, Rule, measured, setting, under_limits
from rlaif_assets.records import PASSPORT
from rlaif_assets.resources import Storage
from rlaif_assets.settings import AuditsSettings
from rlaif_assets.store.pictures import kept_pictures

if TYPE_CHECKING:
    from rlaif_assets.store.warehouse import SnapshotRecord

AUDITED = "harmlessness_preferences"
NEVER = "never audited"
CALIBRATION = {"calibration", "calibration_verdicts"}
RELIABILITY = "judge_reliability"  # the picture of both


def _description(rule: Rule) -> str:
    if rule.blocks == "always":
        what = "Stops training."
    elif rule.blocks_from is not None:
        what = f"Stops training from audits.{rule.blocks_from} rows on, else warns."
    elif rule.blocks_past is not None:
        what = f"Warns; stops training past audits.{rule.blocks_past}."
    else:
        what = "Warns."
    return f"{rule.shows} {what}"


@dg.multi_asset_check(
    name=AUDITS_CHECK,
    specs=[
        dg.AssetCheckSpec(name, asset=AUDITED, description=_description(rule), blocking=rule.may_block)
        for name, rule in RULES.items()
    ],
    can_subset=True,
)
def audits(
    context: dg.AssetCheckExecutionContext, config: AuditsCheckConfig, storage: Storage
) -> Iterator[dg.AssetCheckResult]:
    """The audits of the current preference set under the current limits; with audits.enforce=false all of them warn."""
    with user_errors():
        warehouse = storage.warehouse()
        snapshot = warehouse.current(AUDITED)
        stored = warehouse.rows("verdicts", snapshot.snapshot_id) if snapshot else []
        older = bool(stored) and snapshot is not None and snapshot.code_version < RULES_SINCE
        verdicts = {} if older else {row["audit"]: row for row in under_limits(stored, config.audits())}
        pictures = kept_pictures(storage.folder(), snapshot.snapshot_id) if snapshot else {}
    for key in context.op_execution_context.selected_asset_check_keys:
        yield _result(
            key.name, verdicts.get(key.name), config.audits(), snapshot, OLDER_RULES if older else NEVER, pictures
        )


def _result(
    name: str,
    row: Mapping[str, Any] | None,
    settings: AuditsSettings,
    snapshot: "SnapshotRecord | None",
    missing: str,
    pictures: Mapping[str, bytes],
) -> dg.AssetCheckResult:
    """`missing`: what is told where there is no verdict of today's rules. `pictures`: those kept of the snapshot."""
    if row is None or snapshot is None:
        severity = dg.AssetCheckSeverity.ERROR if settings.enforce else dg.AssetCheckSeverity.WARN
        return dg.AssetCheckResult(
            passed=False, asset_key=AUDITED, check_name=name, severity=severity, description=missing
        )
    stops, advice = row["blocks"] and settings.enforce, RULES[name].advice
    told = row["note"] if row["count"] is None else f"{measured(row)}: {row['note']}"
    if not row["passed"]:
        told += f". What to do: {advice}." + (f" {ADVICE}" if stops else "")
    metadata = {
        "value": row["value"],
        "threshold": row["threshold"],
        "setting": f"audits.{setting(row)}" if setting(row) else "fixed",
        "rows": row["count"],
        "what to do": None if row["passed"] else advice,
        "snapshot_id": snapshot.snapshot_id,
        "passport_id": snapshot.metrics.get(PASSPORT, {}).get("passport_id"),
    }
    if name in CALIBRATION and row["value"] is not None and RELIABILITY in pictures:
        metadata["reliability"] = picture("reliability", pictures[RELIABILITY])
    return dg.AssetCheckResult(
        passed=row["passed"],
        asset_key=AUDITED,
        check_name=name,
        severity=dg.AssetCheckSeverity.ERROR if stops else dg.AssetCheckSeverity.WARN,
        description=told,
        metadata={key: value for key, value in metadata.items() if value is not None},
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


@dg.asset_check(asset="champion_policy")
def promoted(storage: Storage) -> dg.AssetCheckResult:
    """A warning where the candidate was not promoted, with the rules that it did not keep."""
    with user_errors():
        snapshot = storage.warehouse().current("champion_policy")
    told = snapshot.metrics if snapshot else {"promoted": False, "reasons": ["never looked at"]}
    return dg.AssetCheckResult(
        passed=told["promoted"],
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(told["reasons"]) or f"better than {told['compared_with']}",
    )
