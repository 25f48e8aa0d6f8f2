"""Rows out of files and hub data sets, each with its file and line. What the rows mean is decided by the other readers.

JSONL, JSONL.gz, CSV, CSV.gz and `datasets:ID[@COMMIT][:CONFIG[:SPLIT]]`. A file whose structure is broken (truncated
gzip, a line that is not JSON or not UTF-8) raises IngestError with the line: half a file is never taken for a whole
one. A line of valid JSON that is not an object, and a CSV row with more fields than its header, are rows with a
`problem`. Blank lines are no rows. A byte order mark and CRLF are accepted.
"""

import csv
import gzip
import itertools
import json
import os
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rlaif_assets.ingest.errors import IngestError, RowError
from rlaif_assets.records import Rejection, Split

HUB_PREFIX = "datasets:"
HUB_FORM = "datasets:ID[@COMMIT][:CONFIG[:SPLIT]]"
BOM = b"\xef\xbb\xbf"
GZIP_MAGIC = b"\x1f\x8b"
EXCERPT = 300
CSV_FIELD_LIMIT = 1 << 26
GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True)
class SourceRow:
    """One row as read. `where` is file:line, or data set:row. `problem` says why `fields` is empty."""

    where: str
    fields: dict[str, Any]
    problem: str | None = None


def read_rows(path: str, limit: int | None = None) -> Iterator[SourceRow]:
    """Yields at most `limit` rows in the order of the source. Raises IngestError."""
    check_limit(limit)
    if path.startswith(HUB_PREFIX):
        rows = _hub_rows(path, limit)
    else:
        suffix = Path(path.lower().removesuffix(".gz")).suffix
        if suffix not in (".jsonl", ".csv"):
            raise IngestError(f"{path}: unknown kind of file; give .jsonl, .csv (or either .gz), or {HUB_FORM}")
        rows = _json_rows(path) if suffix == ".jsonl" else _csv_rows(path)
    return itertools.islice(rows, limit)


def check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise IngestError(f"limit {limit}: at least one row must be read; give a positive number or null")


def source_name(path: str) -> str:
    """What rows record as their source: the file's name, without its folder, or the data set."""
    return path if path.startswith(HUB_PREFIX) else Path(path).name


def open_source(path: str) -> BinaryIO:
    """Opens a file for reading bytes. Raises IngestError for what the system refuses."""
    try:
        return Path(path).open("rb")
    except FileNotFoundError as error:
        raise IngestError(f"{path}: no such file; check the path (it is relative to the current folder)") from error
    except IsADirectoryError as error:
        raise IngestError(f"{path}: is a folder; name a file in it") from error
    except (OSError, ValueError) as error:
        raise IngestError(f"{path}: cannot be opened: {error}") from error


def unpacked(path: str, file: BinaryIO) -> BinaryIO | gzip.GzipFile:
    """The bytes of an open file, decompressed where they are gzip; what is damaged raises GZIP_ERRORS when read.

    Raises IngestError where `path` ends in .gz and the file is not gzip.
    """
    packed = file.read(2) == GZIP_MAGIC
    file.seek(0)
    if path.lower().endswith(".gz") and not packed:
        raise IngestError(f"{path}: is not gzip (empty or damaged); download or compress it again")
    return gzip.GzipFile(fileobj=file) if packed else file


def damaged_gzip(path: str, line: int) -> IngestError:
    where = f"{path}: the gzip stream is truncated or damaged after line {line}"
    return IngestError(f"{where}; download or compress it again")


def require_rows(path: str, kept: int, rejected: Sequence[Rejection]) -> None:
    """Raises IngestError for a source without a kept row."""
    if not kept:
        first = f" (first {rejected[0].where}: {rejected[0].reason})" if rejected else ""
        raise IngestError(f"{path}: no usable row: {len(rejected)} read, {len(rejected)} rejected{first}")


def require_usable(path: str, splits: Collection[Split], rejected: Sequence[Rejection]) -> None:
    """Raises IngestError for a source without a kept row, or without one in train. `splits`: of the kept rows."""
    require_rows(path, len(splits), rejected)
    if "train" not in splits:
        drawn = f"{len(splits)} kept, all drawn for dev and test"
        raise IngestError(f"{path}: no row in train: {drawn}; give more rows or a smaller heldout_share")


