"""Killed runs go on after the last finished asset; a copied home stands on its own."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from rlaif_assets.store.lineage import ancestry, verify
from rlaif_assets.store.warehouse import Warehouse
from tests.homes import SMALL, Home

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Killed:
    """A home whose first two runs were killed, and the output of the third, which ended."""

    folder: Path
    options: list[str]
    finished: tuple[set[str], set[str]]  # assets that were current when the first and the second run were dead
    output: str


def start(folder: Path, options: list[str]) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "rlaif_assets.cli", "run", "--profile", "pocket", "--home", str(folder), *options]
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(folder: Path, options: list[str]) -> str:
    process = start(folder, options)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def kill_after(asset: str, folder: Path, options: list[str], seen: Callable[[], bool] = lambda: True) -> None:
    """Kills the run once it has told that the asset is made and `seen` is true; it must not have ended by then.

    The lines are read, not the warehouse: who asks that all the time holds its lock.
    """
    process = start(folder, options)
    assert process.stdout is not None
    try:
        lines = ""
        while f"{asset} " not in lines:
            line = process.stdout.readline()
            assert line, f"the run ended before {asset} was made:\n{lines}"
            lines += line
        while not seen():
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def finished(folder: Path, assets: list[str]) -> set[str]:
    if not (folder / "warehouse.duckdb").exists():
        return set()
    warehouse = Warehouse(folder)
    return {asset for asset in assets if warehouse.current(asset)}


def made(output: str) -> set[str]:
    return {line.split()[0] for line in output.splitlines() if " made in " in line}


def reused(output: str) -> set[str]:
    return {line.split()[0] for line in output.splitlines() if " reused in " in line}


@pytest.fixture(scope="module")
def killed(home: Home, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """Killed first beside the publication of rows, then while weights are being made."""
    folder = tmp_path_factory.mktemp("killed") / "home"
    settings = [*SMALL, f"base_model.source={model}", f"feedback_model.source={model}"]
    options = [word for setting in settings for word in ("--set", setting)]
    assets = sorted(home.first)
    kill_after("revised_responses", folder, options)
    first = finished(folder, assets)
    left = set((folder / "work").glob("*"))
    kill_after("harmlessness_preferences", folder, options, lambda: bool(set((folder / "work").glob("*")) - left))
    second = finished(folder, assets)
    return Killed(folder, options, (first, second), finish(folder, options))


def test_a_killed_run_goes_on_after_its_last_finished_asset(killed: Killed) -> None:
    first, second = killed.finished
    assert "revised_responses" in first and "ppo_policy" not in second
    assert first < second
    assert reused(killed.output) >= second
    assert made(killed.output) & second == set()
    assert "ppo_policy" in made(killed.output)


def test_it_ends_with_the_ids_and_content_of_an_undisturbed_run(killed: Killed, home: Home) -> None:
    warehouse = Warehouse(killed.folder)
    found = {asset: record for asset in home.first if (record := warehouse.current(asset))}
    assert {asset: record.snapshot_id for asset, record in found.items()} == home.first
    for asset, record in found.items():
        assert record.content_hash == home.warehouse.get(home.first[asset]).content_hash
        assert len([one for one in warehouse.list(asset) if one.key == record.key]) == 1
        assert verify(warehouse, record.snapshot_id) == []


def test_the_killed_runs_are_failed_and_no_slot_is_held(killed: Killed) -> None:
    assert killed.output.count("unfinished weights of a dead process removed") == 1
    assert killed.output.count("marked failed") == 1  # the first was marked by the second, which was killed later
    with dg.DagsterInstance.from_config(str(killed.folder)) as instance:
        statuses = [run.status for run in instance.get_runs()]  # the newest first
        assert statuses == [
            dg.DagsterRunStatus.SUCCESS,
            dg.DagsterRunStatus.FAILURE,
            dg.DagsterRunStatus.FAILURE,
        ]
        storage = instance.event_log_storage
        assert not storage.get_concurrency_run_ids()
        assert storage.get_concurrency_info("gpu").active_slot_count == 0


def test_nothing_half_made_is_left(killed: Killed) -> None:
    assert list((killed.folder / "work").iterdir()) == []


def test_a_copied_home_verifies_and_reuses_everything_when_the_original_is_gone(killed: Killed, home: Home) -> None:
    """The last test of this file: it deletes the home that the others look at."""
    copied = killed.folder.with_name("elsewhere") / "copy"
    shutil.copytree(killed.folder, copied)
    shutil.rmtree(killed.folder)
    warehouse = Warehouse(copied)
    evaluation = warehouse.current("policy_evaluation")
    assert evaluation is not None
    for record in ancestry(warehouse, evaluation.snapshot_id):
        assert verify(warehouse, record.snapshot_id) == []
    output = finish(copied, killed.options)
    assert reused(output) == home.first.keys()
    assert made(output) == set()
    assert not killed.folder.exists()
    assert {asset: record.snapshot_id for asset in home.first if (record := warehouse.current(asset))} == home.first
