"""What the graph costs without its work, against the same graph under Dagster's default executor.

    python -m benchmarks.orchestration [--mlflow]

Both sides run `rlaif_all` in a new process and a new home, process start included. Of every stage only the work is
stubbed: the callable that it hands to `Stage.record` or `Stage.record_source`, which returns one refused row. Reading
inputs, keys, the look-up, the transaction in DuckDB, checks and metadata are counted on both sides; with `--mlflow`
also a run per stage in MLflow, which sets up its database. The peer is what one gets by default: one process per step,
and the heavy imports at module level. Prints the ratio; the target is at most 0.1. Both sides must materialize the same
assets with the same data versions, the ids of their snapshots.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import dagster as dg

from rlaif_assets.assets import mlflow_run, recording
from rlaif_assets.definitions import build_defs
from rlaif_assets.records import Rejection

SIDE = "RLAIF_BENCHMARK_SIDE"
WITH_MLFLOW = "RLAIF_BENCHMARK_MLFLOW"
TARGET = 0.1

if os.environ.get(SIDE) == "peer":
    import datasets
    import duckdb
    import mlflow
    import torch
    import transformers
    import trl

    HEAVY = (datasets, duckdb, mlflow, torch, transformers, trl)


RECORD, RECORD_SOURCE = recording.Stage.record, recording.Stage.record_source


def _no_work() -> recording.Product:
    return recording.Product(rejected=[Rejection("stub:1", "the work is stubbed", "")])


def _record(
    self: recording.Stage,
    work: Callable[[], recording.Product],
    identity: Callable[[], Mapping[str, Any]] | None = None,
    registered: str | None = None,
    guard: AbstractContextManager[None] | None = None,
    **_shown: Any,
) -> dg.MaterializeResult:
    """What is shown of a result has no result here."""
    return RECORD(self, _no_work, identity, registered, guard=guard)


def _record_source(self: recording.Stage, read: Callable[[], recording.Product]) -> dg.MaterializeResult:
    return RECORD_SOURCE(self, _no_work)


def stubbed_job() -> dg.JobDefinition:
    """`rlaif_all` as it is, with stages whose work does nothing; the peer's has Dagster's default executor."""
    recording.Stage.record = _record  # type: ignore[method-assign]
    recording.Stage.record_source = _record_source
    if not os.environ.get(WITH_MLFLOW):
        mlflow_run.MlflowRun.start = lambda self: None
    defs = build_defs()
    if os.environ[SIDE] == "peer":
        defs = dg.Definitions(
            assets=defs.assets,
            asset_checks=defs.asset_checks,
            jobs=defs.jobs,
            resources=defs.resources,
            executor=dg.multi_or_in_process_executor,
        )
    return defs.resolve_job_def("rlaif_all")


def run_side() -> None:
    """In a side's own process: one run on a new instance, then the data version of every asset as JSON."""
    open_gate = {"config": {"audits_enforce": False}}
    without_gate = {"ops": {"harmlessness_preferences_audits": open_gate, "reward_model": open_gate}}
    with dg.DagsterInstance.get() as instance:
        result = dg.execute_job(dg.reconstructable(stubbed_job), instance, run_config=without_gate)
        events = [event for event in result.all_events if event.event_type_value == "ASSET_MATERIALIZATION"]
        versions = {
            event.step_materialization_data.materialization.asset_key.to_user_string(): (
                event.step_materialization_data.materialization.tags or {}
            ).get("dagster/data_version")
            for event in events
        }
    Path(os.environ["DAGSTER_HOME"], "versions.json").write_text(json.dumps(versions, sort_keys=True))
    if not result.success:
        raise SystemExit("the run failed")


def time_side(side: str) -> tuple[float, dict[str, str]]:
    """(seconds, data versions by asset) of one side in a process of its own."""
    with tempfile.TemporaryDirectory() as home:
        Path(home, "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        environment = {**os.environ, SIDE: side, "DAGSTER_HOME": home}
        environment.pop("RLAIF_EXECUTOR", None)
        started = time.perf_counter()
        done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(f"{side} failed:\n{done.stderr[-4000:]}")
        return seconds, json.loads(Path(home, "versions.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mlflow", action="store_true", help="count MLflow's runs too")
    mlflow_counted = parser.parse_args().mlflow
    os.environ[WITH_MLFLOW] = "yes" if mlflow_counted else ""
    ours, our_versions = time_side("ours")
    peer, peer_versions = time_side("peer")
    if our_versions != peer_versions:
        raise SystemExit(f"the sides differ: {our_versions} and {peer_versions}")
    ratio = ours / peer
    counted = "inputs, keys, DuckDB, checks, metadata" + (", MLflow" if mlflow_counted else "; not MLflow")
    print(f"counted on both sides: process start, Dagster, {counted}")
    print(f"{len(our_versions)} assets: ours {ours:.2f} s, default executor with heavy imports {peer:.2f} s")
    print(f"ratio {ratio:.3f} (target at most {TARGET}) {'met' if ratio <= TARGET else 'MISSED'}")


if __name__ == "__main__":
    run_side() if os.environ.get(SIDE) else main()