def read_lines(path: str) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, text with its line end). Only LF ends a line. Raises IngestError."""
    number = 0
    with open_source(path) as file:
        try:
            for number, line in enumerate(unpacked(path, file), 1):
                try:
                    yield number, line.removeprefix(BOM if number == 1 else b"").decode("utf-8")
                except UnicodeDecodeError as error:
                    reason = f"{path}:{number}: invalid UTF-8 at byte {error.start + 1} of the line"
                    raise IngestError(f"{reason}; save the file as UTF-8 or remove the line") from error
        except GZIP_ERRORS as error:
            raise damaged_gzip(path, number) from error


def read_text(path: str) -> str:
    """A whole small text file. Raises IngestError."""
    return "".join(line for _, line in read_lines(path))


def excerpt(value: Any) -> str:
    """The beginning of a refused value, safe to store: no NUL and no lone surrogates."""
    text = value if isinstance(value, str) else repr(value)
    return text[:EXCERPT].replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def rejection(row: SourceRow, problem: RowError, *names: str) -> Rejection:
    """The refused row; `names` are the fields that hold its text, the first that is there is shown."""
    shown = next((row.fields[name] for name in names if row.fields.get(name) is not None), "")
    return Rejection(row.where, str(problem), excerpt(shown))


def _json_rows(path: str) -> Iterator[SourceRow]:
    name = source_name(path)
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            what = f"{path}:{number}: invalid JSON: {error}"
            raise IngestError(f"{what}; repair or remove the line (is the file complete?)") from error
        where = f"{name}:{number}"
        if isinstance(value, dict):
            yield SourceRow(where, value)
        else:
            yield SourceRow(where, {}, f"expected an object with fields, found {type(value).__name__}")


def _csv_rows(path: str) -> Iterator[SourceRow]:
    name = source_name(path)
    csv.field_size_limit(CSV_FIELD_LIMIT)  # the module's default refuses a field of 131,073 characters
    reader = csv.reader((line for _, line in read_lines(path)), strict=True)
    begin = 1
    header: list[str] | None = None
    try:
        for values in reader:
            where, begin = f"{name}:{begin}", reader.line_num + 1
            if not values:
                continue
            if header is None:
                header = values
                if len(set(header)) < len(header):
                    raise IngestError(f"{path}: the header repeats a column name: {', '.join(header)}")
            elif len(values) != len(header):
                yield SourceRow(where, {}, f"{len(values)} fields where the header has {len(header)}")
            else:
                yield SourceRow(where, dict(zip(header, values, strict=True)))
    except csv.Error as error:
        raise IngestError(f"{path}:{begin}: invalid CSV: {error}; repair or remove the row") from error
    if header is None:
        raise IngestError(f"{path}: is empty; the first line of a CSV file names its columns")


def _hub_rows(spec: str, limit: int | None) -> Iterator[SourceRow]:
    name, *options = spec.removeprefix(HUB_PREFIX).split(":")
    identifier, at, commit = (name, "", "") if os.path.isdir(name) else name.partition("@")  # noqa: PTH112 (any text)
    if not identifier or (at and not commit) or len(options) > 2:
        raise IngestError(f"{spec}: write {HUB_FORM}, for example datasets:Anthropic/hh-rlhf")
    config, split = (*options, "", "")[:2]
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from datasets import get_dataset_config_names, load_dataset

    chosen: dict[str, Any] = {}
    try:
        if config:
            # Many data sets (hh-rlhf) keep their parts in folders and define no configurations.
            named = config in get_dataset_config_names(identifier, revision=commit or None)
            chosen = {"name": config} if named else {"data_dir": config}
        rows = load_dataset(
            identifier,
            revision=commit or None,
            split=split or "train",
            streaming=limit is not None,
            verification_mode="no_checks",
            **chosen,
        )
        for number, fields in enumerate(rows, 1):
            yield SourceRow(f"{spec}:{number}", dict(fields))
    except Exception as error:  # the library and what it stands on raise dozens of kinds
        what = f"{spec}: cannot be read: {type(error).__name__}: {error}"
        raise IngestError(
            f"{what}; check id, commit, configuration and split, and the network (HF_HUB_OFFLINE)"
        ) from error
