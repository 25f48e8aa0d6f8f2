"""The judgement store: committed batches, one row per judgement whatever happens, and labels that notice changes."""

import dataclasses
import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path

import duckdb
import pytest

from rlaif_assets.feedback.labels import make_labels
from rlaif_assets.records import Judgement
from rlaif_assets.store import judgements as module
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.judgements import JudgementStore, Seen, judgements_hash
from rlaif_assets.store.lineage import verify
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse
from tests.feedback.fakes import make_judgements

ROWS = [
    dataclasses.replace(row, question_id=f"q-{row.judgement_id}", seconds=0.5, created_at="2026-01-02T03:04:05")
    for row in make_judgements([(0.9, 0.6), (0.2, 0.3), (0.5, 0.7)])
]


def store(home: Path, log: list[str] | None = None) -> JudgementStore:
    return JudgementStore(Warehouse(home), log.append if log is not None else lambda line: None)


def ids(rows: Sequence[Judgement]) -> list[str]:
    return [row.judgement_id for row in rows]


def count(home: Path) -> int:
    with duckdb.connect(str(home / "warehouse.duckdb"), read_only=True) as connection:
        return connection.execute("SELECT count(*) FROM judgements").fetchall()[0][0]


def parts(home: Path) -> list[Path]:
    return sorted((home / module.FOLDER).glob("*.parquet"))


def test_what_is_committed_is_in_the_table_once_it_is_absorbed_and_comes_back_equal(tmp_path: Path) -> None:
    odd = dataclasses.replace(
        ROWS[0], judgement_id="odd", rationale="naïve \u202e😀 \x00\n\"'", method="votes", round=3
    )
    kept = store(tmp_path)
    kept.commit(ROWS[:4])
    kept.commit([odd])
    assert kept.fetch(ids(ROWS)) == {} and len(parts(tmp_path)) == 2
    assert store(tmp_path).absorb() == 5  # by another process, say
    assert kept.fetch([*ids(ROWS), "odd"]) == {row.judgement_id: row for row in [*ROWS[:4], odd]}
    assert parts(tmp_path) == [] and kept.absorb() == 0


def test_a_judgement_is_never_there_twice(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.commit(ROWS[:4])
    kept.commit(ROWS[2:])
    assert kept.absorb() == 6
    other = dataclasses.replace(ROWS[0], p_a=0.1)
    kept.commit([other, ROWS[1]])
    assert kept.absorb() == 0 and count(tmp_path) == 6
    assert kept.fetch([other.judgement_id])[other.judgement_id] == ROWS[0]  # the first answer stands


def test_a_crash_between_the_table_and_the_removal_of_the_files_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = store(tmp_path)
    kept.commit(ROWS)
    with monkeypatch.context() as patch:

        def die(path: Path, missing_ok: bool = False) -> None:
            raise KeyboardInterrupt

        patch.setattr(Path, "unlink", die)
        with pytest.raises(KeyboardInterrupt):
            kept.absorb()
    assert len(parts(tmp_path)) == 1 and count(tmp_path) == 6
    assert kept.absorb() == 0 and parts(tmp_path) == [] and count(tmp_path) == 6


@pytest.mark.parametrize("damage", ["truncated", "garbled", "empty", "other columns"])
def test_a_damaged_file_is_told_and_set_aside_and_stops_nothing(tmp_path: Path, damage: str) -> None:
    told: list[str] = []
    kept = store(tmp_path, told)
    kept.commit(ROWS[:2])
    bad = parts(tmp_path)[0]
    if damage == "other columns":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"judgement_id": ["a"]}), bad)
    else:
        data = bad.read_bytes()
        half = data[: len(data) // 2]
        bad.write_bytes({"truncated": half, "garbled": half + b"\xff" * len(half), "empty": b""}[damage])
    kept.commit(ROWS[2:])
    assert kept.absorb() == 4
    assert len(told) == 1 and bad.name in told[0] and "judged again" in told[0]
    assert [path.name for path in (tmp_path / module.FOLDER).iterdir()] == [bad.with_suffix(".damaged").name]
    kept.commit(ROWS[:2])
    assert kept.absorb() == 2 and len(told) == 1


def test_files_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PARTS", 2)
    kept = store(tmp_path)
    for row in ROWS[:5]:
        kept.commit([row])
    assert len(parts(tmp_path)) == 1 and count(tmp_path) == 4


def test_what_a_dead_process_was_writing_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.commit(ROWS)
    child = multiprocessing.get_context("spawn").Process(target=int)
    child.start()
    child.join()
    dead, living = (tmp_path / module.FOLDER / f"{pid}-{'0' * 32}.tmp" for pid in (child.pid, os.getpid()))
    dead.write_bytes(b"PAR1")
    living.write_bytes(b"PAR1")
    kept.absorb()
    assert not dead.exists() and living.exists()


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / module.FOLDER).write_text("")
    with pytest.raises(StoreError, match="a batch of judgements cannot be written"):
        store(tmp_path).commit(ROWS)


