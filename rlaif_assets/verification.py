"""Is a policy, and all that it was made from, still what was recorded? Three records are read again and compared.

The warehouse says what there should be: rows and weight files are hashed anew (`store.lineage.verify`). Dagster's event
log must hold the materializations, MLflow the runs, with the same versions in them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif_assets.store.errors import StoreError, TrackingError
from rlaif_assets.store.fingerprint import folder_fingerprint
from rlaif_assets.store.lineage import ancestry, verify
from rlaif_assets.store.model_places import locate
from rlaif_assets.store.trace import find_snapshot
from rlaif_assets.store.tracking import DATABASE, Tracker
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse

if TYPE_CHECKING:
    from dagster import DagsterInstance

DAGSTER_DATABASES = ("history/runs.db", "history/runs/index.db")


def verify_policy(
    warehouse: Warehouse, name: str, tracker: Tracker, instance: "DagsterInstance | None"
) -> dict[str, Any]:
    """{asked, snapshot_id, snapshots, rows, problems}: how much was read, and each thing that is not as it was.

    `instance` None: Dagster's databases are missing, see `missing_databases`. Raises StoreError where no snapshot has
    this name or one of the ancestry is not in the warehouse.
    """
    asked = find_snapshot(warehouse, name)
    records = ancestry(warehouse, asked.snapshot_id)
    problems: list[str] = []
    if instance is None:
        problems.append(f"Dagster: {' and '.join(missing_databases(warehouse.home))} missing: its record is lost")
    for record in records:
        found = verify(warehouse, record.snapshot_id)
        where = f"{record.asset} {record.snapshot_id}"
        if record.path is None:
            found += [f"{where}: {problem}" for problem in _external_problems(warehouse, record)]
        if instance is not None:
            found += [f"{where}: Dagster: {problem}" for problem in _dagster_problems(instance, record)]
        problems += found
    problems += _mlflow_problems(tracker, records)
    return {
        "asked": name,
        "snapshot_id": asked.snapshot_id,
        "snapshots": len(records),
        "rows": sum(sum(record.row_counts.values()) for record in records),
        "problems": problems,
    }


def missing_databases(home: Path) -> list[str]:
    """Those of Dagster's files that a home with its own storage must have; none where dagster.yaml names another."""
    settings = home / "dagster.yaml"
    text = settings.read_text(encoding="utf-8") if settings.is_file() else ""
    if any(line.startswith(("storage:", "event_log_storage:", "run_storage:")) for line in text.splitlines()):
        return []
    return [name for name in DAGSTER_DATABASES if not (home / name).is_file()]


def _external_problems(warehouse: Warehouse, record: SnapshotRecord) -> Iterator[str]:
    """Models outside of the home: their weights are hashed where they lie. An endpoint has none."""
    for row in warehouse.rows("external_models", record.snapshot_id):
        if row["model"] is not None:
            continue
        from rlaif_assets.language_models.errors import ModelError
        from rlaif_assets.language_models.local import local_folder

        try:
            folder = local_folder(*locate(warehouse.home, row))
            if folder_fingerprint(folder) != row["fingerprint"]:
                yield f"the model in {folder} is not the one that was used"
        except (ModelError, StoreError, OSError) as error:
            yield f"its weights cannot be read: {error}"


def _dagster_problems(instance: "DagsterInstance", record: SnapshotRecord) -> Iterator[str]:
    import dagster as dg

    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(record.asset))
    cursor = None
    while True:
        page = instance.fetch_materializations(wanted, limit=500, cursor=cursor)
        for found in page.records:
            materialization = found.asset_materialization
            tags = (materialization.tags if materialization else None) or {}
            if tags.get("dagster/data_version") == record.snapshot_id:
                told = materialization.metadata.get("snapshot_id") if materialization else None
                if told is not None and told.value != record.snapshot_id:
                    yield f"a materialization says that it is snapshot {told.value}"
                return
        if not page.has_more:
            break
        cursor = page.cursor
    yield f"its event log has no materialization of it (run {record.dagster_run_id})"


def _mlflow_problems(tracker: Tracker, records: list[SnapshotRecord]) -> Iterator[str]:
    """Each run that was recorded must be there and say the same inputs. A source has none."""
    recorded = [record for record in records if record.mlflow_run_id]
    if recorded and tracker.lost:
        yield f"MLflow: {DATABASE} is missing: its record is lost"
        return
    for record in recorded:
        where = f"{record.asset} {record.snapshot_id}: MLflow"
        try:
            found = tracker.run_tags(str(record.mlflow_run_id))
        except TrackingError as error:
            yield f"{where}: {error}"
            continue
        if found is None:
            yield f"{where}: run {record.mlflow_run_id} is missing or was deleted"
            continue
        said = {
            name.removeprefix("rlaif.snapshot."): value for name, value in found.items() if "rlaif.snapshot." in name
        }
        if found.get("dagster.asset_key") != record.asset:
            yield f"{where}: run {record.mlflow_run_id} is of {found.get('dagster.asset_key')}"
        elif said != record.inputs:
            differs = sorted(
                name for name in said.keys() | record.inputs.keys() if said.get(name) != record.inputs.get(name)
            )
            yield f"{where}: run {record.mlflow_run_id} names other versions of {', '.join(differs)}"
