"""Hashes that identify rows, texts, settings and weights, and the random draws made from them.

Standard library only. Everything here is a pure function of its arguments and of the files it reads: no hash seed, no
clock. What is kept under these hashes belongs to `warehouse` and `checkpoint_files`.
"""

import hashlib
import json
import json.encoder
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

MODEL_FILES = frozenset(
    {
        "adapter_config.json",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "score_normalisation.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
MODEL_SUFFIXES = (".safetensors", ".safetensors.index.json", ".model", ".tiktoken")
CHUNK = 1 << 20
UNHASHED_COLUMNS = frozenset({"snapshot_id", "position"})


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, floats as `repr`, tuples as lists, Decimal as the nearest float.

    Raises TypeError for anything that is not JSON (objects, sets, bytes).
    """
    return "".join(_PIECES(value, 0))


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON form: {value!r}")


def _make_pieces() -> Callable[[Any, int], Iterable[str]]:
    """What `json.JSONEncoder.iterencode` makes anew for each value: twice as slow for rows, of which there are many."""
    encoder = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return lambda value, level: encoder.iterencode(value)
    text = json.encoder.encode_basestring
    return make(None, encoder.default, text, None, ":", ",", encoder.sort_keys, encoder.skipkeys, encoder.allow_nan)


_PIECES = _make_pieces()


def sha256_text(text: str) -> str:
    """64 hex digits of the text's UTF-8 bytes. Lone surrogates are hashed too (they cannot be stored)."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def row_id(kind: str, *parts: Any) -> str:
    """32 hex digits that depend on the kind and the parts alone: the same text has the same id in every run."""
    return sha256_text(canonical_json([kind, list(parts)]))[:32]


def draw_seed(row_id: str, seed: int, purpose: str, round: int = 0) -> int:
    """A seed in [0, 2**63) for one draw on one row: the same in any batch and any order."""
    return draw_seeds(row_id, seed, [purpose], round)[0]


def draw_seeds(row_id: str, seed: int, purposes: Sequence[str], round: int = 0) -> list[int]:
    """`draw_seed` for several purposes."""
    row = hashlib.sha256(b"[" + _json_of(row_id))  # of canonical_json([row_id, seed, purpose, round])
    seeds: list[int] = []
    for purpose in purposes:
        digest = row.copy()
        digest.update(_draw_of(seed, purpose, round))
        seeds.append(int.from_bytes(digest.digest()[:8], "big") >> 1)
    return seeds


@lru_cache(maxsize=256)
def _json_of(row_id: str) -> bytes:
    return canonical_json(row_id).encode()


@lru_cache(maxsize=256)
def _draw_of(seed: int, purpose: str, round: int) -> bytes:
    return b"," + canonical_json([seed, purpose, round])[1:].encode()


def draw_unit(row_id: str, seed: int, purpose: str, round: int = 0) -> float:
    """A uniform number in [0, 1) with 53 random bits, for one draw on one row."""
    return (draw_seed(row_id, seed, purpose, round) >> 10) / float(1 << 53)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def is_model_file(name: str) -> bool:
    return name in MODEL_FILES or name.endswith(MODEL_SUFFIXES)


def folder_fingerprint(folder: Path) -> str:
    """64 hex digits over the names and bytes of a model folder's weight, config and tokenizer files.

    Other files (README, measurements, trainer state) do not count: a copy of a folder has its original's fingerprint.
    Raises FileNotFoundError when there is nothing to hash.
    """
    files = [path for path in folder.iterdir() if path.is_file() and is_model_file(path.name)]
    if not files:
        raise FileNotFoundError(f"{folder} holds no model files (config.json, *.safetensors, tokenizer.json)")
    return files_fingerprint({path.name: file_sha256(path) for path in files})


def files_fingerprint(hashes: Mapping[str, str]) -> str:
    """The fingerprint of a folder whose files have these sha256 hashes, by name."""
    return sha256_text(canonical_json(sorted(item for item in hashes.items() if is_model_file(item[0]))))


def table_hash(rows: Iterable[Mapping[str, Any]]) -> str:
    """64 hex digits over the rows of one table, whatever their order; duplicates count.

    `snapshot_id` and `position` do not count, nor does a column without a value: a column that a later schema adds
    leaves the hashes of older rows as they are.
    """
    digest = hashlib.sha256()
    for row in sorted(
        canonical_json({k: v for k, v in row.items() if v is not None and k not in UNHASHED_COLUMNS}) for row in rows
    ):
        digest.update(row.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def content_hash(tables: Mapping[str, Iterable[Mapping[str, Any]]], weights: str | None = None) -> str:
    """64 hex digits over the rows of all tables and, where there are weights, their folder's fingerprint."""
    return combine_hashes({table: table_hash(rows) for table, rows in tables.items()}, weights)


def combine_hashes(table_hashes: Mapping[str, str], weights: str | None) -> str:
    """The content hash of tables whose `table_hash` is known. An empty table equals an absent one."""
    filled = {table: value for table, value in table_hashes.items() if value != EMPTY}
    return sha256_text(canonical_json({"tables": filled, "weights": weights}))


EMPTY = table_hash([])
