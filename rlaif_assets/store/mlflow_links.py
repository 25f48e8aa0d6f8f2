"""Which recorded links to MLflow lead nowhere: the home's own database is gone, or was made anew, or a run was deleted.

MLflow is not imported: these are two columns of its SQLite table `runs` (mlflow 3, `mlflow/store/tracking/dbmodels`).
"""

import json
import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from rlaif_assets.store.moved_home import DATABASE
from rlaif_assets.store.tracking import LOCK
from rlaif_assets.store.warehouse import SnapshotRecord

GONE = f"link missing: {DATABASE} is gone"
UNKNOWN = f"link missing: {DATABASE} has no such run"
DELETED = f"link missing: the run was deleted in {DATABASE}"
PATIENCE = 0.2  # seconds for a database that is being written
OURS = re.compile(r"https?://(127\.0\.0\.1|localhost|\[::1\])[:/]")  # pages that the home's own database is shown on


def database_missing(home: Path) -> str | None:
    """A home whose records are kept on a server never had a database, nor its lock."""
    return GONE if (home / LOCK).exists() and not (home / DATABASE).is_file() else None


def missing_runs(home: Path, records: Iterable[SnapshotRecord]) -> dict[str, str]:
    """Why there is no run, by snapshot id, of those of these whose run is not in the home's own database, or was
    deleted there. Of a database that is locked or cannot be read nothing is said, nor of a page on another machine."""
    if gone := database_missing(home):
        return {record.snapshot_id: gone for record in records if record.mlflow_run_id}
    runs = {
        record.snapshot_id: record.mlflow_run_id
        for record in records
        if record.mlflow_run_id and OURS.match(str(record.metrics.get("mlflow_url")))
    }
    if not runs or not (home / DATABASE).is_file():
        return {}
    query = "SELECT run_uuid, lifecycle_stage FROM runs WHERE run_uuid IN (SELECT value FROM json_each(?))"
    try:
        address = f"{(home / DATABASE).absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, timeout=PATIENCE, uri=True)) as connection:
            stages = dict(connection.execute(query, [json.dumps(list(runs.values()))]).fetchall())
    except sqlite3.Error:
        return {}
    return {
        snapshot: UNKNOWN if run not in stages else DELETED
        for snapshot, run in runs.items()
        if stages.get(run) != "active"
    }
