"""`rlaif trace` in a large home: 1,000 policies and 1,000,000 judgements, as a command, against 2 seconds.

    python -m benchmarks.lineage [--policies 1000] [--judgements 1000000] [--markdown docs/benchmarks.md]

The home is made of rows alone, without weights: every policy has its own SL-CAI model, pairs, labels, reward models and
evaluation; sources, pre-training and judge are shared. Each command is a new process, imports included; the median of
three. Import of the interpreter and the package alone stands beside it.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.marked_page import publish
from rlaif_assets.settings import load_profile
from rlaif_assets.store import registry
from rlaif_assets.store.columns import to_columns
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse

LIMIT = 2.0
REPEATS = 3
NAME = "rlaif-policy"
SOURCES = (
    *("red_team_prompts", "helpful_prompts", "critique_constitution", "judging_constitution", "community_votes"),
    *("helpfulness_preferences", "human_verdicts", "base_model", "feedback_model"),
)
OWN: dict[str, tuple[str, ...]] = {
    "revised_responses": ("base_model", "critique_constitution", "red_team_prompts"),
    "sl_cai_checkpoint": ("base_model", "revised_responses", "helpful_prompts", "red_team_prompts"),
    "response_pairs": ("sl_cai_checkpoint", "red_team_prompts"),
    "harmlessness_preferences": ("response_pairs", "judging_constitution", "feedback_model", "human_verdicts"),
    "pmp_checkpoint": ("base_model", "community_votes"),
    "reward_model": ("pmp_checkpoint", "harmlessness_preferences", "helpfulness_preferences", "response_pairs"),
    "reward_model_half_a": ("pmp_checkpoint", "harmlessness_preferences", "helpfulness_preferences", "response_pairs"),
    "reward_model_half_b": ("pmp_checkpoint", "harmlessness_preferences", "helpfulness_preferences", "response_pairs"),
    "ppo_policy": (
        "sl_cai_checkpoint",
        "reward_model",
        "reward_model_half_a",
        "reward_model_half_b",
        "helpful_prompts",
    ),
    "policy_evaluation": ("ppo_policy", "sl_cai_checkpoint", "base_model"),
}
SHARED = {"pmp_checkpoint"}


class BenchmarkError(ValueError):
    """A command that failed."""


def build_home(folder: Path, policies: int, judgements: int) -> dict[str, str]:
    """Writes the warehouse; returns what to ask for: a label's and a judgement's id, and a principle's."""
    warehouse = Warehouse(folder)
    settings = load_profile("pocket")
    records: list[SnapshotRecord] = []
    shared: dict[str, str] = {}

    def add(asset: str, number: int, inputs: dict[str, str]) -> str:
        snapshot_id = f"{len(records):08x}{number:024x}"
        own = getattr(settings, asset, None)
        metrics = {f"measure_{i}": i / 7 for i in range(40)} | {
            "mlflow_url": f"http://127.0.0.1:5000/#/runs/{snapshot_id}"
        }
        counts = {"rows": 500}
        records.append(
            SnapshotRecord(
                asset=asset, key=snapshot_id * 2, snapshot_id=snapshot_id, inputs=inputs, metrics=metrics,
                settings=own.model_dump() if own else {}, row_counts=counts, content_hash=snapshot_id * 2,
                created_at=datetime.datetime.now(datetime.UTC).isoformat(), seconds=1.0, tokens=1000,
                git_commit="0" * 40, git_dirty=False, device="cpu", dagster_run_id=snapshot_id,
                mlflow_run_id=snapshot_id,
            )
        )  # fmt: skip
        return snapshot_id

    for asset in SOURCES:
        shared[asset] = add(asset, 0, {})
    shared["pmp_checkpoint"] = add("pmp_checkpoint", 0, {name: shared[name] for name in OWN["pmp_checkpoint"]})
    made: list[dict[str, str]] = []
    for number in range(policies):
        own = dict(shared)
        for asset, upstream in OWN.items():
            if asset not in SHARED:
                own[asset] = add(asset, number, {name: own[name] for name in upstream})
        made.append(own)

    rows = [{"position": i, **asdict(record)} for i, record in enumerate(records)]
    columns = to_columns("snapshots", rows, positioned=False)
    per_policy = max(1, judgements // policies // 2)  # pairs: one label and two judgements each
    with warehouse.connection(read_only=False) as connection:
        import pyarrow as pa

        connection.begin()
        connection.register("incoming", pa.table(columns))
        names = ", ".join(f'"{name}"' for name in columns)
        connection.execute(f"INSERT INTO snapshots ({names}) SELECT {names} FROM incoming")
        for name in ("harmlessness_preferences", "reward_model", "response_pairs", "sl_cai_checkpoint"):
            connection.register(name, pa.table({"n": list(range(policies)), "id": [own[name] for own in made]}))
        connection.execute(
            "CREATE TEMP TABLE pair AS SELECT n, i, printf('%016x%016x', n, i) AS id, (n * 7 + i) % 16 AS principle"
            f" FROM range({policies}) a(n), range({per_policy}) b(i)"
        )
        connection.execute(
            "INSERT INTO pairs SELECT s.id, i, p.id, 'prompt ' || i, p.id || 'a', p.id || 'b', repeat('words ', 30),"
            " repeat('other ', 30), 1, 2, 60 FROM pair p JOIN response_pairs s USING (n)"
        )
        connection.execute(
            "INSERT INTO judgements SELECT p.id || o.o, p.id, 'principle ' || principle, o.o, -0.5, -1.0, 0.6, 'judge',"
            " 'template', 300, 1, 'logprobs', NULL, 0, p.id || o.o, '2026-01-01', 0.01, '2026-01-01', 'run'"
            " FROM pair p, (VALUES ('ab'), ('ba')) o(o)"
        )
        connection.execute(
            "INSERT INTO labels SELECT s.id, i, 'label ' || p.id, p.id, 'principle ' || principle, 0.6,"
            " to_json([p.id || 'ab', p.id || 'ba']), false, 'ai', 'judge', 'both', NULL, p.id"
            " FROM pair p JOIN harmlessness_preferences s USING (n)"
        )
        connection.execute(
            "INSERT INTO training_rows SELECT s.id, i, 'label ' || p.id, 'train', 'ai'"
            " FROM pair p JOIN reward_model s USING (n)"
        )
        connection.execute(
            "INSERT INTO judging_principles SELECT ?, i, 'principle ' || i, 'name ' || i, 'Choose.', NULL, NULL"
            " FROM range(16) r(i)", [shared["judging_constitution"]],
        )  # fmt: skip
        connection.execute("INSERT INTO prompts SELECT ?, i, 'prompt ' || i, '[]', 'train', 'harmful', 'x', NULL, NULL"
                           f" FROM range({per_policy}) r(i)", [shared["red_team_prompts"]])  # fmt: skip
        connection.execute(
            "INSERT INTO registrations SELECT n, ?, n + 1, id, n + 1, '2026-01-01' FROM"
            " (SELECT unnest(?) AS n, unnest(?) AS id)",
            [NAME, list(range(policies)), [own["ppo_policy"] for own in made]],
        )
        connection.commit()
    registry.set_alias(warehouse, NAME, "candidate", policies, "benchmark", "the last one")
    middle = f"{policies // 2:016x}{per_policy // 2:016x}"
    return {"label": f"label {middle}", "judgement": f"{middle}ab", "principle": "principle 3"}


def seconds(words: Sequence[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(words)}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def report(chosen: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "home"
        ids = build_home(folder, chosen.policies, chosen.judgements)
        asked: dict[str, list[str]] = {
            f"trace {NAME}/{chosen.policies // 2}": [f"{NAME}/{chosen.policies // 2}"],
            "trace @candidate --json": ["@candidate", "--json"],
            "trace --row LABEL": ["--row", ids["label"]],
            "trace --row JUDGEMENT": ["--row", ids["judgement"]],
            "trace --principle ID": ["--principle", ids["principle"]],
        }
        found = {"rlaif --help": [seconds(["-m", "rlaif_assets.cli", "--help"]) for _ in range(REPEATS)]}
        for told, words in asked.items():
            command = ["-m", "rlaif_assets.cli", "trace", *words, "--home", str(folder)]
            found[told] = [seconds(command) for _ in range(REPEATS)]
        size = (folder / "warehouse.duckdb").stat().st_size / 2**20
    what = {"policies": chosen.policies, "judgements": chosen.judgements, "warehouse_mib": round(size)}
    lines = [
        f"{json.dumps(what)}; {datetime.date.today()}.",
        "",
        "| command | seconds | limit |",
        "| --- | ---: | --- |",
    ]
    for told, times in found.items():
        middle: Any = statistics.median(times)
        limit = "" if told == "rlaif --help" else f"{LIMIT:g} s, {'met' if middle <= LIMIT else 'MISSED'}"
        lines.append(f"| `{told}` | {middle:.2f} | {limit} |")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", type=int, default=1000)
    parser.add_argument("--judgements", type=int, default=1_000_000)
    parser.add_argument("--markdown", type=Path)
    chosen = parser.parse_args(words)
    publish("lineage", chosen.markdown, lambda: report(chosen), BenchmarkError)


if __name__ == "__main__":
    main()
