"""What the graph costs without its work, against the same graph under Dagster's default executor.

    python benchmarks/orchestration.py

Both sides run `rlaif_all` with every stage's work stubbed, in a new process and a new home, process start included. The
peer is what one gets by default: one process per step, and the heavy imports at module level. Prints the ratio;
the target is at most 0.1. Both sides must materialize the same assets with the same data versions.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import dagster as dg

from rlaif_assets.assets import recording
from rlaif_assets.definitions import build_defs

SIDE = "RLAIF_BENCHMARK_SIDE"
TARGET = 0.1

if os.environ.get(SIDE) == "peer":
    import datasets
    import duckdb
    import mlflow
    import torch
    import transformers
    import trl

    HEAVY = (datasets, duckdb, mlflow, torch, transformers, trl)


def _no_inputs(self: recording.Stage, context: dg.AssetExecutionContext, *_: object) -> None:
    self.asset = context.asset_key.to_user_string()


def _no_work(self: recording.Stage, *_: object, **__: object) -> dg.MaterializeResult:
    return dg.MaterializeResult(data_version=dg.DataVersion(f"stub-{self.asset}"))


def stubbed_job() -> dg.JobDefinition:
    """`rlaif_all` as it is, with stages that do nothing; the peer's has Dagster's default executor."""
    recording.Stage.__init__ = _no_inputs  # type: ignore[assignment]
    recording.Stage.record = _no_work
    recording.Stage.record_source = _no_work
    recording.Stage.require_passed_audits = lambda *_: None  # type: ignore[assignment]
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
    without_gate = {"ops": {"harmlessness_preferences_audits": {"config": {"audits_enforce": False}}}}
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
    ours, our_versions = time_side("ours")
    peer, peer_versions = time_side("peer")
    if our_versions != peer_versions:
        raise SystemExit(f"the sides differ: {our_versions} and {peer_versions}")
    ratio = ours / peer
    print(f"{len(our_versions)} assets: ours {ours:.2f} s, default executor with heavy imports {peer:.2f} s")
    print(f"ratio {ratio:.3f} (target at most {TARGET}) {'met' if ratio <= TARGET else 'MISSED'}")


if __name__ == "__main__":
    run_side() if os.environ.get(SIDE) else main()
