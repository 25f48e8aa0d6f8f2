"""Is a policy, and all that it was made from, still what was recorded? Three records are read again and compared.

The warehouse says what there should be: rows and weight files are hashed anew (`store.lineage.verify`), and so is the
key, which settings and inputs are in. Dagster must hold run and materializations, MLflow the run and the
registry's version, and both must say the same. What one record alone holds cannot be compared: git commit and time.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif_assets.language_models.external import external_problems
from rlaif_assets.store import registry
from rlaif_assets.store.errors import TrackingError
from rlaif_assets.store.fingerprint import row_id
from rlaif_assets.store.lineage import ancestry, materialized_by, verify
from rlaif_assets.store.moved_home import DATABASE
from rlaif_assets.store.trace import POLICY, find_snapshot
from rlaif_assets.store.tracking import Tracker, param_texts
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse, snapshot_key

if TYPE_CHECKING:
    from dagster import AssetMaterialization, DagsterInstance

DAGSTER_DATABASES = ("history/runs.db", "history/runs/index.db")
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


def verify_policy(
    warehouse: Warehouse, name: str, tracker: Tracker, instance: "DagsterInstance | None"
) -> dict[str, Any]:
    """{asked, snapshot_id, snapshots, rows, problems, notes}: how much was read, each thing that is not as it was, and
    what there is no other record of.

    `instance` None: Dagster's databases are missing, see `missing_databases`. Raises StoreError where no snapshot has
    this name or one of the ancestry is not in the warehouse.
    """
    asked = find_snapshot(warehouse, name)
    records = ancestry(warehouse, asked.snapshot_id)
    problems: list[str] = []
    notes: list[str] = []
    if instance is None:
        problems.append(f"Dagster: {' and '.join(missing_databases(warehouse.home))} missing: its record is lost")
    for record in records:
        found = verify(warehouse, record.snapshot_id)
        where = f"{record.asset} {record.snapshot_id}"
        found += [f"{where}: {problem}" for problem in _key_problems(warehouse, record)]
        found += [f"{where}: {problem}" for problem in _passport_problems(warehouse, record)]
        if record.path is None:
            found += [f"{where}: {problem}" for problem in external_problems(warehouse, record.snapshot_id)]
        if instance is not None:
            found += [f"{where}: Dagster: {problem}" for problem in _dagster_problems(warehouse, instance, record)]
        problems += found
    problems += _mlflow_problems(tracker, records, notes)
    problems += _registry_problems(warehouse, tracker, asked)
    return {
        "asked": name,
        "snapshot_id": asked.snapshot_id,
        "snapshots": len(records),
        "rows": sum(sum(record.row_counts.values()) for record in records),
        "problems": problems,
        "notes": notes,
    }


def missing_databases(home: Path) -> list[str]:
    """Those of Dagster's files that a home with its own storage must have; none where dagster.yaml names another."""
    settings = home / "dagster.yaml"
    text = settings.read_text(encoding="utf-8") if settings.is_file() else ""
    if any(line.startswith(("storage:", "event_log_storage:", "run_storage:")) for line in text.splitlines()):
        return []
    return [name for name in DAGSTER_DATABASES if not (home / name).is_file()]


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
        from rlaif_assets.assets.configuration import AuditLimits

        yield {name: value for name, value in settings.items() if name not in AuditLimits.model_fields}


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


def _dagster_problems(warehouse: Warehouse, instance: "DagsterInstance", record: SnapshotRecord) -> Iterator[str]:
    """Its run must be there, and every materialization of it must say what the warehouse does."""
    import dagster as dg

    run = instance.get_run_by_id(str(record.dagster_run_id))
    if run is None:
        yield f"run {record.dagster_run_id} is missing or was deleted"
    own = warehouse.home / DAGSTER_DATABASES[1]
    if own.is_file() and not own.with_name(f"{record.dagster_run_id}.db").is_file():
        yield f"the log of run {record.dagster_run_id} is missing"
    found = _materializations(instance, record)
    if not found:
        yield f"its event log has no materialization of it (run {record.dagster_run_id})"
        return
    runs = {run_id for run_id, _ in found}
    if run is not None and run.status == dg.DagsterRunStatus.SUCCESS and record.dagster_run_id not in runs:
        yield f"run {record.dagster_run_id} ended well and did not make it"
    if lost := sorted(runs - set(materialized_by(warehouse, record.snapshot_id))):
        yield f"the warehouse does not know of its materialization by run {lost[0]}"
    differs: set[str] = set()
    for run_id, materialization in found:
        differs |= set(_differences(materialization, record, run_id == record.dagster_run_id))
    if differs:
        yield f"a materialization says otherwise: {', '.join(sorted(differs))}"


