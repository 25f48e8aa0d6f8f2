"""Is a policy, and all that it was made from, still what was recorded? Three records are read again and compared.

The warehouse says what there should be: rows and weight files are hashed anew (`store.lineage.verify`), and so is the
key, which settings and inputs are in. Dagster must hold run and materializations, MLflow the run and the
registry's version, and both must say the same. What one record alone holds cannot be compared: git commit and time.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif_assets.assets.showing import charted
from rlaif_assets.evaluation.as_published import SOURCES, record_problems
from rlaif_assets.language_models.external import external_problems
from rlaif_assets.store import registry
from rlaif_assets.store.errors import TrackingError
from rlaif_assets.store.lineage import ancestry, materialized_by
from rlaif_assets.store.moved_home import DATABASE
from rlaif_assets.store.trace import POLICY, find_snapshot
from rlaif_assets.store.tracking import RunData, Tracker, param_texts
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse

if TYPE_CHECKING:
    from dagster import AssetMaterialization, DagsterInstance

DAGSTER_DATABASES = ("history/runs.db", "history/runs/index.db")


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
        found = record_problems(warehouse, record)
        where = f"{record.asset} {record.snapshot_id}"
        found += [f"{where}: {problem}" for problem in external_problems(warehouse, record)]
        if instance is not None:
            try:
                found += [f"{where}: Dagster: {problem}" for problem in _dagster_problems(warehouse, instance, record)]
            except Exception as error:  # SQLAlchemy's, where its databases are damaged
                problems.append(f"Dagster: its record cannot be read: {str(error).partition(chr(10))[0]}")
                instance = None
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
        yield from (f"{where}: run {record.mlflow_run_id} {problem}" for problem in _run_problems(found, record))


def _run_problems(run: RunData, record: SnapshotRecord) -> Iterator[str]:
    tags, params = run.tags, run.params
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
    if unknown := sorted(run.datasets - set(record.inputs.values())):
        yield f"was told to read {unknown[0]}, which is no input of it"
    if params and record.inputs and not run.datasets:
        yield "names no data set that it read"
    if record.path is None:  # a training's own steps go by the same names
        told = dict(charted(record))
        if differs := sorted(name for name in told.keys() & run.metrics.keys() if told[name] != run.metrics[name]):
            yield f"has other metrics: {', '.join(differs[:5])}{', ...' if len(differs) > 5 else ''}"


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
        aliases = tracker.aliased(registry.POLICY)
    except TrackingError as error:
        yield f"MLflow: {error}"
        return
    for version in sorted(known.keys() | told.keys()):
        here, there = known.get(version), told.get(version)
        if here != there and record.snapshot_id in (here, there):
            names = f"{here or 'nothing'} in the warehouse, {there or 'nothing'} in MLflow's registry"
            yield f"{registry.POLICY}/{version} is {names}"
    for alias in (registry.CHAMPION, registry.CANDIDATE):
        named = registry.named(warehouse, registry.POLICY, alias)
        here, there = named and named.snapshot_id, aliases.get(alias)
        if here != there and record.snapshot_id in (here, there):
            names = f"{here or 'nothing'} in the warehouse, {there or 'nothing'} in MLflow's registry"
            yield f"{registry.POLICY}@{alias} is {names}"
