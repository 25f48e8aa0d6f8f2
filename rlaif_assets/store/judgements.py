"""The judgements of a home: one table that all label snapshots share, and the batches that wait to go into it.

A judge's answers are committed a batch at a time as Parquet files (temporary file, fsync, rename), because it works for
hours and a connection to the warehouse is open for milliseconds. `absorb` moves the files into the table in one short
transaction. What is asked, and whether anew, belongs to `feedback.relabelling`. duckdb and pyarrow are imported late.
"""

import dataclasses
import os
import re
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlaif_assets.records import Judgement
from rlaif_assets.store.columns import schema
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.fingerprint import canonical_json, sha256_text
from rlaif_assets.store.warehouse import Warehouse

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

FOLDER = "judgement_parts"
MAX_PARTS = 200  # so many files wait at most: a judge that answers one question at a time would leave 100,000
RECENT = 10_000  # judgements that a judge's speed is told from
FIELDS = [field.name for field in dataclasses.fields(Judgement)]
COLUMNS = ", ".join(f'"{name}"' for name in FIELDS)
# When it was asked, and as whose question: equal texts may be those of two pairs, or of two principles. The question's
# id holds both texts.
UNHASHED = frozenset({"as_of", "seconds", "created_at", "dagster_run_id", "pair_id", "principle_id"})


class Seen(NamedTuple):
    """What a pair was judged by before."""

    pair_id: str
    principle_id: str
    template: str
    judge: str


class Speed(NamedTuple):
    """Means over a judge's recent judgements; None where it has none. `tokens`: read and written."""

    tokens: float | None
    seconds: float | None


class JudgementStore:
    """The judgements of one home, for any number of processes. All methods raise StoreError when they cannot.

    `log` is told of files that are damaged.
    """

    def __init__(self, warehouse: Warehouse, log: Callable[[str], None] = lambda line: None) -> None:
        self.warehouse, self.log = warehouse, log
        self.folder = warehouse.home / FOLDER
        self._written = 0

    def commit(self, judgements: Sequence[Judgement]) -> None:
        """Keeps a batch for good: once this returns, no crash loses it."""
        import pyarrow.parquet as pq

        table = _as_table(judgements)
        temporary = self.folder / f"{os.getpid()}-{uuid.uuid4().hex}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                pq.write_table(table, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(temporary.with_suffix(".parquet"))
            _sync_folder(self.folder)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise StoreError(f"{self.folder}: a batch of judgements cannot be written: {error}") from error
        self._written += 1
        if self._written % MAX_PARTS == 0:
            self.absorb()

    def absorb(self) -> int:
        """Moves the committed batches of all processes, dead ones too, into the table; returns how many rows were new.

        A damaged file is set aside as `*.damaged`, with a log line: its questions count as never asked.
        """
        if not any(self.folder.glob("*.parquet")):
            return 0
        with self.warehouse.connection(read_only=False) as connection:
            parts = sorted(self.folder.glob("*.parquet"))
            tables = [table for table in map(self._read, parts) if table is not None]
            new = 0
            if tables:
                connection.begin()
                new = _add(connection, tables)
                connection.commit()
            for part in parts:
                part.unlink(missing_ok=True)
            self._remove_dead_files()
        return new

    def newest(self, question_ids: Sequence[str]) -> dict[str, Judgement]:
        """The newest round of each of these questions that was ever answered, by question id."""
        query = (
            f"SELECT {COLUMNS} FROM judgements SEMI JOIN wanted ON judgements.question_id = wanted.id"
            " QUALIFY row_number() OVER (PARTITION BY question_id ORDER BY round DESC) = 1"
        )
        return {row.question_id: row for row in self._select(query, question_ids)}

    def fetch(self, judgement_ids: Sequence[str]) -> dict[str, Judgement]:
        """Those of these judgements that are there, by id."""
        query = f"SELECT {COLUMNS} FROM judgements SEMI JOIN wanted ON judgements.judgement_id = wanted.id"
        return {row.judgement_id: row for row in self._select(query, judgement_ids)}

    def seen(self, pair_ids: Collection[str]) -> list[Seen]:
        """Under which principles, templates and judges these pairs were judged."""
        query = (
            "SELECT DISTINCT pair_id, principle_id, template, judge FROM judgements"
            " SEMI JOIN wanted ON judgements.pair_id = wanted.id"
        )
        return [Seen(*row) for row in self._rows(query, pair_ids)]

    def speed(self, judge: str) -> Speed:
        """Of this judge; where it has no judgements yet, any judge's tokens."""
        with self.warehouse.connection(read_only=True) as connection:
            query = (
                "SELECT avg(tokens_in + tokens_out), avg(seconds) FROM"
                f" (FROM judgements WHERE judge = ? ORDER BY created_at DESC LIMIT {RECENT})"
            )
            tokens, seconds = connection.execute(query, [judge]).fetchall()[0]
            if tokens is None:
                tokens = connection.execute("SELECT avg(tokens_in + tokens_out) FROM judgements").fetchall()[0][0]
        return Speed(tokens, seconds)

    def _select(self, query: str, ids: Collection[str]) -> list[Judgement]:
        return [Judgement(*row) for row in self._rows(query, ids)]

    def _rows(self, query: str, ids: Collection[str]) -> list[tuple[Any, ...]]:
        import pyarrow as pa

        with self.warehouse.connection(read_only=True) as connection:
            connection.register("wanted", pa.table({"id": pa.array(list(ids), pa.string())}))
            return connection.execute(query).fetchall()

    def _read(self, part: Path) -> "pa.Table | None":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.ParquetFile(part).read()
            if not table.schema.equals(_as_table([]).schema):
                raise pa.ArrowInvalid(f"it has the columns {', '.join(table.schema.names)}")
        except (pa.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            self.log(f"{part} is damaged and set aside; what it held is judged again: {reason}")
            part.rename(part.with_suffix(".damaged"))
            return None
        return table

    def _remove_dead_files(self) -> None:
        """Removes what processes of this host were writing when they died."""
        import psutil

        for path in self.folder.glob("*.tmp"):
            ours = re.fullmatch(r"(\d{1,9})-[0-9a-f]{32}", path.stem)
            if ours and not psutil.pid_exists(int(ours[1])):
                path.unlink(missing_ok=True)


def judgements_hash(judgements: Iterable[Judgement]) -> str:
    """32 hex digits over the answers as they are stored, in the order given. When they were asked does not count."""
    answers = [[getattr(row, name) for name in FIELDS if name not in UNHASHED] for row in judgements]
    return sha256_text(canonical_json(answers))[:32]


def _as_table(judgements: Sequence[Judgement]) -> "pa.Table":
    import pyarrow as pa

    types = {"VARCHAR": pa.string(), "BIGINT": pa.int64(), "DOUBLE": pa.float64()}
    kinds = schema()["judgements"]
    return pa.table({name: pa.array([getattr(row, name) for row in judgements], types[kinds[name]]) for name in FIELDS})


def _add(connection: "duckdb.DuckDBPyConnection", tables: "Sequence[pa.Table]") -> int:
    """Inserts the rows whose id is not there yet, each id once; returns how many."""
    import pyarrow as pa

    connection.register("incoming", pa.concat_tables(tables))
    inserted = connection.execute(
        f"INSERT INTO judgements SELECT {COLUMNS} FROM incoming ANTI JOIN judgements USING (judgement_id)"
        " QUALIFY row_number() OVER (PARTITION BY judgement_id ORDER BY created_at) = 1"
    ).fetchall()
    connection.unregister("incoming")
    return inserted[0][0]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
