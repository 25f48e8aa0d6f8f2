import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from typer.testing import CliRunner

from rlaif_assets.cli import app
from rlaif_assets.instance import (
    BOOT_TAG,
    HOST_TAG,
    PID_TAG,
    STARTED_TAG,
    TAGGED_TAG,
    mark_dead_runs,
    prepare_home,
    process_tags,
    tag_run,
)

ROOT = Path(__file__).parent.parent


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    prepare_home(tmp_path / "home")
    with dg.DagsterInstance.get() as found:
        yield found


@dg.op
def nothing() -> None:
    pass


@dg.job
def some_job() -> None:
    nothing()


def holder(marker: Path, seconds: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.killed_run", str(marker), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(path: Path, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and path.read_text():
            return True
        time.sleep(0.1)
    return False


def test_a_killed_run_is_marked_and_its_slot_serves_the_next_without_a_daemon(
    instance: dg.DagsterInstance, tmp_path: Path
):
    killed = holder(tmp_path / "first", 600)
    assert wait_for(tmp_path / "first")
    run_id = (tmp_path / "first").read_text()
    alive = mark_dead_runs(instance)
    assert not alive.failed and not alive.freed
    assert "is alive in process" in alive.left[0]
    killed.kill()  # not waited for: a zombie is dead as well

    blocked = holder(tmp_path / "second", 0)
    try:
        assert not wait_for(tmp_path / "second", 5), "the slot was free: this test shows nothing"
        result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})
        assert result.exit_code == 0
        assert f"run {run_id[:8]}" in result.output
        assert "marked failed" in result.output
        assert "freed in pool gpu" in result.output
        run = instance.get_run_by_id(run_id)
        assert run is not None and run.status == dg.DagsterRunStatus.FAILURE
        assert wait_for(tmp_path / "second")
        assert blocked.wait(60) == 0
    finally:
        blocked.kill()
        blocked.wait()
        killed.wait()
    assert "nothing to repair" in CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"}).output


def make_run(instance: dg.DagsterInstance, tags: dict[str, str]) -> str:
    return instance.create_run_for_job(job_def=some_job, tags=tags).run_id


@pytest.mark.parametrize(
    ("changed", "dead"),
    [
        ({}, False),
        ({BOOT_TAG: "an earlier boot"}, True),
        ({STARTED_TAG: "1000.00"}, True),  # the pid is another process's now
        ({PID_TAG: str(2**22 + 1)}, True),  # above Linux's largest pid
        ({HOST_TAG: "elsewhere", PID_TAG: str(2**22 + 1)}, False),
        ({TAGGED_TAG: "the run that this one retries", PID_TAG: str(2**22 + 1)}, False),
    ],
)
def test_dead_is_told_from_host_boot_and_process(instance: dg.DagsterInstance, changed: dict[str, str], dead: bool):
    run_id = make_run(instance, process_tags() | changed)
    found = mark_dead_runs(instance)
    assert (len(found.failed), len(found.left)) == ((1, 0) if dead else (0, 1))
    run = instance.get_run_by_id(run_id)
    assert run is not None and run.is_finished == dead


def test_a_run_that_nobody_has_begun_is_left_alone(instance: dg.DagsterInstance):
    make_run(instance, {})
    found = mark_dead_runs(instance)
    assert not found.failed
    assert "not begun" in found.left[0]


@pytest.mark.parametrize("tags", [{}, {HOST_TAG: "any", TAGGED_TAG: "the run that this one retries"}])
def test_a_run_killed_before_its_first_step_is_known_from_dagsters_log(
    instance: dg.DagsterInstance, tags: dict[str, str]
):
    killed, alive = make_run(instance, tags), make_run(instance, tags)
    worker = subprocess.Popen([sys.executable, "-c", ""])
    worker.wait()
    for run_id, pid in ((killed, worker.pid), (alive, os.getpid())):
        report(instance, run_id, dg.DagsterEventType.PIPELINE_STARTING)
        run = instance.get_run_by_id(run_id)
        assert run is not None
        instance.report_engine_event("Started process for run.", run, EngineEventData.in_process(pid))
    found = mark_dead_runs(instance)
    assert [text[:12] for text in found.failed] == [f"run {killed[:8]}"]
    assert [text[:12] for text in found.left] == [f"run {alive[:8]}"]


def test_a_launched_run_that_no_process_begins_is_dead_after_a_while(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
):
    report(instance, make_run(instance, {}), dg.DagsterEventType.PIPELINE_STARTING)
    assert not mark_dead_runs(instance).failed
    monkeypatch.setattr("rlaif_assets.instance.START_SECONDS", -1.0)
    assert "no process had begun it" in mark_dead_runs(instance).failed[0]


def report(instance: dg.DagsterInstance, run_id: str, kind: dg.DagsterEventType) -> None:
    instance.report_dagster_event(dg.DagsterEvent(kind.value, some_job.name), run_id)


def test_a_retried_run_gets_the_tags_of_its_own_process(instance: dg.DagsterInstance):
    run_id = make_run(instance, process_tags("the run that this one retries") | {PID_TAG: str(2**22 + 1)})
    tag_run(instance, run_id)
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert (run.tags[PID_TAG], run.tags[TAGGED_TAG]) == (str(os.getpid()), run_id)
    assert not mark_dead_runs(instance).failed


def test_slots_of_a_run_that_ended_are_freed(instance: dg.DagsterInstance):
    run_id = make_run(instance, process_tags())
    storage = instance.event_log_storage
    storage.initialize_concurrency_limit_to_default("gpu")
    assert storage.claim_concurrency_slot("gpu", run_id, "step").is_claimed
    run = instance.get_run_by_id(run_id)
    assert run is not None
    assert not mark_dead_runs(instance).freed
    instance.report_run_failed(run)
    assert mark_dead_runs(instance).freed == [f"slots of run {run_id[:8]} freed in pool gpu"]
    assert not storage.get_concurrency_run_ids()
