"""The DuckDB file of a home: append-only tables of rows, keyed by snapshot, and the snapshots themselves.

The only opener of that file. A connection is open for milliseconds, under a file lock that readers take too, and is
never held while a model works. No SQL outside of this package; weights are files (`checkpoint_files`); hashes come from
`fingerprint`. duckdb and pyarrow are imported late, because Dagster's definitions import this module.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from rlaif_assets.records import Rejection
from rlaif_assets.settings import nearest
from rlaif_assets.store.checkpoint_files import is_complete, marked_fingerprint
from rlaif_assets.store.columns import (
    OWN_TABLES,
    Row,
    as_rows,
    decoded,
    finite,
    insert,
    quoted,
    schema,
    schema_sql,
    table_columns,
    to_columns,
)
from rlaif_assets.store.errors import DamagedError, StoreError
from rlaif_assets.store.fingerprint import canonical_json, combine_hashes, sha256_text, table_hash

if TYPE_CHECKING:
    import duckdb

SCHEMA_VERSION = 4
FILE = "warehouse.duckdb"
CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "lock_configuration": True,
}


@dataclass(frozen=True, kw_only=True)
class SnapshotRecord:
    """An immutable version of an asset and where it came from.

    `publish` fills `snapshot_id`, `content_hash`, `created_at` (ISO, UTC), `row_counts` and `table_hashes`. `inputs`
    maps assets to the snapshot ids that were read; `path` is the weights' folder relative to the home.
    """

    asset: str
    key: str
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    code_version: int = 1
    path: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    mlflow_run_id: str | None = None
    dagster_run_id: str | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None
    device: str | None = None
    seconds: float = 0.0
    tokens: int = 0
    attempt: int = 0
    snapshot_id: str = ""
    content_hash: str = ""
    created_at: str = ""
    row_counts: dict[str, int] = field(default_factory=dict)
    table_hashes: dict[str, str] = field(default_factory=dict)


def snapshot_key(asset: str, inputs: Mapping[str, str], settings: Mapping[str, Any], code_version: int) -> str:
    """64 hex digits, equal for equal work. `settings`: those that decide the result (no device, paths or threads)."""
    return sha256_text(canonical_json([asset, inputs, settings, code_version]))


def snapshot_id(key: str, content_hash: str) -> str:
    """32 hex digits: the id of the snapshot of this key with this content."""
    return sha256_text(key + content_hash)[:32]


def id_of_rows(key: str, tables: Mapping[str, Sequence[Row]]) -> str:
    """The id that `publish` would give to these rows under this key; nothing is stored."""
    return snapshot_id(key, combine_hashes(_content(tables)[1], None))


class Warehouse:
    """The tables of one home. Every method opens and closes the file; all raise StoreError when they cannot."""

    def __init__(self, home: Path, lock_timeout: float = 60.0) -> None:
        self.home = home.absolute()
        self.path = self.home / FILE
        self.lock_timeout = lock_timeout
        self._held: duckdb.DuckDBPyConnection | None = None

    @contextmanager
    def one_opening(self) -> Iterator[None]:
        """What this object reads inside shares one opening of the file, which costs more than most reads. Nothing slow
        belongs inside, and no writing: every process of the home waits. For one thread."""
        with self.connection(read_only=True) as connection:
            self._held = connection
            try:
                yield
            finally:
                self._held = None

    def find(self, asset: str, key: str) -> SnapshotRecord | None:
        """The newest snapshot of this key whose weights, if it has any, are all there (marker and file sizes)."""
        records = self._snapshots("asset = ? AND key = ?", [asset, key])
        return next((record for record in reversed(records) if self._whole(record)), None)

    def get(self, snapshot_id: str) -> SnapshotRecord:
        records = self._snapshots("snapshot_id = ?", [snapshot_id])
        if not records:
            raise StoreError(f"no snapshot {snapshot_id} in {self.path}: see the snapshots that the report lists")
        return records[0]

    def with_inputs(self, snapshot_id: str) -> dict[str, SnapshotRecord]:
        """The snapshot and all that it was made from, by id; those that are not there are left out."""
        found: dict[str, SnapshotRecord] = {}
        wanted = {snapshot_id}
        with self.connection(read_only=True) as connection:
            while wanted:
                records = _select_snapshots(connection, "snapshot_id IN (SELECT unnest(?))", [sorted(wanted)])
                found |= {record.snapshot_id: record for record in records}
                wanted = {one for record in records for one in record.inputs.values()} - found.keys()
        return found

    def current(self, asset: str) -> SnapshotRecord | None:
        """The snapshot that was materialized (or reused) last."""
        return self.currents([asset]).get(asset)

    def currents(self, assets: Sequence[str]) -> dict[str, SnapshotRecord]:
        """The current snapshots of these assets, by asset; those without one are left out. Opens the file once."""
        newest = "SELECT arg_max(snapshot_id, position) FROM materializations WHERE asset IN (SELECT unnest(?))"
        records = self._snapshots(f"snapshot_id IN ({newest} GROUP BY asset)", [list(assets)])
        return {record.asset: record for record in records}

    def previous(self, asset: str) -> SnapshotRecord | None:
        """The snapshot that was current before the current one became it."""
        newest = "SELECT arg_max(snapshot_id, position) FROM materializations WHERE asset = $asset"
        other = f"{newest} AND snapshot_id <> ({newest})"
        records = self._snapshots(f"snapshot_id = ({other})", {"asset": asset})
        return records[0] if records else None

    def publish(
        self, record: SnapshotRecord, tables: Mapping[str, Sequence[Row]], rejected: Sequence[Rejection] = ()
    ) -> SnapshotRecord:
        """Stores rows and their snapshot in one transaction; returns the one that is there if key and content are.

        A row's missing columns are null; JSON columns take lists and dicts. Weights must have been adopted before
        (`checkpoint_files.adopt_folder`). Rejected rows are kept and counted, but are not part of the content hash:
        `where` may name a file's place.
        """
        if "rejected_rows" in tables:
            raise StoreError("rejected_rows come in the `rejected` argument of publish, not among the tables")
        columns, hashes = _content(tables)
        weights = self._weights_fingerprint(record.path)
        content_hash = combine_hashes(hashes, weights)
        columns["rejected_rows"] = to_columns("rejected_rows", [_storable(rejection) for rejection in rejected])
        record = dataclasses.replace(
            record,
            snapshot_id=snapshot_id(record.key, content_hash),
            content_hash=content_hash,
            created_at=now(),
            row_counts={table: len(values["position"]) for table, values in columns.items() if values["position"]},
            table_hashes=hashes,
            metrics=finite(record.metrics),
        )
        header = {"position": 0, **dataclasses.asdict(record)}
        snapshot = to_columns("snapshots", [header], positioned=False)
        with self.connection(read_only=False) as connection:
            existing = _select_snapshots(connection, "snapshot_id = ?", [record.snapshot_id])
            if existing:
                return existing[0]
            connection.begin()
            for table, values in columns.items():
                insert(connection, table, {**values, "snapshot_id": [record.snapshot_id] * len(values["position"])})
            snapshot["position"] = [_count(connection, "snapshots")]
            insert(connection, "snapshots", snapshot)
            connection.commit()
        return record

    def record_materialization(self, snapshot_id: str, dagster_run_id: str | None, reused: bool) -> None:
        """Makes this snapshot its asset's current one."""
        with self.connection(read_only=False) as connection:
            records = _select_snapshots(connection, "snapshot_id = ?", [snapshot_id])
            if not records:
                raise StoreError(f"no snapshot {snapshot_id} in {self.path}: publish it before it is materialized")
            row = [
                _count(connection, "materializations"),
                snapshot_id,
                records[0].asset,
                dagster_run_id,
                reused,
                now(),
            ]
            connection.execute("INSERT INTO materializations VALUES (?, ?, ?, ?, ?, ?)", row)

    def record_removals(self, removals: Sequence[Row]) -> None:
        """{snapshot_id, path, bytes, who, why} each, in one transaction: what is about to be taken out of the home."""
        columns = to_columns("removals", [{**row, "created_at": now()} for row in removals], positioned=False)
        with self.connection(read_only=False) as connection:
            first = _count(connection, "removals")
            columns["position"] = list(range(first, first + len(removals)))
            insert(connection, "removals", columns)

    def rows(self, table: str, snapshot_id: str, limit: int | None = None) -> list[Row]:
        """The table's rows of one snapshot in the order they were given, JSON columns decoded, without `snapshot_id`
        and `position`. An unknown snapshot has none."""
        return [
            {name: value for name, value in row.items() if name != "position"}
            for row in self.positioned_rows(table, snapshot_id, limit)
        ]

    def positioned_rows(self, table: str, snapshot_id: str, limit: int | None = None) -> list[Row]:
        """Like `rows`, with `position`."""
        kinds = table_columns(table)
        names = [name for name in kinds if name != "snapshot_id"]
        query = f'SELECT {quoted(names)} FROM "{table}" WHERE snapshot_id = ? ORDER BY position'
        values: list[Any] = [snapshot_id]
        if limit is not None:
            query, values = f"{query} LIMIT ?", [*values, limit]
        with self.connection(read_only=True) as connection:
            found = connection.execute(query, values).fetchall()
        return [decoded(names, row, kinds) for row in found]

    def at(self, table: str, snapshot_id: str, positions: Sequence[int]) -> list[Row]:
        """The table's rows of one snapshot at these positions, as `rows` gives them."""
        names = [name for name in table_columns(table) if name not in ("snapshot_id", "position")]
        query = (
            f'SELECT {quoted(names)} FROM "{table}" WHERE snapshot_id = ? AND position IN (SELECT unnest(?::BIGINT[]))'
            " ORDER BY position"
        )
        with self.connection(read_only=True) as connection:
            found = connection.execute(query, [snapshot_id, list(positions)]).fetchall()
        return [decoded(names, row, table_columns(table)) for row in found]

    def grouped(self, table: str, snapshot_id: str, by: str, means: Sequence[str] = ()) -> list[Row]:
        """{by, rows, mean of each of these columns} for each value of a column, in their order; the rows stay there."""
        kinds = table_columns(table)
        for name in (by, *means):
            if name not in kinds:
                raise StoreError(f"{table} has no column {name!r}: {nearest(name, sorted(kinds))}")
        averages = "".join(f', avg("{name}")' for name in means)
        query = (
            f'SELECT "{by}", count(*){averages} FROM "{table}" WHERE snapshot_id = ? GROUP BY "{by}" ORDER BY "{by}"'
        )
        with self.connection(read_only=True) as connection:
            found = connection.execute(query, [snapshot_id]).fetchall()
        return [dict(zip((by, "rows", *means), row, strict=True)) for row in found]

    def where(self, table: str, column: str, value: str) -> list[Row]:
        """See `rows_where`."""
        with self.connection(read_only=True) as connection:
            return rows_where(connection, table, column, value)

    def named(self, beginning: str) -> "list[SnapshotRecord]":
        """The snapshots whose id begins like this, of which 8 digits at least must be given."""
        if len(beginning) < 8:
            return []
        return self._snapshots("starts_with(snapshot_id, ?)", [beginning])

    def of_folder(self, path: str) -> "list[SnapshotRecord]":
        """The snapshots whose weights are in this folder of the home."""
        return self._snapshots("path = ?", [path])

    def counts(self, snapshot_id: str) -> dict[str, int]:
        """Rows by table that are really there, tables without rows left out."""
        tables = [table for table in schema() if table not in OWN_TABLES]
        query = " UNION ALL ".join(f"SELECT '{t}', count(*) FROM \"{t}\" WHERE snapshot_id = $id" for t in tables)
        with self.connection(read_only=True) as connection:
            found = connection.execute(query, {"id": snapshot_id}).fetchall()
        return {table: count for table, count in found if count}

    def weights(self, record: SnapshotRecord) -> Path:
        """The absolute folder of a snapshot's weights. Raises StoreError where it has none or they are not whole."""
        if record.path is None:
            raise StoreError(f"snapshot {record.snapshot_id} of {record.asset} has no weights")
        folder = self._inside(record.path)
        if not is_complete(folder):
            if removal := self.removals([record]).get(record.snapshot_id):
                raise StoreError(
                    f"the weights of {record.asset} {record.snapshot_id} were {removal_text(removal)}; `rlaif run` "
                    "with the settings that `rlaif trace` tells makes them again"
                )
            raise StoreError(f"{folder} is missing or damaged: materialize {record.asset} again")
        return folder

    def removals(self, records: Sequence[SnapshotRecord]) -> dict[str, Row]:
        """{who, why, bytes, created_at} by snapshot id, of those of these whose weights were removed on purpose and are
        not there (again); `pruning` tells more."""
        missing = {record.snapshot_id: record.path for record in records if not self._whole(record)}
        if not missing:
            return {}
        query = (
            "SELECT snapshot_id, path, who, why, bytes, created_at FROM removals"
            " WHERE snapshot_id IN (SELECT unnest(?)) ORDER BY position"
        )
        with self.connection(read_only=True) as connection:
            found = connection.execute(query, [sorted(missing)]).fetchall()
        names = ("who", "why", "bytes", "created_at")
        return {one: dict(zip(names, row, strict=True)) for one, path, *row in found if path == missing[one]}

    def _whole(self, record: SnapshotRecord) -> bool:
        return record.path is None or is_complete(self._inside(record.path))

    def _inside(self, relative: str) -> Path:
        path = (self.home / relative).resolve()
        if not path.is_relative_to(self.home.resolve()) or Path(relative).is_absolute():
            raise StoreError(f"the weights' path {relative!r} leads out of {self.home}")
        return path

    def _weights_fingerprint(self, relative: str | None) -> str | None:
        if relative is None:
            return None
        folder = self._inside(relative)
        if not is_complete(folder):
            raise StoreError(f"{folder} is not a whole checkpoint: adopt the folder before its snapshot is published")
        return marked_fingerprint(folder)

    def _snapshots(self, where: str, values: Sequence[Any] | dict[str, Any]) -> list[SnapshotRecord]:
        with self.connection(read_only=True) as connection:
            return _select_snapshots(connection, where, values)

    @contextmanager
    def connection(self, read_only: bool) -> Iterator["duckdb.DuckDBPyConnection"]:
        """For this package alone, and for milliseconds: every process of the home waits meanwhile."""
        import duckdb

        if self._held is not None:
            assert read_only, "nothing is written inside of one_opening"
            yield self._held
            return
        self.home.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(f"{self.path}.lock", timeout=self.lock_timeout, poll_interval=0.01)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise StoreError(
                f"{self.path} has been locked for {self.lock_timeout:g} s by another process of this home: "
                "wait until it is done, or stop it"
            ) from error
        try:
            connection = self._connect(read_only)
            try:
                yield connection
            finally:
                connection.close()  # an open transaction is rolled back
        except duckdb.Error as error:
            raise StoreError(f"{self.path}: {error}") from error
        finally:
            lock.release()

    def _connect(self, read_only: bool) -> "duckdb.DuckDBPyConnection":
        """Creates the tables on first use, also where an earlier process died before it had them."""
        import duckdb

        if read_only and not self.path.exists():
            self._connect(read_only=False).close()
        connection = duckdb.connect(str(self.path), read_only=read_only, config=CONFIG)
        try:
            found = connection.execute(
                "SELECT count(*) FROM duckdb_tables() WHERE table_name = 'schema_version'"
            ).fetchall()
            if not found[0][0]:
                if read_only:
                    connection.close()
                    self._connect(read_only=False).close()
                    return self._connect(read_only=True)
                connection.begin()
                connection.execute(schema_sql())
                connection.execute("INSERT INTO schema_version VALUES (?)", [SCHEMA_VERSION])
                connection.commit()
            versions = connection.execute("SELECT version FROM schema_version").fetchall()
            if versions != [(SCHEMA_VERSION,)]:
                raise StoreError(
                    f"{self.path} has schema version {', '.join(str(v[0]) for v in versions)}, this program reads "
                    f"{SCHEMA_VERSION}: use the program's version that wrote it, or another home"
                )
        except BaseException:
            connection.close()
            raise
        return connection

    def list(self, asset: str | None = None) -> "list[SnapshotRecord]":
        """All snapshots, oldest first; of one asset where it is named."""
        return self._snapshots("asset = ?", [asset]) if asset else self._snapshots("true", [])


