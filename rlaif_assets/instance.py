"""The Dagster instance of a home: making the home, saying who works on a run, and marking what died.

Light until a function is called: Dagster is imported inside. Which runs there are to start belongs to `pipeline`.
"""

import multiprocessing
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from rlaif_assets.devices import POOL, visible_gpus

if TYPE_CHECKING:
    from dagster import DagsterInstance, DagsterRun

HOST_TAG = "rlaif/host"
BOOT_TAG = "rlaif/boot_id"
PID_TAG = "rlaif/pid"
DAGSTER_PORT = 3000
DAGSTER_URL = "RLAIF_DAGSTER_URL"  # the environment's name for where Dagster's UI is, for links; `rlaif ui` sets it
STARTED_TAG = "rlaif/process_started"
TAGGED_TAG = "rlaif/tagged_run"
START_SECONDS = 300.0  # how long a launched run may take to begin, as in dagster.yaml
CLOCK_SECONDS = 5.0  # a process's start time is told from the boot time, which follows corrections of the clock
QUIET = {
    "DAGSTER_DISABLE_TELEMETRY": "yes",
    "DO_NOT_TRACK": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TRL_DISABLE_TELEMETRY": "1",
}


UNUSABLE = "?*[]\\"  # in a path: wildcards to Dagster, the end of it to SQLite's addresses


class HomeError(OSError):
    """The home cannot be made or used."""


@dataclass(frozen=True)
class Findings:
    """What `mark_dead_runs` did and left. Each text is a sentence for a person."""

    failed: Sequence[str]
    freed: Sequence[str]
    left: Sequence[str]


def home_folder(home: str | Path | None = None) -> Path:
    """The given home, else DAGSTER_HOME, else `dagster_home` in the current folder; absolute."""
    return Path(home or os.environ.get("DAGSTER_HOME") or "dagster_home").expanduser().absolute()


def dagster_url() -> str:
    """Base of Dagster's pages, without a slash at the end."""
    return os.environ.get(DAGSTER_URL, f"http://127.0.0.1:{DAGSTER_PORT}").rstrip("/")


def existing_home(home: str | Path | None = None) -> Path:
    """`home_folder`. Raises HomeError where no home was made, so that a mistyped name makes none."""
    folder = home_folder(home)
    if not any((folder / name).is_file() for name in ("dagster.yaml", "warehouse.duckdb")):
        raise HomeError(f"{folder} is no home: `rlaif run` makes one, --home names another")
    return folder


def new_or_existing_home(home: str | Path | None = None) -> Path:
    """`home_folder`. Raises HomeError for a folder that holds other things, and for what is no folder."""
    folder = home_folder(home)
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    return folder if empty else existing_home(home)


def prepare_home(home: Path, profile: str | None = None) -> Path:
    """Makes the home with the packaged dagster.yaml where it has none, and points this process and its children at it.

    They also load the definitions with `profile` as the default. Telemetry of Dagster, MLflow and Hugging Face is
    switched off. Raises HomeError.
    """
    odd = next((character for character in UNUSABLE if character in str(home)), None)
    if odd is not None:
        raise HomeError(
            f"the home {home} cannot be used: no database opens a path with {odd!r}; name another with --home"
        )
    try:
        home.mkdir(parents=True, exist_ok=True)
        settings = home / "dagster.yaml"
        if not settings.exists():
            text = (resources.files("rlaif_assets") / "dagster.yaml").read_text(encoding="utf-8")
            temporary = home / f".dagster.yaml.{os.getpid()}"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(settings)
    except OSError as error:
        raise HomeError(
            f"the home {home} cannot be used: {error.strerror or error}; name another with --home"
        ) from error
    os.environ["DAGSTER_HOME"] = str(home)
    os.environ.update(QUIET)
    use_profile(profile)
    return home


def use_profile(profile: str | None) -> None:
    """Makes this process and its children load the definitions with this profile as the default; None: as it is."""
    if profile is not None:
        os.environ["RLAIF_PROFILE"] = profile


def process_tags(run_id: str | None = None) -> dict[str, str]:
    """Run tags that say which process works: host, boot, pid and the process's start (pids come again).

    In a step's own process (RLAIF_EXECUTOR=multiprocess) that is the run's process, which outlives the step. A retried
    run inherits its predecessor's tags; `run_id` tells whose they are.
    """
    import psutil

    parent = multiprocessing.parent_process()
    pid = os.getpid()
    if parent is not None and parent.pid is not None and os.environ.get("RLAIF_EXECUTOR") == "multiprocess":
        pid = parent.pid
    tags = {
        HOST_TAG: socket.gethostname(),
        BOOT_TAG: boot_id(),
        PID_TAG: str(pid),
        STARTED_TAG: f"{psutil.Process(pid).create_time():.2f}",
    }
    return tags | ({TAGGED_TAG: run_id} if run_id else {})


def tag_run(instance: "DagsterInstance", run_id: str) -> None:
    """Writes `process_tags` on the run, if they are not there: wherever a run was launched, `doctor` then knows it."""
    run = instance.get_run_by_id(run_id)
    tags = process_tags(run_id)
    if run is not None and any(run.tags.get(name) != value for name, value in tags.items()):
        instance.add_run_tags(run_id, tags)


