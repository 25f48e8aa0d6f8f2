"""Hashes that identify rows, texts, settings and weights, and the random draws made from them.

Standard library only. Everything here is a pure function of its arguments (and of the files it reads): no process state,
no hash seed, no clock. What is kept under these hashes belongs to `warehouse` and `checkpoint_files`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
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
PATH_KEYS = frozenset({"_name_or_path", "name_or_path"})


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, floats as `repr`, tuples as lists, Decimal as the nearest float.

    Raises TypeError for anything that is not JSON (objects, sets, bytes).
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON form: {value!r}")


def sha256_text(text: str) -> str:
    """64 hex digits of the text's UTF-8 bytes. Lone surrogates are hashed too (they cannot be stored)."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def row_id(kind: str, *parts: Any) -> str:
    """32 hex digits that depend on the kind and the parts alone: the same text has the same id in every run."""
    return sha256_text(canonical_json([kind, list(parts)]))[:32]


def draw_seed(row_id: str, seed: int, purpose: str, round: int = 0) -> int:
    """A seed in [0, 2**63) for one draw on one row: the same in any batch and any order."""
    digest = hashlib.sha256(canonical_json([row_id, seed, purpose, round]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


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
    """64 hex digits over the names and contents of a model folder's weight, config and tokenizer files.

    Other files (README, measurements, trainer state) do not count, nor do the paths that transformers writes into its
    JSON files: a copy of a folder has its original's fingerprint. Raises FileNotFoundError when there is none to hash.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and is_model_file(path.name))
    if not files:
        raise FileNotFoundError(f"{folder} holds no model files (config.json, *.safetensors, tokenizer.json)")
    return sha256_text(canonical_json([[path.name, _model_file_sha256(path)] for path in files]))


def _model_file_sha256(path: Path) -> str:
    """Bytes as they are, except that a JSON file which names a folder is hashed without that name."""
    if path.name in ("config.json", "tokenizer_config.json"):
        text = path.read_text(encoding="utf-8")
        if any(f'"{key}"' in text for key in PATH_KEYS):
            values = {key: value for key, value in json.loads(text).items() if key not in PATH_KEYS}
            return sha256_text(canonical_json(values))
    return file_sha256(path)


def content_hash(tables: Mapping[str, Iterable[Mapping[str, Any]]]) -> str:
    """64 hex digits over the rows of all tables, whatever their order. `snapshot_id` and `position` do not count.

    Every row counts, duplicates too; an empty table equals an absent one.
    """
    digest = hashlib.sha256()
    for table in sorted(tables):
        rows = sorted(
            canonical_json({name: value for name, value in row.items() if name not in UNHASHED_COLUMNS})
            for row in tables[table]
        )
        if rows:
            digest.update(canonical_json([table, len(rows)]).encode() + b"\n")
        for row in rows:
            digest.update(row.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
