"""A home that was copied or moved: MLflow keeps absolute addresses of artifacts, and its client cannot change them.

MLflow is not imported: these are five columns of its SQLite tables (mlflow 3, `mlflow/store/tracking/dbmodels`).
"""

import sqlite3
from contextlib import closing
from pathlib import Path

DATABASE = "mlflow.db"
ARTIFACTS = "mlflow_artifacts"
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def follow_home(home: Path) -> bool:
    """Artifacts' addresses that lead into another home, which this one is a copy of, lead into this one from now on, in
    one transaction. Returns whether there were any. Raises sqlite3.Error where the database cannot be written."""
    if not (home / DATABASE).is_file():
        return False
    here = (home.absolute() / ARTIFACTS).as_uri()
    with closing(sqlite3.connect(home / DATABASE, timeout=60)) as connection, connection:
        found = connection.execute(
            f"SELECT artifact_location FROM experiments WHERE artifact_location LIKE 'file:%/{ARTIFACTS}'"
        )
        others = {place for (place,) in found} - {here}
        for other in others:
            for table, column in ADDRESSES:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                    f" WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (here, len(other) + 1, other, len(other) + 1, f"{other}/"),
                )
    return bool(others)
