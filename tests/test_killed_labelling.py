"""Labelling runs that are killed at random moments, and two at once: nothing is lost, nothing is there twice."""

import json
import multiprocessing
import random
import shutil
import time
from collections import Counter
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from rlaif_assets.store.judgements import FOLDER
from rlaif_assets.store.lineage import verify
from rlaif_assets.store.warehouse import Warehouse
from tests.homes import Home, failure
from tests.killed_labelling import BATCH, label_home
from tests.preference_homes import labels_of, make_preference_home, snapshot

PAIRS = 300
BATCHES = 2 * PAIRS // BATCH
KILLS_WHILE_JUDGING, KILLS_AFTERWARDS = 24, 6
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests.killed_labelling"])


def start(folder: Path, model: Path, log: Path, batches: int | None = None) -> ForkServerProcess:
    process = FORKSERVER.Process(target=label_home, args=(folder, model, log, batches))
    process.start()
    return process


def finish(folder: Path, model: Path, log: Path) -> None:
    process = start(folder, model, log)
    process.join()
    assert process.exitcode == 0


def asked(log: Path) -> list[list[str]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def wait_for_batches(process: ForkServerProcess, log: Path, count: int) -> None:
    while len(asked(log)) < count:
        assert process.exitcode is None, "the run ended before it had asked so much"
        time.sleep(0.001)


def committed(folder: Path) -> Counter[str]:
    """How often each judgement is in the table or in a file that waits."""
    import pyarrow.parquet as pq

    found: Counter[str] = Counter()
    for part in (folder / FOLDER).glob("*.parquet"):
        found.update(pq.ParquetFile(part).read(["judgement_id"])["judgement_id"].to_pylist())
    with Warehouse(folder).connection(read_only=True) as connection:
        in_table = Counter(row[0] for row in connection.execute("SELECT judgement_id FROM judgements").fetchall())
    assert max(in_table.values(), default=1) == 1, "a judgement is in the table twice"
    return found | in_table


def copy(home: Home, model: Path, folder: Path) -> Home:
    shutil.copytree(home.folder, folder)
    return Home(folder, model)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Home:
    home = make_preference_home(tmp_path_factory.mktemp("unlabelled") / "home", model, PAIRS)
    sources = home.run(["judging_constitution", "human_verdicts", "feedback_model"])
    assert sources.success, failure(sources)
    return home


@pytest.fixture(scope="module")
def undisturbed(unlabelled: Home, model: Path) -> tuple[Home, float]:
    """Labelled in one go, and the seconds from the last batch to the end of its process."""
    folder = unlabelled.folder.with_name("undisturbed")
    home, log = copy(unlabelled, model, folder), folder.with_suffix(".log")
    finish(folder, model, log)
    seconds = time.time() - log.stat().st_mtime
    assert len(asked(log)) == BATCHES
    return home, seconds


def test_killed_at_random_moments_nothing_is_lost_or_twice_and_one_batch_is_redone(
    unlabelled: Home, undisturbed: tuple[Home, float], model: Path, tmp_path: Path
) -> None:
    draw = random.Random(20261125)
    home, log = copy(unlabelled, model, tmp_path / "home"), tmp_path / "asked"
    before: Counter[str] = Counter()
    for _ in range(KILLS_WHILE_JUDGING):
        batches = draw.randint(0, 3)
        process = start(home.folder, model, log, batches + 1)
        wait_for_batches(process, log, len(asked(log)) + batches)
        time.sleep(draw.uniform(0, 0.05 if batches else 2))
        process.kill()
        process.join()
        assert process.exitcode == -9
        now = committed(home.folder)
        assert before.keys() <= now.keys()
        questions = {question for batch in asked(log) for question in batch}
        assert len(questions) - len(now) <= BATCH
        before = now
    assert 0 < len(before) < 2 * PAIRS
    for number in range(KILLS_AFTERWARDS):
        _kill_afterwards(copy(home, model, tmp_path / f"{number}"), log, model, undisturbed, draw)
    finish(home.folder, model, log)
    _check_equal(home, undisturbed[0])
    times = Counter(question for batch in asked(log) for question in batch)
    assert len(times) == 2 * PAIRS
    assert sum(times.values()) - len(times) <= KILLS_WHILE_JUDGING * BATCH


def _kill_afterwards(home: Home, log: Path, model: Path, undisturbed: tuple[Home, float], draw: random.Random) -> None:
    """All was asked: the judgements are moved into the table, labels are made, audited and published."""
    mine = home.folder.with_suffix(".log")
    left = (2 * PAIRS - len(committed(home.folder)) + BATCH - 1) // BATCH
    process = start(home.folder, model, mine)
    wait_for_batches(process, mine, left)
    time.sleep(draw.uniform(0, undisturbed[1]))
    process.kill()
    process.join()
    assert len(committed(home.folder)) >= 2 * PAIRS - BATCH
    finish(home.folder, model, mine)
    assert len(asked(mine)) <= left + 1
    _check_equal(home, undisturbed[0])


def _check_equal(home: Home, undisturbed: Home) -> None:
    assert snapshot(home).snapshot_id == snapshot(undisturbed).snapshot_id
    assert labels_of(home) == labels_of(undisturbed)
    assert verify(home.warehouse, snapshot(home).snapshot_id) == []
    assert committed(home.folder) == committed(undisturbed.folder)
    assert not list((home.folder / FOLDER).iterdir())


def test_two_runs_at_once_make_one_set_of_judgements_and_labels(
    unlabelled: Home, undisturbed: tuple[Home, float], model: Path, tmp_path: Path
) -> None:
    home = copy(unlabelled, model, tmp_path / "home")
    processes = [start(home.folder, model, tmp_path / f"{number}.log") for number in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    _check_equal(home, undisturbed[0])
    assert len(home.warehouse.list("harmlessness_preferences")) == 1
