"""The warehouse: what is published is read, under concurrency, kills and bad values."""

import dataclasses
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import filelock
import pytest

from rlaif_assets import records
from rlaif_assets.records import Rejection
from rlaif_assets.store.checkpoint_files import adopt_folder, new_work_folder
from rlaif_assets.store.columns import schema
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.lineage import ancestry, verify
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse, snapshot_key

WRITER = """
import sys
from pathlib import Path
from rlaif_assets.store import warehouse as module
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse

insert = module.insert

def insert_and_tell(connection, table, columns):
    print("insert", table, flush=True)
    insert(connection, table, columns)

module.insert = insert_and_tell
home, name, first, last, size = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
warehouse = Warehouse(home)
print("ready", flush=True)
for i in range(first, last):
    rows = [{"row_id": f"{name}-{i}-{j}", "role": "train", "source": "x" * 50} for j in range(size)]
    record = warehouse.publish(SnapshotRecord(asset=name, key=f"{name}-{i}"), {"training_rows": rows})
    print("published", record.snapshot_id, flush=True)
"""


def prompt(number: int, text: str = "hello") -> dict[str, Any]:
    return {
        "prompt_id": f"p{number}",
        "messages": ({"role": "user", "content": text},),
        "split": "train",
        "kind": "harmless",
        "source": "test",
    }


def record(asset: str = "red_team_prompts", **fields: Any) -> SnapshotRecord:
    return SnapshotRecord(**{"asset": asset, "key": snapshot_key(asset, {}, {}, 1), **fields})


def tamper(home: Path, statement: str) -> None:
    with duckdb.connect(str(home / "warehouse.duckdb")) as connection:
        connection.execute(statement)


def checkpoint(home: Path, contents: bytes = b"weights") -> str:
    folder = new_work_folder(home)
    (folder / "model.safetensors").write_bytes(contents)
    (folder / "config.json").write_text("{}")
    return adopt_folder(folder, home, "ppo_policy")


def test_columns_are_the_fields_of_the_records() -> None:
    classes = {
        "prompts": records.Prompt,
        "critique_principles": records.CritiquePrinciple,
        "critique_examples": records.CritiqueExample,
        "judging_principles": records.JudgingPrinciple,
        "judging_examples": records.JudgingExample,
        "comparisons": records.Comparison,
        "community_answers": records.CommunityAnswer,
        "community_pairs": records.CommunityPair,
        "revisions": records.Revision,
        "answers": records.Answer,
        "pairs": records.Pair,
        "labels": records.Label,
        "human_verdicts": records.HumanVerdict,
        "label_changes": records.LabelChange,
        "label_flips": records.LabelFlip,
        "evaluation_answers": records.EvaluationAnswer,
        "evaluation_rates": records.EvaluationRate,
        "rejected_rows": records.Rejection,
    }
    for table, kind in classes.items():
        assert list(schema()[table])[2:] == [field.name for field in dataclasses.fields(kind)], table
    assert list(schema()["judgements"]) == [field.name for field in dataclasses.fields(records.Judgement)]
    assert set(schema()["snapshots"]) - {"position"} == {field.name for field in dataclasses.fields(SnapshotRecord)}
    assert all(list(columns)[:2] == ["snapshot_id", "position"] for t, columns in schema().items() if t in classes)


def test_what_is_published_is_read(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "new" / "home")
    given = [prompt(2, "naïve \u202e\u0645\u0631 \u200b 😀 \x00\n\"'"), prompt(1)]
    settings, inputs = {"limit": None, "share": 0.2}, {"base_model": "b" * 32}
    published = warehouse.publish(
        record(settings=settings, inputs=inputs, metrics={"loss": float("nan"), "n": 3}, seconds=1.5, git_dirty=False),
        {"prompts": given, "pairs": []},
        [Rejection("file.jsonl:3", "not UTF-8", "bad \udcff")],
    )
    assert [row["prompt_id"] for row in warehouse.rows("prompts", published.snapshot_id)] == ["p2", "p1"]
    first = warehouse.rows("prompts", published.snapshot_id, limit=1)
    assert first == [{**given[0], "messages": list(given[0]["messages"]), "category": None, "intent": None}]
    assert warehouse.get(published.snapshot_id) == published
    assert published.metrics == {"loss": "nan", "n": 3}
    assert (published.settings, published.inputs) == (settings, inputs)
    assert published.row_counts == {"prompts": 2, "rejected_rows": 1} == warehouse.counts(published.snapshot_id)
    assert warehouse.rows("rejected_rows", published.snapshot_id) == [
        {"where": "file.jsonl:3", "reason": "not UTF-8", "text": "bad \\udcff"}
    ]
    assert verify(warehouse, published.snapshot_id) == []
    assert warehouse.rows("prompts", "0" * 32) == []


