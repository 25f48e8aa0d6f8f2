"""Running the assets of a home in this process, as a named job, with lines that say how far it is.

What the assets do belongs to `assets`; a home's preparation and dead runs to `instance`.
"""

import logging
import os
import re
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from rlaif_assets.settings import Profile, SettingsError, nearest

if TYPE_CHECKING:
    import dagster as dg
    from dagster import DagsterInstance, JobDefinition
    from dagster._core.events.log import EventLogEntry

FORCE_TAG = "rlaif/force"
REPOSITORY_TAG = ".dagster/repository"  # by it the UI lists a run under its job
REPOSITORY = "__repository__@rlaif_assets.definitions"
Show = Callable[[str], None]


class RunError(RuntimeError):
    """A run failed. The message names the assets and why."""


class ChecksFailedError(RunError):
    """As above, where nothing but blocking checks failed: the assets that they are of were made, in this run."""

    def __init__(self, message: str, run_id: str) -> None:
        super().__init__(message)
        self.run_id = run_id


class RunSkippedError(RuntimeError):
    """A run left out what another run is making. The message names that one."""


def rlaif_all() -> "JobDefinition":
    """The job, for processes that load it by this function's name."""
    from rlaif_assets.definitions import defs

    return defs.resolve_job_def("rlaif_all")


def relabel() -> "JobDefinition":
    """As `rlaif_all`."""
    from rlaif_assets.definitions import defs

    return defs.resolve_job_def("relabel")


def run_pipeline(
    instance: "DagsterInstance",
    profile: Profile,
    select: str | None = None,
    force: str | None = None,
    show: Show = print,
    debug: bool = False,
    load: "Callable[[], JobDefinition]" = rlaif_all,
) -> str:
    """Materializes the selected assets of a job (None: all), reusing what has not changed; returns the run's id.

    `select` and `force` are names or Dagster selections separated by commas (`ppo_policy`, `+reward_model` for all that
    it is made of, `group:"step_1"`). Forced assets are made again even where nothing changed. `show` is given one line
    per asset, and one when an asset waits for a pool that another run holds. Raises SettingsError for an unknown asset
    and for a forced one that is not selected, RunError when an asset fails (ChecksFailedError: its blocking checks),
    and RunSkippedError when another run relabels this home: before this one begins where it is to do nothing else, for
    otherwise it would wait for the other one, or at its end. KeyboardInterrupt cancels the run.
    """
    import dagster as dg
    from dagster._core.execution.api import execute_run

    from rlaif_assets.assets.configuration import run_config
    from rlaif_assets.assets.recording import SKIPPED_TAG
    from rlaif_assets.automation import RELABELLED
    from rlaif_assets.instance import home_folder, process_tags, slot_holders
    from rlaif_assets.relabel_lock import relabelling

    if not debug:
        warnings.simplefilter("ignore")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    job = load()
    names, forced = chosen_assets(job, select, force)
    if names and "harmlessness_preferences" in names and set(names) <= set(RELABELLED):
        busy = relabelling(home_folder())
        if busy:
            raise RunSkippedError(busy)
    config = run_config(profile, names or materializable(job)) | {
        "loggers": {"console": {"config": {"log_level": _level(debug)}}}
    }
    tags = process_tags() | {REPOSITORY_TAG: REPOSITORY} | ({FORCE_TAG: ",".join(forced)} if forced else {})
    run = instance.create_run_for_job(
        job_def=job,
        run_config=config,
        tags={**job.tags, **tags},
        asset_selection=frozenset(dg.AssetKey(name) for name in names) if names else None,
        job_code_origin=dg.reconstructable(load).get_python_origin(),
    )
    lines = _Lines(show, lambda pool: slot_holders(instance, pool))
    instance.add_event_listener(run.run_id, lines)
    result = execute_run(dg.reconstructable(load), run, instance)
    if not result.success:
        ended = instance.get_run_by_id(run.run_id)
        if ended is not None and ended.status == dg.DagsterRunStatus.CANCELED:
            raise KeyboardInterrupt
        events = result.all_events
        told = failed_steps(events) or f"run {run.run_id} failed before its first asset"
        if _stopped_by_checks(events):
            raise ChecksFailedError(told, run.run_id)
        raise RunError(told)
    ended = instance.get_run_by_id(run.run_id)
    if ended is not None and SKIPPED_TAG in ended.tags:
        raise RunSkippedError(f"{ended.tags[SKIPPED_TAG]}; what is made of it was left out too")
    return run.run_id


def chosen_assets(job: "JobDefinition", select: str | None, force: str | None) -> tuple[list[str] | None, list[str]]:
    """What `run_pipeline` would make (None: all) and make again. Raises SettingsError as it does."""
    names = None if select is None else selected_assets(job, select)
    forced = [] if force is None else selected_assets(job, force)
    unselected = sorted(set(forced) - set(names or forced))
    if unselected:
        raise SettingsError(
            f"--force {force} would make {', '.join(unselected)} again, which --select {select} leaves out: "
            "select them too, or do not force them"
        )
    return names, forced


