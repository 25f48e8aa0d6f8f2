"""What Dagster's pages show of an asset: columns and where they come from, previews, numbers over time, source links.

Which numbers and pictures there are belongs to the assets. https://docs.dagster.io/guides/build/assets/metadata-and-tags
"""

import base64
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_type_hints

import dagster as dg

from rlaif_assets.records import PASSPORT

if TYPE_CHECKING:
    from rlaif_assets.store.warehouse import SnapshotRecord

PREVIEW_ROWS = 10
PREVIEW_CHARACTERS = 200
SAMPLE_ROWS = 100
SAMPLE_CHARACTERS = 500
EXACT = 2**53  # the largest whole number up to which JavaScript has them all
COLUMN_LINEAGE = "dagster/column_lineage"


def table_metadata(table: str, record: type[Any], lineage: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Definition metadata of an asset whose main table holds records of this class. `lineage` gives a column the
    columns that its values are made of, as `asset.column`, with spaces between several."""
    columns = [
        dg.TableColumn(name, re.sub(r"\b(\w+\.)+", "", kind.__name__ if type(kind) is type else str(kind)))
        for name, kind in get_type_hints(record).items()
    ]
    metadata = {
        "dagster/table_name": table,
        "dagster/storage_kind": "duckdb",
        "dagster/column_schema": dg.TableSchema(columns),
    }
    if lineage:
        found = {name: [_column(one) for one in made_of.split()] for name, made_of in lineage.items()}
        metadata[COLUMN_LINEAGE] = dg.TableColumnLineage(found)
    return metadata


def _column(name: str) -> dg.TableColumnDep:
    asset, _, column = name.partition(".")
    return dg.TableColumnDep(dg.AssetKey(asset), column)


def with_source_links(assets: Iterable[Any]) -> list[Any]:
    """The assets with the file and line that each is written at, for the UI to open in an editor.

    What `dg.with_source_code_references` does, without reading the files: that took a tenth of the loading time.
    """
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # one for each asset; the pinned version has it
        for asset in assets:
            code = inspect.unwrap(getattr(asset.op.compute_fn, "decorated_fn", asset.op.compute_fn)).__code__
            place = dg.LocalFileCodeReference(file_path=code.co_filename, line_number=code.co_firstlineno)
            link = {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=[place])}
            found.append(asset.map_asset_specs(lambda spec, link=link: spec.merge_attributes(metadata=link)))
    return found


def numbers(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers among metrics, nested ones with their path (`heldout/ai/accuracy`)."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def picture(name: str, png: bytes) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![{name}](data:image/png;base64,{base64.b64encode(png).decode()})")


def preview(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """Rows as Dagster shows them: a table of plain, shortened texts (the UI does not read markup in it), ids last."""
    names = sorted(rows[0] if rows else (), key=lambda name: name.endswith(("_id", "_ids", "annotator", "fingerprint")))
    records = [dg.TableRecord({name: shortened(row[name]) for name in names}) for row in rows]
    columns = [dg.TableColumn(name, "string") for name in names]
    return dg.MetadataValue.table(records, schema=dg.TableSchema(columns))


def as_row(row: Any) -> dict[str, Any]:
    """A record as a row; `dataclasses.asdict` would copy every value, at 50,000 labels for seconds."""
    return dict(row if isinstance(row, Mapping) else vars(row))


def sample(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Up to 100 rows from all of a table, at equal distances, as columns of numbers and shortened texts."""
    chosen = [as_row(rows[place]) for place in spread(len(rows), SAMPLE_ROWS)]
    return {name: [shortened(row[name], SAMPLE_CHARACTERS) for row in chosen] for name in (chosen[0] if chosen else ())}


def spread(count: int, number: int) -> list[int]:
    """The places of at most so many of `count` things, from the first on: one in each part of equal length, each time
    one place further in it, so that what comes in turn (rounds, policies) is all seen."""
    chosen = min(number, count)
    return [place * count // chosen + place % (count // chosen) for place in range(chosen)]


def shortened(value: Any, characters: int = PREVIEW_CHARACTERS) -> str | int | float | bool | None:
    """Numbers as they are, but for those that a browser would round; all else as text on one line, cut at so many
    characters."""
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) <= EXACT):
        return value
    text = " ".join(str(value).split())
    return text if len(text) <= characters else text[: characters - 1] + "…"


def spent(record: "SnapshotRecord") -> dict[str, float]:
    """What making a snapshot took: seconds, and tokens per second."""
    seconds = record.seconds or 0.0
    return {"seconds": seconds, "tokens_per_second": round((record.tokens or 0) / max(seconds, 1e-9), 1)}


def charted(record: "SnapshotRecord") -> Iterator[tuple[str, float]]:
    """The numbers among a snapshot's metrics; a passport is told as a whole."""
    return numbers({name: value for name, value in record.metrics.items() if name != PASSPORT})