def test_the_newest_round_of_a_question_is_found(tmp_path: Path) -> None:
    again = [dataclasses.replace(ROWS[0], judgement_id=f"round-{n}", round=n, as_of="2026-02-01") for n in (1, 2)]
    kept = store(tmp_path)
    kept.commit([*ROWS, *again])
    kept.absorb()
    found = kept.newest([row.question_id for row in ROWS[:2]] + ["never asked"])
    assert found == {ROWS[0].question_id: again[1], ROWS[1].question_id: ROWS[1]}
    assert kept.newest([]) == {}


def test_what_pairs_were_judged_by_and_how_fast(tmp_path: Path) -> None:
    kept = store(tmp_path)
    assert kept.seen(["pair-0"]) == [] and kept.speed("judge") == (None, None)
    kept.commit(ROWS)
    kept.absorb()
    assert kept.seen(["pair-0"]) == [Seen("pair-0", "j0", "template", "judge")]
    assert kept.speed("judge") == (10.0, 0.5)
    assert kept.speed("another") == (10.0, None)


def absorb_in_a_process(home: Path, first: int, barrier: Barrier) -> None:
    kept = store(home)
    barrier.wait()
    for row in ROWS[first:] + ROWS[:first]:
        kept.commit([row])
        kept.absorb()


def test_two_processes_at_once_keep_every_judgement_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    processes = [spawn.Process(target=absorb_in_a_process, args=(tmp_path, first, barrier)) for first in (0, 3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert count(tmp_path) == 6 and parts(tmp_path) == []
    assert store(tmp_path).fetch(ids(ROWS)) == {row.judgement_id: row for row in ROWS}


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE judgements SET p_a = 0.5 WHERE judgement_id = 'pair-1-ab'", "have changed"),
        ("UPDATE judgements SET rationale = 'another' WHERE judgement_id = 'pair-1-ab'", "have changed"),
        ("DELETE FROM judgements WHERE judgement_id = 'pair-1-ab'", "judgement pair-1-ab of label"),
        ("UPDATE judgements SET created_at = ''", None),
    ],
)
def test_verify_notices_a_changed_or_deleted_judgement(tmp_path: Path, statement: str, told: str | None) -> None:
    kept = store(tmp_path)
    kept.commit(ROWS)
    kept.absorb()
    labels = make_labels(ROWS)
    rows = {"labels": [dataclasses.asdict(label) for label in labels]}
    snapshot = kept.warehouse.publish(SnapshotRecord(asset="harmlessness_preferences", key="k"), rows).snapshot_id
    assert verify(kept.warehouse, snapshot) == []
    with duckdb.connect(str(kept.warehouse.path)) as connection:
        connection.execute(statement)
    problems = verify(kept.warehouse, snapshot)
    if told is None:
        assert problems == []
    else:
        assert len(problems) == 1 and told in problems[0] and labels[1].label_id in problems[0]


def test_the_hash_is_over_answers_in_their_order() -> None:
    assert judgements_hash(ROWS[:2]) != judgements_hash(ROWS[1::-1])
    assert judgements_hash([dataclasses.replace(ROWS[0], seconds=9.0, dagster_run_id="r")]) == judgements_hash(ROWS[:1])
    assert judgements_hash([dataclasses.replace(ROWS[0], logprob_first=-0.5)]) != judgements_hash(ROWS[:1])
