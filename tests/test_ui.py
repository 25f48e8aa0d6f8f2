import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import dagster as dg
import psutil
import pytest
from typer.testing import CliRunner

from rlaif_assets import ui
from rlaif_assets.cli import app
from rlaif_assets.instance import prepare_home, process_tags
from tests.homes import start_command
from tests.test_doctor import some_job

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as found:
        found.bind((ui.HOST, 0))
        return found.getsockname()[1]


def test_a_taken_port_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with socket.socket() as taken:
        taken.bind((ui.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words in (
            ["--port", str(port)],
            ["--port", str(free_port()), "--set", f"tracking.ui_url=http://127.0.0.1:{port}"],
        ):
            result = CliRunner().invoke(app, ["ui", *words], env={"COLUMNS": "200"})
            assert result.exit_code == 1
            assert f"port {port}" in result.output and "is taken" in result.output


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("127.0.0.1:5001", "not an http:// or https:// address"),
        ("localhost", "not an http:// or https:// address"),
        ("http://", "not an http:// or https:// address"),
        ("http://127.0.0.1:abc", "abc"),
        ("http://127.0.0.1:99999", "Port out of range"),
    ],
)
def test_an_address_that_is_none_is_a_clear_error(url: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RLAIF_PROFILE", "pocket")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    result = CliRunner().invoke(app, ["ui", "--set", f"tracking.ui_url={url}"], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert f"tracking.ui_url={url}: " in result.output and told in result.output
    assert "not foreseen" not in result.output


def test_one_port_for_both_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RLAIF_PROFILE", "pocket")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    port = free_port()
    words = ["--port", str(port), "--set", f"tracking.ui_url=http://localhost:{port}/"]
    result = CliRunner().invoke(app, ["ui", *words], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert f"port {port} is wanted for both" in result.output


def test_a_refused_ui_leaves_the_running_ones_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RLAIF_PROFILE", "pocket")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    with socket.socket() as taken:
        taken.bind((ui.HOST, 0))
        taken.listen()
        words = ["ui", "--port", str(taken.getsockname()[1]), "--set", "red_team_prompts.limit=7"]
        assert CliRunner().invoke(app, words).exit_code == 1
    assert not (tmp_path / "home").exists()


def test_live_runs_are_told_before_the_interfaces_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RLAIF_PROFILE", "pocket")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setattr(ui, "serve", lambda *_: None)
    prepare_home(tmp_path)
    with dg.DagsterInstance.get() as instance:
        run = instance.create_run_for_job(some_job, tags=process_tags(), status=dg.DagsterRunStatus.STARTED)
    result = CliRunner().invoke(app, ["ui"], env={"COLUMNS": "200"})
    assert f"run {run.run_id[:8]} (some_job) is alive in process {os.getpid()}" in result.output


def test_dagster_loads_the_settings_that_the_command_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RLAIF_PROFILE", "pocket")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setattr(ui, "serve", lambda *_: None)
    words = ["--home", str(tmp_path), "--set", "tracking.ui_url=http://127.0.0.1:5999", "--set", "ppo_policy.seed=7"]
    result = CliRunner().invoke(app, ["ui", *words], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    script = (
        "from rlaif_assets.assets.configuration import PpoPolicyConfig as Config;"
        "from rlaif_assets.resources import Tracking; print(Tracking().ui_url, Config().seed)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["http://127.0.0.1:5999", "7"]


def test_children_that_ignore_ctrl_c_are_stopped_with_what_they_started(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ui, "STOP_SECONDS", 0.5)
    script = "trap '' INT; sleep 300 & echo $!; wait; wait"
    child = subprocess.Popen(["sh", "-c", script], start_new_session=True, stdout=subprocess.PIPE)
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    ui.stop([child])
    assert child.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _runs(grandchild):
        time.sleep(0.05)
    assert not _runs(grandchild)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_both_interfaces_answer_until_they_are_stopped(tmp_path: Path):
    port, mlflow_port = free_port(), free_port()
    words = ["--home", str(tmp_path), "--port", str(port), "--set", f"tracking.ui_url=http://127.0.0.1:{mlflow_port}"]
    process = start_command("ui", *words)
    try:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        assert f"Dagster  http://127.0.0.1:{port}" in "".join(lines)
        for child in psutil.Process(process.pid).children():
            assert child.environ()["RLAIF_DAGSTER_URL"] == f"http://127.0.0.1:{port}"  # links lead here
        for found in (port, mlflow_port):
            with urllib.request.urlopen(f"http://127.0.0.1:{found}", timeout=30) as answer:
                assert answer.status == 200
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    for found in (port, mlflow_port):
        ui.check_port(found, "the UI that was stopped", "")
