"""Dagster's and MLflow's user interfaces side by side, as child processes on one home."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from rlaif_assets.instance import DAGSTER_PORT, DAGSTER_URL
from rlaif_assets.settings import Profile
from rlaif_assets.store.moved_home import follow_home
from rlaif_assets.store.tracking import home_uri, make_database

HOST = "127.0.0.1"
UI_PROFILE = "ui_profile.yaml"
MLFLOW_OPTION = "--set tracking.ui_url=http://127.0.0.1:PORT"
START_SECONDS = 120.0
STOP_SECONDS = 10.0


class UiError(RuntimeError):
    """A user interface cannot be started, or stopped by itself."""


def serve(
    home: Path, tracking_uri: str | None, mlflow_url: str, port: int = DAGSTER_PORT, show: Callable[[str], None] = print
) -> None:
    """Runs both until Ctrl-C or SIGTERM, then stops them; raises UiError when one cannot start or ends by itself.

    `tracking_uri` None is the home's own database. MLflow's UI is started here only where `mlflow_url` names this
    machine; it then listens on loopback alone, as Dagster's does. DAGSTER_HOME must name the home already.
    """
    mlflow_port, here = check_addresses(mlflow_url, port)
    os.environ[DAGSTER_URL] = f"http://{HOST}:{port}"
    commands = [dagster_command(port)]
    if here:
        commands.append(mlflow_command(home, tracking_uri, mlflow_port))
    previous = signal.signal(signal.SIGTERM, _interrupt)
    children: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            children.append(subprocess.Popen(command, start_new_session=True))
        for name, address_port in (("Dagster", port), ("MLflow", mlflow_port)):
            if name == "Dagster" or here:
                _wait(address_port, children, name)
        show(f"Dagster  http://{HOST}:{port}")
        where = "" if here else f" (not started here: tracking.ui_url names neither {HOST} nor localhost)"
        show(f"MLflow   {mlflow_url}{where}")
        show("Ctrl-C stops both.")
        while all(child.poll() is None for child in children):
            time.sleep(0.5)
        raise UiError("one of the user interfaces ended by itself; its last lines above say why")
    finally:
        stop(children)
        signal.signal(signal.SIGTERM, previous)


def check_addresses(mlflow_url: str, port: int) -> tuple[int, bool]:
    """MLflow's port, and whether its UI is to be started here; raises UiError where an address cannot be used."""
    host, mlflow_port = parse_url(mlflow_url)
    here = host in (HOST, "localhost")
    check_port(port, "Dagster's UI", "--port")
    if here:
        if mlflow_port == port:
            raise UiError(f"port {port} is wanted for both UIs; choose another with --port or {MLFLOW_OPTION}")
        check_port(mlflow_port, "MLflow's UI", MLFLOW_OPTION)
    return mlflow_port, here


def parse_url(url: str) -> tuple[str, int]:
    """Host and port of MLflow's base URL; raises UiError for what is not one."""
    try:
        address = urlsplit(url)
        port = address.port
    except ValueError as error:
        raise UiError(f"tracking.ui_url={url}: {error}; write {MLFLOW_OPTION}") from error
    if address.scheme not in ("http", "https") or not address.hostname:
        raise UiError(f"tracking.ui_url={url}: not an http:// or https:// address; write {MLFLOW_OPTION}")
    return address.hostname, port or {"http": 80, "https": 443}[address.scheme]


def use_settings(home: Path, settings: Profile) -> None:
    """Children load their definitions with exactly these settings as the defaults, from `ui_profile.yaml` in the home.

    One file, not per process: of two UIs over one home the runs follow the settings of the one started last.
    """
    file = home / UI_PROFILE
    temporary = file.with_suffix(f".{os.getpid()}")
    temporary.write_text(yaml.safe_dump(settings.model_dump(), sort_keys=False), encoding="utf-8")
    temporary.replace(file)
    os.environ["RLAIF_PROFILE"] = str(file)


def dagster_command(port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "dagster", "dev", "-m", "rlaif_assets.definitions"),
        *("--host", HOST, "--port", str(port)),
    ]


def mlflow_command(home: Path, tracking_uri: str | None, port: int) -> list[str]:
    uri = tracking_uri or home_uri(home)
    if uri == home_uri(home):
        make_database(home)
        follow_home(home)
    return [
        *(sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--workers", "1"),
        *("--host", HOST, "--port", str(port)),
    ]


def check_port(port: int, name: str, option: str) -> None:
    """Raises UiError when something listens on the port already, or it may not be used."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UiError(
                f"port {port} for {name} is taken ({error.strerror}); choose another with {option}"
            ) from error


def stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends the children and what they started: SIGINT to their process groups, SIGKILL to what is left after 10 s."""
    for child in children:
        _signal(child, signal.SIGINT)
    deadline = time.monotonic() + STOP_SECONDS
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, deadline - time.monotonic()))
        _signal(child, signal.SIGKILL)
        child.wait()


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _wait(port: int, children: Sequence[subprocess.Popen[bytes]], name: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if any(child.poll() is not None for child in children):
            raise UiError(f"{name}'s UI or its neighbour did not start; the lines above say why")
        try:
            with socket.create_connection((HOST, port), timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise UiError(f"{name}'s UI does not answer on port {port} after {START_SECONDS:.0f} s")


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