def mark_dead_runs(instance: "DagsterInstance") -> Findings:
    """Marks runs failed whose process is gone, and frees the pool slots of all runs that have ended.

    Dead is a run of this host whose boot is over, or whose pid is not alive or is another process by now. A run that
    was killed before its first step has no tags of its own yet: there Dagster's log of this home names the pid, and a
    run that was launched but never begun is dead after START_SECONDS. Runs of other hosts, and runs that were made but
    not launched, are left as they are.
    """
    import dagster as dg

    open_statuses = [
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ]
    failed: list[str] = []
    left: list[str] = []
    for run in instance.get_runs(dg.RunsFilter(statuses=open_statuses)):
        why = _why_not_alive(instance, run)
        if why is None:
            left.append(_told(run))
        else:
            instance.report_run_failed(run, f"Marked failed: {why}.")
            failed.append(f"{_name(run)} marked failed: {why}")
    return Findings(failed, _free_slots(instance), left)


def set_gpu_slots(instance: "DagsterInstance") -> None:
    """As many assets of the GPU pool at once as there are GPUs; one where there is none."""
    storage, count = instance.event_log_storage, max(1, len(visible_gpus()))
    if {pool.name: pool.limit for pool in storage.get_pool_limits()}.get(POOL) != count:
        storage.set_concurrency_slots(POOL, count)


def slot_holders(instance: "DagsterInstance", pool: str) -> list[str]:
    """The runs that hold a slot of the pool, each a sentence as in `Findings.left`."""
    slots = instance.event_log_storage.get_concurrency_info(pool).claimed_slots
    runs = [instance.get_run_by_id(run_id) for run_id in sorted({slot.run_id for slot in slots})]
    return [_told(run) for run in runs if run is not None]


def open_runs(instance: "DagsterInstance", job: str | None = None) -> list[str]:
    """The runs (of this job) that are waiting or at work, each a sentence as in `Findings.left`; dead ones are not."""
    import dagster as dg

    statuses = [
        dg.DagsterRunStatus.QUEUED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ]
    runs = instance.get_runs(dg.RunsFilter(job_name=job, statuses=statuses))
    return [_told(run) for run in runs if _why_not_alive(instance, run) is None]


def _free_slots(instance: "DagsterInstance") -> list[str]:
    """Frees the pool slots of runs that ended or are not there any more; a slot of a killed run blocks its pool."""
    storage = instance.event_log_storage
    freed: list[str] = []
    for run_id in sorted(storage.get_concurrency_run_ids()):
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            infos = [storage.get_concurrency_info(key) for key in storage.get_concurrency_keys()]
            pools = [
                info.concurrency_key
                for info in infos
                if any(step.run_id == run_id for step in [*info.claimed_slots, *info.pending_steps])
            ]
            storage.free_concurrency_slots_for_run(run_id)
            freed.append(f"slots of run {run_id[:8]} freed in pool {', '.join(sorted(pools))}")
    return freed


def _why_not_alive(instance: "DagsterInstance", run: "DagsterRun") -> str | None:
    return _why_dead(run) if _own_tags(run) else _why_never_begun(instance, run)


def _why_dead(run: "DagsterRun") -> str | None:
    """Why no process works on the run any more; None where one does, or where it cannot be told from here."""
    tags = run.tags
    if tags.get(HOST_TAG) != socket.gethostname():
        return None
    if tags.get(BOOT_TAG) != boot_id():
        return "the machine was started anew since"
    pid, started = int(tags[PID_TAG]), float(tags[STARTED_TAG])
    return _why_ended(pid, started - CLOCK_SECONDS, started + CLOCK_SECONDS)


def _why_never_begun(instance: "DagsterInstance", run: "DagsterRun") -> str | None:
    """As `_why_dead`, of a run whose process did not come as far as tagging it."""
    import dagster as dg

    if run.status == dg.DagsterRunStatus.NOT_STARTED:
        return None
    entries = instance.all_logs(
        run.run_id, of_type={dg.DagsterEventType.ENGINE_EVENT, dg.DagsterEventType.PIPELINE_STARTING}
    )
    launched: float | None = None
    for entry in reversed(entries):
        event = entry.dagster_event
        if event is not None and event.event_type == dg.DagsterEventType.ENGINE_EVENT:
            pid = event.engine_event_data.metadata.get("pid")
            if pid is not None:
                return _why_ended(int(str(pid.value)), 0.0, entry.timestamp + CLOCK_SECONDS)
        elif event is not None:
            launched = entry.timestamp
    if launched is not None and time.time() - launched > START_SECONDS:
        return f"no process had begun it {START_SECONDS:.0f} s after its launch"
    return None


def _why_ended(pid: int, earliest: float, latest: float) -> str | None:
    """Why the process that had this pid, and started between these times (seconds since 1970), works no more."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return f"its process {pid} has ended"
        if not earliest <= process.create_time() <= latest:
            return f"its process {pid} has ended (the number is another process's now)"
    except psutil.NoSuchProcess:
        return f"its process {pid} has ended"
    return None


def _own_tags(run: "DagsterRun") -> bool:
    """Whether the tags are this run's own; a retried run begins with those of its predecessor."""
    return HOST_TAG in run.tags and run.tags.get(TAGGED_TAG, run.run_id) == run.run_id


def _name(run: "DagsterRun") -> str:
    return f"run {run.run_id[:8]} ({run.job_name})"


def _told(run: "DagsterRun") -> str:
    return f"{_name(run)} {_whereabouts(run)}"


def _whereabouts(run: "DagsterRun") -> str:
    host, pid = run.tags.get(HOST_TAG), run.tags.get(PID_TAG)
    if not _own_tags(run):
        return "has not begun its first step; cancel it in the UI if nothing works on it"
    if host != socket.gethostname():
        return f"belongs to host {host}; only that host can tell whether it is alive"
    return f"is alive in process {pid}"


def boot_id() -> str:
    """Names this start of the machine: a process number means nothing after another one."""
    import psutil

    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else f"{psutil.boot_time():.0f}"