def rows_where(connection: "duckdb.DuckDBPyConnection", table: str, column: str, value: str) -> list[Row]:
    """The rows of any snapshot, newest snapshot first, in which the column has this value; `snapshot_id` is among their
    columns but for judgements, which are of none."""
    kinds = schema()[table]
    if column not in kinds:
        raise StoreError(f"{table} has no column {column!r}: {nearest(column, sorted(kinds))}")
    names = [name for name in kinds if name != "position"]
    query = f'SELECT {quoted(names)} FROM "{table}" WHERE "{column}" = ?'
    if "snapshot_id" in kinds:
        columns = ", ".join(f't."{name}"' for name in names)
        query = (
            f'SELECT {columns} FROM "{table}" t LEFT JOIN snapshots USING (snapshot_id) WHERE t."{column}" = ?'
            " ORDER BY snapshots.position DESC, t.position"
        )
    return [decoded(names, row, kinds) for row in connection.execute(query, [value]).fetchall()]


def removal_text(removal: Mapping[str, Any]) -> str:
    """`removed DATE by WHO: WHY` of `Warehouse.removals`."""
    return f"removed {removal['created_at'][:10]} by {removal['who']}: {removal['why']}"


def _select_snapshots(
    connection: "duckdb.DuckDBPyConnection", where: str, values: Sequence[Any] | dict[str, Any]
) -> list[SnapshotRecord]:
    kinds = {name: kind for name, kind in schema()["snapshots"].items() if name != "position"}
    query = f"SELECT {quoted(kinds)} FROM snapshots WHERE {where} ORDER BY position"
    found = connection.execute(query, values).fetchall()
    records = [SnapshotRecord(**decoded(list(kinds), row, kinds)) for row in found]
    for record in records:
        kept = (record.settings, record.inputs, record.metrics, record.row_counts, record.table_hashes)
        if not all(isinstance(one, dict) for one in kept) or record.key is None or record.content_hash is None:
            raise DamagedError(
                f"the record of snapshot {record.snapshot_id} ({record.asset}) is damaged: parts are missing"
            )
    return records


def _count(connection: "duckdb.DuckDBPyConnection", table: str) -> int:
    return connection.execute(f'SELECT count(*) FROM "{table}"').fetchall()[0][0]


def _content(tables: Mapping[str, Sequence[Row]]) -> tuple[dict[str, dict[str, list[Any]]], dict[str, str]]:
    """Columns and hash of each table."""
    columns = {table: to_columns(table, rows) for table, rows in tables.items()}
    return columns, {table: table_hash(as_rows(table, values)) for table, values in columns.items()}


def _storable(rejection: Rejection) -> Row:
    """Refused text may be what cannot be encoded: that is escaped, never lost."""
    return {
        name: text.encode("utf-8", "backslashreplace").decode() for name, text in dataclasses.asdict(rejection).items()
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
