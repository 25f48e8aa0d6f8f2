"""What relabelling costs when little changed, as a share of labelling everything.

    python -m benchmarks.incremental [--judgements 100000] [--home FOLDER] [--markdown FILE]

Labels so many questions (pairs of the pocket world's prompts and answers, one of 16 principles each, both orders) with
the packaged pocket model through the asset graph, Dagster, audits and MLflow included, in one process: all of them,
nothing changed, one principle reworded, one in a hundred pairs replaced. Every run makes the whole preference set. The
judge is asked for exactly what changed, which is checked. Limits: 5 s where nothing changed; 0.09 of the full run and
2 s for a principle; 0.03 and 2 s for the pairs.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import dagster as dg

from benchmarks.marked_page import around_results, put_results
from rlaif_assets.assets.configuration import run_config
from rlaif_assets.definitions import defs
from rlaif_assets.pocket import world
from rlaif_assets.records import Pair, Prompt
from rlaif_assets.settings import apply_overrides, load_profile
from rlaif_assets.store.fingerprint import draw_seed, row_id
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse

LABELS = "harmlessness_preferences"
NOTHING_SECONDS = 5.0
FIXED_SECONDS = 2.0
PRINCIPLE_SHARE, PAIRS_SHARE = 0.09, 0.03
EDITED = "Choose the response that is less harmful."


@dataclass(frozen=True)
class Timed:
    """One run: what changed, how many judgements were computed, seconds, and the most they may be."""

    case: str
    computed: int
    seconds: float
    limit: float | None


def make_pairs(prompts: Sequence[Prompt], texts: Sequence[str], count: int, replaced: int = 0) -> list[Pair]:
    """Different pairs, the first `replaced` of them others than without."""
    pairs: list[Pair] = []
    for i in range(count):
        prompt = prompts[i % len(prompts)]
        name = f"{i}{' again' if i < replaced else ''}"
        first, second = (texts[draw_seed(name, 0, side) % len(texts)] for side in ("a", "b"))
        a, b = f"{first} {name}", f"{second} {name} or so"
        ids = [row_id("answer", prompt.prompt_id, text) for text in (a, b)]
        pair_id = row_id("pair", prompt.prompt_id, a, b)
        pairs.append(Pair(pair_id, prompt.prompt_id, ids[0], ids[1], a, b, i, i, 1))
    return pairs


def put(warehouse: Warehouse, asset: str, table: str, rows: Sequence[Any], inputs: dict[str, str]) -> str:
    """Makes these rows the asset's current snapshot; returns its id."""
    record = SnapshotRecord(asset=asset, key=f"benchmark {row_id(asset, [asdict(row) for row in rows])}", inputs=inputs)
    snapshot = warehouse.publish(record, {table: [asdict(row) for row in rows]}).snapshot_id
    warehouse.record_materialization(snapshot, None, reused=False)
    return snapshot


def run(home: Path, constitution: Path, assets: Sequence[str]) -> float:
    """Seconds of one run of these assets."""
    profile = apply_overrides(load_profile("pocket"), [f"constitution.path={constitution}", "audits.enforce=false"])
    config = run_config(profile, assets)
    config["resources"]["storage"] = {"config": {"home": str(home)}}
    started = time.perf_counter()
    with dg.DagsterInstance.ephemeral() as instance:
        defs.resolve_job_def("rlaif_all").execute_in_process(
            run_config=config, instance=instance, asset_selection=[dg.AssetKey(name) for name in assets]
        )
    return time.perf_counter() - started


def measure(home: Path, judgements: int) -> list[Timed]:
    """Raises SystemExit where the judge was asked for anything but what changed."""
    warehouse = Warehouse(home)
    prompts = [prompt for prompt in world.red_team_prompts() if prompt.split == "train"]
    texts = sorted({text for row in world.comparisons(0.0, 0) for text in (row.response_a, row.response_b)})
    count, replaced = judgements // 2, judgements // 200
    inputs = {"red_team_prompts": put(warehouse, "red_team_prompts", "prompts", prompts, {})}
    put(warehouse, "response_pairs", "pairs", make_pairs(prompts, texts, count), inputs)
    constitution, edited = home / "constitution.yaml", home / "edited.yaml"
    packaged = (resources.files("rlaif_assets.constitutions") / "default.yaml").read_text(encoding="utf-8")
    constitution.write_text(packaged, encoding="utf-8")
    edited.write_text(packaged.replace(EDITED, f"Think twice. {EDITED}", 1), encoding="utf-8")
    run(home, constitution, ["human_verdicts", "feedback_model"])
    relabelled = ["judging_constitution", LABELS]

    def timed(case: str, rules: Path, limit: float | None, expected: int | None) -> Timed:
        before = warehouse.current(LABELS)
        seconds = run(home, rules, relabelled)
        record = warehouse.current(LABELS)
        assert record is not None
        same = before is not None and before.snapshot_id == record.snapshot_id
        computed = 0 if same else record.metrics["judging"]["computed"]
        if expected is not None and computed != expected:
            raise SystemExit(f"{case}: {computed} judgements were computed, not {expected}")
        return Timed(case, computed, seconds, limit)

    full = timed("everything", constitution, None, 2 * count)
    found = [full, timed("nothing changed", constitution, NOTHING_SECONDS, 0)]
    first = _first_principle(warehouse)
    used = sum(row["principle_id"] == first for row in _labels(warehouse))
    limit = PRINCIPLE_SHARE * full.seconds + FIXED_SECONDS
    found.append(timed("1 of 16 principles", edited, limit, 2 * used))
    run(home, constitution, relabelled)
    put(warehouse, "response_pairs", "pairs", make_pairs(prompts, texts, count, replaced), inputs)
    limit = PAIRS_SHARE * full.seconds + FIXED_SECONDS
    return [*found, timed("1% of the pairs", constitution, limit, 2 * replaced)]


def _labels(warehouse: Warehouse) -> list[dict[str, Any]]:
    record = warehouse.current(LABELS)
    return warehouse.rows("labels", record.snapshot_id) if record else []


def _first_principle(warehouse: Warehouse) -> str:
    record = warehouse.current("judging_constitution")
    rows = warehouse.rows("judging_principles", record.snapshot_id) if record else []
    return next(row["principle_id"] for row in rows if row["text"] == EDITED)


def table(found: Sequence[Timed]) -> str:
    full = found[0].seconds
    lines = [
        "| changed | judgements computed | seconds | of a full run | limit |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for row in found:
        met = "" if row.limit is None else f"{row.limit:.1f} s, {'met' if row.seconds <= row.limit else 'MISSED'}"
        lines.append(f"| {row.case} | {row.computed:,} | {row.seconds:.1f} | {row.seconds / full:.3f} | {met} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--judgements", type=int, default=100_000, help="both orders of half as many pairs")
    parser.add_argument("--home", type=Path, help="an empty folder to keep; default a temporary one")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the table between this file's markers")
    chosen = parser.parse_args()
    if chosen.markdown is not None:
        around_results(chosen.markdown, "incremental")  # refused here, before anything is timed
    with tempfile.TemporaryDirectory() as temporary:
        home = (chosen.home or Path(temporary) / "home").absolute()
        home.mkdir(parents=True, exist_ok=True)
        found = measure(home, chosen.judgements)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("dagster", "duckdb", "pyarrow", "torch"))
    told = (
        f"Pocket model, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}; "
    )
    told += f"{datetime.now(UTC):%Y-%m-%d}.\n\n{table(found)}"
    print(told)
    if chosen.markdown is not None:
        put_results(chosen.markdown, "incremental", told)


if __name__ == "__main__":
    main()
