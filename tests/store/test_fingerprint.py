"""Ids and draws: pinned values, and the same in other processes."""

import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from rlaif_assets.store.fingerprint import (
    canonical_json,
    content_hash,
    draw_seed,
    draw_unit,
    folder_fingerprint,
    row_id,
    table_hash,
)

PROGRAM = """
from rlaif_assets.store.fingerprint import *
rows = [{"a": {"x": 1.5, "y": [None, True]}, "b": "é"}, {"a": {}, "b": "z"}]
print(row_id("prompt", "é", ["x"], {"b": 1, "a": 2.0}), draw_seed("r", 3, "principle", 2), draw_unit("r", 3, "order"),
      content_hash({"prompts": rows, "pairs": rows[:1]}))
"""


def test_ids_are_pinned() -> None:
    # Written down from a first run: another value here orphans every stored row.
    assert row_id("prompt", "a") == "0fa1868a368a457e3d29b19d40e34925"
    assert draw_seed("a", 0, "x") == 554621016074517582
    assert draw_unit("a", 0, "x") == 0.060132131053410975


def test_ids_are_equal_in_processes_with_other_hash_seeds() -> None:
    def run(seed: str) -> str:
        env = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.run(
            [sys.executable, "-c", PROGRAM], env=env, check=True, capture_output=True, text=True
        ).stdout

    assert run("1") == run("2") == run("random")


def test_canonical_json_is_one_text_per_value() -> None:
    assert canonical_json({"b": (1, 2), "a": 0.1}) == '{"a":0.1,"b":[1,2]}'
    assert canonical_json(Decimal("0.1")) == canonical_json(0.1)
    assert canonical_json(1) != canonical_json(1.0) != canonical_json("1.0")
    with pytest.raises(TypeError, match="set has no canonical JSON form"):
        canonical_json({1, 2})


def test_parts_do_not_run_together() -> None:
    assert row_id("k", "ab", "c") != row_id("k", "a", "bc") != row_id("k", "abc")
    assert row_id("prompt", "a") != row_id("answer", "a")


def test_draws_are_uniform_and_depend_on_every_argument() -> None:
    units = [draw_unit(str(i), 0, "order") for i in range(4000)]
    assert all(0 <= unit < 1 for unit in units)
    assert abs(sum(units) / len(units) - 0.5) < 0.02
    seeds = {draw_seed("r", 0, "p"), draw_seed("r", 1, "p"), draw_seed("r", 0, "q"), draw_seed("r", 0, "p", 1)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_content_hash_ignores_order_position_and_empty_tables_but_no_row() -> None:
    a, b = {"id": "1", "x": 1.0, "position": 0}, {"id": "2", "x": None, "position": 1}
    assert table_hash([a, b]) == table_hash([{"id": "2", "snapshot_id": "s"}, {**a, "position": 9}])
    assert content_hash({"pairs": [a], "labels": []}) == content_hash({"pairs": [a]})
    assert table_hash([a, a]) != table_hash([a])
    assert table_hash([{**a, "x": 1.0000000000000002}]) != table_hash([a])
    assert content_hash({"pairs": [a]}) != content_hash({"answers": [a]})
    assert content_hash({"pairs": [a]}, weights="1") != content_hash({"pairs": [a]})


def test_folder_fingerprint_follows_model_files_alone(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="no model files"):
        folder_fingerprint(folder)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"abc")
    first = folder_fingerprint(folder)
    (folder / "README.md").write_text("words")
    assert folder_fingerprint(folder) == first
    (folder / "model.safetensors").write_bytes(b"abd")
    assert folder_fingerprint(folder) != first


def test_the_store_imports_nothing_heavy() -> None:
    program = (
        "import sys, rlaif_assets.store.warehouse, rlaif_assets.store.tracking, rlaif_assets.store.lineage;"
        "print([m for m in ('duckdb', 'pyarrow', 'mlflow', 'numpy', 'torch', 'dagster') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout == "[]\n"
