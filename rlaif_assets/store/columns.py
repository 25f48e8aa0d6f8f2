"""What schema.sql's tables can keep: rows as columns of exactly their types, and back. Names in SQL come from here."""

import json
import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from rlaif_assets.settings import nearest
from rlaif_assets.store.errors import DamagedError, StoreError
from rlaif_assets.store.fingerprint import canonical_json

if TYPE_CHECKING:
    import duckdb

OWN_TABLES = frozenset(
    {"schema_version", "snapshots", "materializations", "registrations", "aliases", "removals", "judgements"}
)
Row = dict[str, Any]


@cache
def schema() -> dict[str, dict[str, str]]:
    """Column types by table and column, in order, as schema.sql declares them: the allow-list of names in SQL."""
    import duckdb

    with duckdb.connect(":memory:") as connection:
        connection.execute(schema_sql())
        found = connection.execute(
            "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal"
            " ORDER BY table_name, column_index"
        ).fetchall()
    tables: dict[str, dict[str, str]] = {}
    for table, column, kind in found:
        tables.setdefault(table, {})[column] = kind
    return tables


def schema_sql() -> str:
    return (resources.files("rlaif_assets.store") / "schema.sql").read_text(encoding="utf-8")


def table_columns(table: str) -> dict[str, str]:
    """Column types of a data table. Raises StoreError with the nearest names when there is no such table."""
    tables = {name: columns for name, columns in schema().items() if name not in OWN_TABLES}
    if table not in tables:
        raise StoreError(f"the warehouse has no table {table!r}: {nearest(table, sorted(tables))}")
    return tables[table]


def to_columns(table: str, rows: Sequence[Row], positioned: bool = True) -> dict[str, list[Any]]:
    """Rows as columns of exactly the table's types, with `position` and without `snapshot_id` where `positioned`.

    Raises StoreError naming table, row and column for an unknown column or a value that the column cannot keep.
    """
    kinds = table_columns(table) if positioned else schema()[table]
    names = [name for name in kinds if not positioned or name not in ("snapshot_id", "position")]
    for number, row in enumerate(rows):
        if not row.keys() <= kinds.keys():
            unknown = min(row.keys() - kinds.keys())
            raise StoreError(f"{table}, row {number}: no column {unknown!r}: {nearest(unknown, names)}")
    columns: dict[str, list[Any]] = {}
    for name in names:
        convert = CONVERSIONS[kinds[name]]
        columns[name] = values = []
        for number, row in enumerate(rows):
            value = row.get(name)
            try:
                values.append(None if value is None else convert(value))
            except (TypeError, ValueError) as error:
                raise StoreError(f"{table}, row {number}, column {name} ({kinds[name]}): {error}") from error
    if positioned:
        columns["position"] = list(range(len(rows)))
    return columns


def as_rows(table: str, columns: Mapping[str, list[Any]]) -> Iterator[Row]:
    """The rows as `rows` will return them, so that what is hashed is what will be read."""
    kinds = table_columns(table)
    names = list(columns)
    return (decoded(names, row, kinds) for row in zip(*columns.values(), strict=True))


def decoded(names: Sequence[str], values: Sequence[Any], kinds: Mapping[str, str]) -> Row:
    """A row as it was given. Raises DamagedError where a JSON column holds none."""
    try:
        return {
            name: json.loads(value) if kinds[name] == "JSON" and value is not None else value
            for name, value in zip(names, values, strict=True)
        }
    except ValueError as error:
        raise DamagedError(f"a row is damaged, what should be JSON is not: {error}; its values are {values}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {value!r}")
    value.encode("utf-8")  # a lone surrogate has no UTF-8 form
    return str(value)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"expected a whole number, found {value!r}")
    whole = int(value)
    if not -(2**63) <= whole < 2**63:
        raise ValueError(f"{whole} does not fit 64 bits")
    return whole


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real | Decimal):
        raise TypeError(f"expected a number, found {value!r}")
    return float(value)


def _boolean(value: Any) -> bool:
    import numpy as np

    if not isinstance(value, bool | np.bool):
        raise TypeError(f"expected true or false, found {value!r}")
    return bool(value)


def _json(value: Any) -> str:
    text = canonical_json(value)
    text.encode("utf-8")
    if "NaN" in text or "Infinity" in text:  # else there is nothing that JSON does not know
        json.loads(text, parse_constant=_refuse_constant)
    return text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} has no place in JSON")


CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "VARCHAR": _text,
    "BIGINT": _integer,
    "DOUBLE": _number,
    "BOOLEAN": _boolean,
    "JSON": _json,
}


def insert(connection: "duckdb.DuckDBPyConnection", table: str, columns: Mapping[str, list[Any]]) -> None:
    import pyarrow as pa

    types = {"VARCHAR": pa.string(), "JSON": pa.string(), "BIGINT": pa.int64(), "DOUBLE": pa.float64()}
    kinds = schema()[table]
    arrays = {name: pa.array(columns[name], types.get(kinds[name], pa.bool_())) for name in kinds}
    connection.register("incoming", pa.table(arrays))
    connection.execute(f'INSERT INTO "{table}" SELECT {quoted(kinds)} FROM incoming')
    connection.unregister("incoming")


def finite(value: Any) -> Any:
    """JSON has no NaN or infinity; as metrics they are kept as text."""
    if isinstance(value, Mapping):
        return {str(name): finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real | Decimal):
        return float(value) if math.isfinite(value) else str(float(value))
    raise StoreError(f"a metric is a number, text, list or mapping, not {type(value).__name__}")


def quoted(names: Iterator[str] | Sequence[str] | Mapping[str, str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