def test_rows_are_counted_and_averaged_by_a_column(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    rows = [{"prompt_id": "p", "update": i // 2, "score": score} for i, score in enumerate((1.0, 2.0, None, 5.0, 7.0))]
    snapshot_id = warehouse.publish(record("ppo_policy"), {"rollouts": rows}).snapshot_id
    warehouse.publish(record("ppo_policy", key="other"), {"rollouts": rows})
    found = warehouse.grouped("rollouts", snapshot_id, "update", means=("score", "kl"))
    assert [list(row.values()) for row in found] == [[0, 2, 1.5, None], [1, 2, 5.0, None], [2, 1, 7.0, None]]
    with pytest.raises(StoreError, match=r"rollouts has no column 'scroe'.*score"):
        warehouse.grouped("rollouts", snapshot_id, "update", means=("scroe",))


def test_numbers_come_back_exactly(tmp_path: Path) -> None:
    import numpy as np

    warehouse = Warehouse(tmp_path)
    values = [0.1, Decimal("0.1"), 1, np.float32(0.1), -0.0, 5e-324, 1e308, float("inf"), None]
    rows = [{"update": 2**63 - 1, "score": value, "tokens": np.int64(4)} for value in values]
    done = warehouse.publish(record(), {"rollouts": rows})
    read = warehouse.rows("rollouts", done.snapshot_id)
    assert [repr(row["score"]) for row in read] == [repr(None if value is None else float(value)) for value in values]
    assert {(row["update"], row["tokens"]) for row in read} == {(2**63 - 1, 4)}
    assert verify(warehouse, done.snapshot_id) == []


@pytest.mark.parametrize(
    ("table", "row", "message"),
    [
        ("rolouts", {}, "no table 'rolouts': did you mean rollouts"),
        ("snapshots", {}, "no table 'snapshots'"),
        ('x"; DROP TABLE prompts; --', {}, "no table"),
        ("rollouts", {"scor": 1.0}, "rollouts, row 0: no column 'scor': did you mean score"),
        ("rollouts", {"score": "1"}, r"row 0, column score \(DOUBLE\): expected a number, found '1'"),
        ("rollouts", {"tokens": 1.0}, "column tokens .*whole number"),
        ("rollouts", {"tokens": True}, "column tokens .*whole number"),
        ("rollouts", {"tokens": 2**63}, "column tokens .*64 bits"),
        ("rollouts", {"text": "\ud800"}, "column text .*surrogates not allowed"),
        ("rollouts", {"text": b"x"}, "column text .*expected text"),
        ("verdicts", {"passed": 1}, "column passed .*true or false"),
        ("prompts", {"messages": [float("nan")]}, "column messages .*NaN"),
        ("rejected_rows", {}, "`rejected` argument"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(tmp_path: Path, table: str, row: dict[str, Any], message: str) -> None:
    warehouse = Warehouse(tmp_path)
    with pytest.raises(StoreError, match=message):
        warehouse.publish(record(), {table: [row]})
    assert warehouse.list() == []


def test_the_same_key_and_content_is_one_snapshot(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    first = warehouse.publish(record(seconds=1.0), {"prompts": [prompt(1), prompt(2)]})
    again = warehouse.publish(record(seconds=2.0, attempt=1), {"prompts": [prompt(2), prompt(1)]})
    assert again == first
    assert warehouse.counts(first.snapshot_id) == {"prompts": 2}
    other = warehouse.publish(record(), {"prompts": [prompt(1)]})
    assert other.key == first.key
    assert other.snapshot_id != first.snapshot_id
    assert warehouse.find("red_team_prompts", first.key) == other
    assert warehouse.list() == warehouse.list("red_team_prompts") == [first, other]
    assert warehouse.find("red_team_prompts", "0" * 64) is None
    assert warehouse.list("helpful_prompts") == []


def test_the_same_content_has_the_same_id_in_every_home(tmp_path: Path) -> None:
    ids = {Warehouse(tmp_path / name).publish(record(), {"prompts": [prompt(1)]}).snapshot_id for name in "ab"}
    assert ids == {"6f2a00f12057bb66bd61a0ccba09e6d6"}  # written down from a first run


def test_current_is_the_last_materialized(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    assert warehouse.current("red_team_prompts") is None
    a = warehouse.publish(record(), {"prompts": [prompt(1)]})
    b = warehouse.publish(record(), {"prompts": [prompt(2)]})
    warehouse.record_materialization(a.snapshot_id, "run-1", reused=False)
    warehouse.record_materialization(b.snapshot_id, "run-2", reused=False)
    assert warehouse.current("red_team_prompts") == b
    warehouse.record_materialization(a.snapshot_id, None, reused=True)
    assert warehouse.current("red_team_prompts") == a
    with pytest.raises(StoreError, match="no snapshot"):
        warehouse.record_materialization("0" * 32, None, reused=True)


def test_a_key_depends_on_every_part() -> None:
    keys = {
        snapshot_key("a", {}, {}, 1),
        snapshot_key("b", {}, {}, 1),
        snapshot_key("a", {"x": "1"}, {}, 1),
        snapshot_key("a", {}, {"x": "1"}, 1),
        snapshot_key("a", {}, {}, 2),
    }
    assert len(keys) == 5
    assert snapshot_key("a", {"x": "1", "y": "2"}, {}, 1) == snapshot_key("a", {"y": "2", "x": "1"}, {}, 1)


def test_weights_that_are_not_whole_are_not_found(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    old = warehouse.publish(record("ppo_policy", path=checkpoint(tmp_path, b"old")), {})
    new = warehouse.publish(record("ppo_policy", path=checkpoint(tmp_path, b"new")), {})
    assert warehouse.find("ppo_policy", new.key) == new
    weights = warehouse.weights(new) / "model.safetensors"
    weights.write_bytes(b"ne")
    assert warehouse.find("ppo_policy", new.key) == old
    with pytest.raises(StoreError, match="materialize ppo_policy again"):
        warehouse.weights(new)
    assert warehouse.publish(record("ppo_policy", path=checkpoint(tmp_path, b"new")), {}) == new
    assert warehouse.find("ppo_policy", new.key) == new
    with pytest.raises(StoreError, match="leads out of"):
        warehouse.publish(record("ppo_policy", path="../elsewhere"), {})
    with pytest.raises(StoreError, match="not a whole checkpoint"):
        warehouse.publish(record("ppo_policy", path="checkpoints/none"), {})


def test_verify_names_what_is_damaged(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    done = warehouse.publish(
        record("ppo_policy", path=checkpoint(tmp_path)), {"prompts": [prompt(i) for i in range(5)]}
    )
    assert verify(warehouse, done.snapshot_id) == []

    weights = warehouse.weights(done) / "model.safetensors"
    weights.write_bytes(b"Weights")  # as long as before: only the hash shows it
    assert warehouse.find("ppo_policy", done.key) == done
    (problem,) = verify(warehouse, done.snapshot_id)
    assert "model.safetensors has changed" in problem
    weights.write_bytes(b"weights")

    tamper(tmp_path, "DELETE FROM prompts WHERE position = 3")
    problems = verify(warehouse, done.snapshot_id)
    assert any("prompts: 1 of 5 rows are missing, at positions 3" in problem for problem in problems)


def test_verify_names_changed_added_and_rejected_rows(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    done = warehouse.publish(record(), {"prompts": [prompt(1)]}, [Rejection("a:1", "empty")])
    tamper(tmp_path, "UPDATE prompts SET source = 'other'")
    assert any("prompts: the rows' hash differs" in problem for problem in verify(warehouse, done.snapshot_id))
    tamper(tmp_path, "UPDATE prompts SET source = 'test'")
    assert verify(warehouse, done.snapshot_id) == []
    tamper(tmp_path, "INSERT INTO prompts SELECT * FROM prompts")
    assert any("twice, at positions 0" in problem for problem in verify(warehouse, done.snapshot_id))
    tamper(tmp_path, "DELETE FROM rejected_rows")
    assert any("rejected_rows: 1 of 1 rows are missing" in problem for problem in verify(warehouse, done.snapshot_id))


def test_a_copied_home_verifies_without_its_original(tmp_path: Path) -> None:
    home = tmp_path / "first"
    warehouse = Warehouse(home)
    source = warehouse.publish(record(), {"prompts": [prompt(1)]})
    policy = warehouse.publish(
        record("ppo_policy", inputs={"red_team_prompts": source.snapshot_id}, path=checkpoint(home)), {}
    )
    shutil.copytree(home, tmp_path / "second")
    shutil.rmtree(home)
    copy = Warehouse(tmp_path / "second")
    chain = ancestry(copy, policy.snapshot_id)
    assert [r.asset for r in chain] == ["red_team_prompts", "ppo_policy"]
    assert [verify(copy, r.snapshot_id) for r in chain] == [[], []]
    assert copy.find("ppo_policy", policy.key) == policy
    assert copy.weights(policy).is_relative_to(tmp_path / "second")
    # Nothing that is stored leads back to where it was written.
    assert str(home).encode() not in (tmp_path / "second" / "warehouse.duckdb").read_bytes()


def test_ancestry_lists_each_input_once_and_refuses_a_hole(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)

    def publish(asset: str, *inputs: SnapshotRecord) -> SnapshotRecord:
        return warehouse.publish(
            SnapshotRecord(asset=asset, key=asset, inputs={r.asset: r.snapshot_id for r in inputs}), {}
        )

    base = publish("base")
    left, right = publish("left", base), publish("right", base)
    top = publish("top", right, left)
    assert [r.asset for r in ancestry(warehouse, top.snapshot_id)] == ["base", "left", "right", "top"]
    hole = warehouse.publish(SnapshotRecord(asset="hole", key="hole", inputs={"gone": "f" * 32}), {})
    with pytest.raises(StoreError, match=r"no snapshot f{32} \(gone, read by hole"):
        ancestry(warehouse, hole.snapshot_id)


def test_a_lock_that_is_held_is_a_clear_error(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path, lock_timeout=0.1)
    with (
        filelock.FileLock(tmp_path / "warehouse.duckdb.lock"),
        pytest.raises(StoreError, match=r"has been locked for 0\.1 s"),
    ):
        warehouse.list()
    assert warehouse.list() == []


@pytest.mark.parametrize("read", [Warehouse.list, lambda w: w.publish(record(), {})])
def test_another_schema_version_is_refused(tmp_path: Path, read: Callable[[Warehouse], Any]) -> None:
    warehouse = Warehouse(tmp_path)
    warehouse.list()
    tamper(tmp_path, "UPDATE schema_version SET version = 99")
    with pytest.raises(StoreError, match="schema version 99, this program reads 4"):
        read(warehouse)
    assert filelock.FileLock(tmp_path / "warehouse.duckdb.lock").acquire(timeout=0)


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "warehouse.duckdb").write_text("not a database " * 1000)
    with pytest.raises(StoreError, match=r"warehouse\.duckdb"):
        Warehouse(tmp_path).list()


def test_threads_of_one_process_share_the_file(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    ids: list[str] = []

    def work(number: int) -> None:
        done = warehouse.publish(record(key=str(number % 2)), {"prompts": [prompt(number % 2)]})
        ids.append(done.snapshot_id)
        assert warehouse.counts(done.snapshot_id) == {"prompts": 1}

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 6
    assert sorted(set(ids)) == sorted(r.snapshot_id for r in warehouse.list())
    assert len(warehouse.list()) == 2


def start_writer(home: Path, name: str, first: int, last: int, size: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, str(home), name, str(first), str(last), str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    # Two writers of their own snapshots, and two that race for the same ones.
    writers = [start_writer(tmp_path, name, 0, 8, 50) for name in ("left", "right", "same", "same")]
    printed = [writer.communicate(timeout=120) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0, 0], [err for _, err in printed]
    published = [[line.split()[1] for line in out.splitlines() if line.startswith("published")] for out, _ in printed]
    assert published[2] == published[3]
    warehouse = Warehouse(tmp_path)
    for name in ("left", "right", "same"):
        found = warehouse.list(name)
        assert sorted(r.key for r in found) == [f"{name}-{i}" for i in range(8)]
        assert all(verify(warehouse, r.snapshot_id) == [] for r in found)
    assert {r.snapshot_id for r in warehouse.list()} == {one for ids in published for one in ids}


def test_a_killed_writer_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    """Kills a writer at many points of its work, tables' creation included; then an undisturbed one ends the work.

    A kill follows the n-th step that the writer tells of, so it falls into transactions however slow the machine is.
    """
    size, last = 400, 24
    committed: set[str] = set()
    for kill in range(12):
        writer = start_writer(tmp_path, "asset", 0, last, size)
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(1 if kill == 0 else 2 * kill)]
        time.sleep(0.003 * (kill % 4))
        writer.send_signal(signal.SIGKILL)
        rest, _ = writer.communicate()
        assert writer.returncode == -signal.SIGKILL
        # A line that the kill cut short is of no commit that we could name.
        told = [*lines, *(line for line in rest.splitlines(keepends=True) if line.endswith("\n"))]
        committed |= {line.split()[1] for line in told if line.startswith("published")}
        counts = row_counts(tmp_path)
        assert committed <= counts.keys()
        assert set(counts.values()) <= {size}
    assert committed, "no writer lived long enough to commit"
    assert start_writer(tmp_path, "asset", 0, last, size).wait(timeout=120) == 0
    warehouse, undisturbed = Warehouse(tmp_path), Warehouse(tmp_path / "undisturbed")
    assert start_writer(undisturbed.home, "asset", 0, last, size).wait(timeout=120) == 0
    identity = [(r.key, r.snapshot_id, r.content_hash, r.row_counts) for r in undisturbed.list()]
    assert [(r.key, r.snapshot_id, r.content_hash, r.row_counts) for r in warehouse.list()] == identity
    assert row_counts(tmp_path) == {snapshot_id: size for _, snapshot_id, _, _ in identity}


def row_counts(home: Path) -> dict[str, int]:
    """Rows by snapshot, from both sides: rows without a snapshot, and snapshots without their rows, show."""
    Warehouse(home).list()
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as connection:
        found = connection.execute(
            "SELECT coalesce(s.snapshot_id, 'no snapshot'), count(t.row_id)"
            " FROM snapshots s FULL JOIN training_rows t USING (snapshot_id) GROUP BY ALL"
        ).fetchall()
    assert len(found) == len(dict(found))
    return dict(found)


def test_a_failed_publish_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlaif_assets.store import warehouse as module

    warehouse = Warehouse(tmp_path)
    insert = module.insert

    def fail_at_snapshot(connection: Any, table: str, columns: Any) -> None:
        if table == "snapshots":
            raise OSError("disk full")
        insert(connection, table, columns)

    monkeypatch.setattr(module, "insert", fail_at_snapshot)
    with pytest.raises(OSError, match="disk full"):
        warehouse.publish(record(), {"prompts": [prompt(1)]})
    monkeypatch.undo()
    done = warehouse.publish(record(), {"prompts": [prompt(1)]})
    assert warehouse.counts(done.snapshot_id) == {"prompts": 1}


def test_a_hundred_thousand_rows_take_seconds(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    rows = [{"row_id": f"{i:032x}", "role": "train", "source": "ai"} for i in range(100_000)]
    start = time.monotonic()
    done = warehouse.publish(record(), {"training_rows": rows})
    assert warehouse.rows("training_rows", done.snapshot_id) == rows
    assert time.monotonic() - start < 30