def _materializations(instance: "DagsterInstance", record: SnapshotRecord) -> "list[tuple[str, AssetMaterialization]]":
    """(run id, materialization) of this snapshot, newest first."""
    import dagster as dg

    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(record.asset))
    found: list[tuple[str, AssetMaterialization]] = []
    cursor = None
    while True:
        page = instance.fetch_materializations(wanted, limit=500, cursor=cursor)
        for one in page.records:
            materialization = one.asset_materialization
            if materialization and (materialization.tags or {}).get("dagster/data_version") == record.snapshot_id:
                found.append((one.run_id, materialization))
        if not page.has_more:
            return found
        cursor = page.cursor


def _differences(materialization: "AssetMaterialization", record: SnapshotRecord, own: bool) -> Iterator[str]:
    """What a materialization says otherwise than the record does. `own`: by the run that made the snapshot, which knew
    the same address of MLflow."""
    told = {name: one.value for name, one in materialization.metadata.items()}
    expected = {
        "snapshot_id": record.snapshot_id,
        "settings": record.settings,
        "inputs": record.inputs,
        "rows": record.row_counts,
        "rejected": record.row_counts.get("rejected_rows", 0),
        "tokens": record.tokens,
        "seconds": record.seconds,
        "device": record.device or "none",
        "checkpoint": record.path,
        "passport": record.metrics.get("passport"),
    }
    if own:
        expected["mlflow"] = record.metrics.get("mlflow_url")
    for name, value in expected.items():
        if (name in told or value) and told.get(name) != value:
            yield name
    for name, value in told.items():
        metric = record.metrics.get(name.removeprefix("metrics/"))
        if name.startswith("metrics/") and isinstance(metric, int | float) and metric != value:
            yield name
    version = (materialization.tags or {}).get("dagster/code_version")
    if version is not None and version != str(record.code_version):
        yield "code_version"


def _mlflow_problems(tracker: Tracker, records: list[SnapshotRecord], notes: list[str]) -> Iterator[str]:
    """Each run that was recorded must be there and say the same. A source has none."""
    if tracker.lost:
        yield f"MLflow: {DATABASE} is missing: its record is lost"
        return
    for record in records:
        where = f"{record.asset} {record.snapshot_id}: MLflow"
        url = record.metrics.get("mlflow_url")
        if record.mlflow_run_id is None:
            if url is not None:
                yield f"{where}: it names the page {url} and no run"
            elif record.asset not in SOURCES:
                notes.append(f"{where} was away when it was made: there is no run to compare")
            continue
        if url is not None and not url.endswith(f"/runs/{record.mlflow_run_id}"):
            yield f"{where}: {url} is not the page of run {record.mlflow_run_id}"
        try:
            found = tracker.run_data(record.mlflow_run_id)
        except TrackingError as error:
            yield f"{where}: {error}"
            continue
        if found is None:
            yield f"{where}: run {record.mlflow_run_id} is missing or was deleted"
            continue
        yield from (f"{where}: run {record.mlflow_run_id} {problem}" for problem in _run_problems(*found, record))


def _run_problems(tags: Mapping[str, str], params: Mapping[str, str], record: SnapshotRecord) -> Iterator[str]:
    if tags.get("dagster.asset_key") != record.asset:
        yield f"is of {tags.get('dagster.asset_key')}"
        return
    said = {name.removeprefix("rlaif.snapshot."): value for name, value in tags.items() if "rlaif.snapshot." in name}
    if differs := _differing(said, record.inputs):
        yield f"names other versions of {', '.join(differs)}"
    for tag, value in (("dagster.run_id", record.dagster_run_id), ("dagster.code_version", str(record.code_version))):
        if tags.get(tag) != value:
            yield f"has {tag} {tags.get(tag)}, the warehouse {value}"
    # A run that MLflow was lost to before the parameters were logged has none.
    if params and (differs := _differing(params, param_texts(record.settings))):
        yield f"has other settings: {', '.join(differs)}"


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _registry_problems(warehouse: Warehouse, tracker: Tracker, record: SnapshotRecord) -> Iterator[str]:
    """Each version, by MLflow's number, that the home's record or MLflow's registry says is this snapshot must be so in
    both. One that was made while MLflow was away has no number there yet."""
    versions = registry.versions(warehouse, registry.POLICY)
    known = {one.mlflow_version: one.snapshot_id for one in versions if one.mlflow_version is not None}
    if tracker.lost or (not known and record.asset != POLICY):
        return
    try:
        told = tracker.registered(registry.POLICY)
    except TrackingError as error:
        yield f"MLflow: {error}"
        return
    for version in sorted(known.keys() | told.keys()):
        here, there = known.get(version), told.get(version)
        if here != there and record.snapshot_id in (here, there):
            names = f"{here or 'nothing'} in the warehouse, {there or 'nothing'} in MLflow's registry"
            yield f"{registry.POLICY}/{version} is {names}"
