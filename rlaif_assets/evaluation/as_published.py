"""Is a snapshot as it was published, by the warehouse alone? Rows, weights, key, and the judge's passport."""

from collections.abc import Iterator
from typing import Any

from rlaif_assets.settings import AuditsSettings
from rlaif_assets.store.errors import DamagedError
from rlaif_assets.store.fingerprint import row_id
from rlaif_assets.store.lineage import verify
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse, snapshot_key

SOURCES = frozenset(  # the assets without an MLflow run
    {
        "critique_constitution",
        "judging_constitution",
        "red_team_prompts",
        "helpful_prompts",
        "helpfulness_preferences",
        "community_votes",
        "human_verdicts",
    }
)
# Of the audits' settings, those that a result depends on; the others only say what passes.
MEASURED = frozenset({"probe_pairs", "reference", "reference_pairs", "enforce"})
LIMITS = frozenset(f"audits_{name}" for name in AuditsSettings.model_fields if name not in MEASURED)


def record_problems(warehouse: Warehouse, record: SnapshotRecord) -> list[str]:
    """What is not as it was published, each with asset and id: see `store.lineage.verify`; a key that does not follow
    from what is in it; a passport that is not the verdicts'. Rows that cannot even be read are a problem, not an error.
    """
    where = f"{record.asset} {record.snapshot_id}"
    try:
        found = verify(warehouse, record.snapshot_id)
        found += [f"{where}: {problem}" for problem in _key_problems(warehouse, record)]
        found += [f"{where}: {problem}" for problem in _passport_problems(warehouse, record)]
    except (DamagedError, AttributeError, LookupError, TypeError, ValueError) as error:
        return [f"{where}: its record is damaged and cannot be read: {error}"]
    return found


def _key_problems(warehouse: Warehouse, record: SnapshotRecord) -> Iterator[str]:
    """The key is computed anew from asset, inputs, settings and code version, where what decides the result is still
    there: not that of a reward function, nor of a file of people's labels."""
    identities = list(_identities(warehouse, record))
    keys = [snapshot_key(record.asset, record.inputs, one, record.code_version) for one in identities]
    if keys and record.key not in keys:
        yield "its key does not follow from its inputs, settings and code version"


def _identities(warehouse: Warehouse, record: SnapshotRecord) -> Iterator[dict[str, Any]]:
    """What may have decided the result, as each stage's `identity` says."""
    settings = record.settings
    if record.asset in SOURCES:
        refused = warehouse.rows("rejected_rows", record.snapshot_id)
        if not any("\\" in row["text"] for row in refused):  # else it may be what could not be stored as it was
            told = {name: value for name, value in settings.items() if name != "path"}
            yield told | {"refused": [[row["reason"], row["text"]] for row in refused]}
    elif record.asset in ("base_model", "feedback_model"):
        for row in warehouse.rows("external_models", record.snapshot_id):
            yield {"fingerprint": row["fingerprint"]}
            yield {"source": row["source"], "revision": row["revision"]}
            yield {name: value for name, value in settings.items() if name != "revision"} | {"source": row["source"]}
    elif settings.get("audits_reference") is None and "." not in settings.get("reward", ""):
        yield {name: value for name, value in settings.items() if name not in LIMITS}


def _passport_problems(warehouse: Warehouse, record: SnapshotRecord) -> Iterator[str]:
    """The judge's passport is among the metrics, which no hash covers; the verdicts that it repeats are rows."""
    passport = record.metrics.get("passport")
    if not isinstance(passport, dict) or record.asset != "harmlessness_preferences":
        return
    rows = warehouse.rows("verdicts", record.snapshot_id)
    audits = passport.get("audits") or []
    if len(rows) != len(audits) or any({**row, **audit} != row for row, audit in zip(rows, audits, strict=True)):
        yield "the audits in its passport are not its verdicts"
    content = {name: value for name, value in passport.items() if name not in ("passport_id", "date")}
    if row_id("passport", content) != passport.get("passport_id"):
        yield "its passport's id does not follow from what the passport says"