def selected_assets(job: "JobDefinition", text: str) -> list[str]:
    """The names of the assets that a comma-separated list of names and Dagster selections means, sorted.

    Raises SettingsError for an unknown name (with the nearest ones), a bad selection, and one that is empty.
    """
    import dagster as dg

    graph = job.asset_layer.asset_graph
    known = materializable(job)
    found: set[str] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        named = re.fullmatch(r"([\d+*]*)([^\W\d]\w*)([\d+*]*)", part)
        if named:  # Dagster reads +NAME by its older language: one layer, not all of them
            before, name, after = named.groups()
            if name not in known:
                raise SettingsError(f"unknown asset {name!r}: {nearest(name, known)}")
            before, after = ("+" if sign == "*" else sign for sign in (before, after))
            if not (re.fullmatch(r"(\d*\+)?", before) and re.fullmatch(r"(\+\d*)?", after)):
                raise SettingsError(
                    f"{part!r} is no selection: write +{name} for all above it, 2+{name} for two layers"
                )
            part = f'{before}key:"{name}"{after}'
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", dg.BetaWarning)
                keys = dg.AssetSelection.from_string(part).resolve(graph)
        except Exception as error:  # the selection language raises its parser's own errors, of several classes
            raise SettingsError(f"{part!r} is not an asset or a selection of assets: {error}") from error
        found |= {key.to_user_string() for key in keys}
    if not found & set(known):
        raise SettingsError(f"{text!r} selects no asset; there are {', '.join(known)}")
    return sorted(found & set(known))


def materializable(job: "JobDefinition") -> list[str]:
    """The names of the job's assets, sorted."""
    return sorted(key.to_user_string() for key in job.asset_layer.asset_graph.materializable_asset_keys)


def with_bars(profile: Profile) -> Profile:
    """The profile with progress bars instead of log lines."""
    return profile.model_copy(update={"compute": profile.compute.model_copy(update={"progress": "bar"})})


class _Lines:
    """An event listener: one line per finished asset or failed check, what assets wait for, and what they log."""

    def __init__(self, show: Show, holders: Callable[[str], list[str]]) -> None:
        self.show, self.holders = show, holders
        self.started: dict[str, float] = {}

    def __call__(self, entry: "EventLogEntry") -> None:
        event = entry.dagster_event
        if event is None:
            # What a failed step keeps from being made is Dagster's own line; the failure itself is told at the end.
            if int(entry.level) >= logging.INFO and not entry.user_message.startswith("Dependencies for step"):
                self.show(f"  {entry.user_message}")
        elif event.event_type_value == "STEP_START" and event.step_key:
            self.started[event.step_key] = time.monotonic()
        elif event.is_step_materialization and event.asset_key:
            name = event.asset_key.to_user_string()
            metadata = event.step_materialization_data.materialization.metadata
            reused = metadata["reused"].value if "reused" in metadata else False
            seconds = time.monotonic() - self.started.get(event.step_key or "", time.monotonic())
            rejected = metadata["rejected"].value if "rejected" in metadata else 0
            told = f", {rejected} rows rejected" if rejected else ""
            self.show(f"{name:<26} {'reused' if reused else 'made'} in {seconds:.1f} s{told}")
        elif event.event_type_value == "ENGINE_EVENT" and event.event_specific_data is not None:
            pool = event.engine_event_data.metadata.get("pool")
            if pool is not None:
                held = "; ".join(self.holders(str(pool.value))) or "its slots are taken"
                self.show(f"{event.step_key} waits for pool {pool.value}: {held}")
        elif event.event_type_value == "ASSET_CHECK_EVALUATION":
            evaluation = event.asset_check_evaluation_data
            if not evaluation.passed:
                name = evaluation.asset_key.to_user_string()
                self.show(
                    f"{name:<26} check {evaluation.check_name} failed ({evaluation.severity.value.lower()})"
                    + (f": {evaluation.description}" if evaluation.description and not _stops(evaluation) else "")
                )


def _stops(evaluation: "dg.AssetCheckEvaluation") -> bool:
    return not evaluation.passed and bool(evaluation.blocking) and evaluation.severity.value == "ERROR"


def _stopped_by_checks(events: "Collection[dg.DagsterEvent]") -> bool:
    stopped = {
        event.step_key
        for event in events
        if event.event_type_value == "ASSET_CHECK_EVALUATION" and _stops(event.asset_check_evaluation_data)
    }
    failed = {event.step_key for event in events if event.is_step_failure}
    return bool(failed) and failed <= stopped


def _level(debug: bool) -> str:
    return "DEBUG" if debug else "CRITICAL"


def failed_steps(events: "Collection[dg.DagsterEvent]") -> str:
    """`asset: message` of the steps that failed, the innermost cause's message, without a traceback.

    A step that failed by its blocking checks has their descriptions as its message.
    """
    lines: list[str] = []
    stopped_by: dict[str | None, list[str]] = defaultdict(list)
    for event in events:
        if event.event_type_value == "ASSET_CHECK_EVALUATION" and _stops(event.asset_check_evaluation_data):
            found = event.asset_check_evaluation_data
            stopped_by[event.step_key].append(
                f"{found.asset_key.to_user_string()}: check {found.check_name} failed: {found.description}"
            )
        elif event.is_step_failure and event.step_key in stopped_by:
            lines += stopped_by[event.step_key]
        elif event.is_step_failure:
            error: Any = event.step_failure_data.error
            given = event.step_failure_data.user_failure_data
            while error is not None and error.cause is not None:
                error = error.cause
            text = (given.description if given else None) or (error.message.strip() if error else "no message")
            # A signal in the middle of a query reaches DuckDB first.
            if error is not None and (
                error.cls_name == "DagsterExecutionInterruptedError" or "Query interrupted" in error.message
            ):
                text = "stopped by a signal (SIGTERM); the next run goes on after the last finished asset"
            lines.append(f"{event.step_key}: {text}")
        elif event.event_type_value == "PIPELINE_FAILURE" and not lines:
            error = event.job_failure_data.error
            lines.append((error.message.strip() if error else event.message) or "the run failed")
    return "\n".join(lines)
