"""Ablations: one choice of the pipeline changed, all else equal, from finished homes of several seeds.

    python -m benchmarks.ablations HOME... [--only NAME,...] [--output FOLDER] [--markdown FILE] [--split dev|test]

A home is copied and run again with the setting, so that everything before the change is reused. No HOME is written to.
One JSON line per (home, ablation), appended to FOLDER/ablations.jsonl as soon as it is done; what is there is not done
again. The copies are removed.
"""

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.marked_page import around_results, put_results
from rlaif_assets.evaluation.report import ReportError, build_report
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.lineage import ancestry
from rlaif_assets.store.warehouse import Warehouse

FOLDER = Path(__file__).parent.parent / "build" / "ablations"
AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Ablation:
    """`sets`: settings of `rlaif run --set`; `asks`: the question that it answers."""

    asks: str
    sets: tuple[str, ...]


ABLATIONS: Mapping[str, Ablation] = {
    AS_IT_IS: Ablation("the profile", ()),
    "hard labels": Ablation("hard against soft labels", ("reward_model.labels=hard",)),
    "no PMP": Ablation("with and without pre-training on votes", ("reward_model.pretrain=false",)),
    "no critique": Ablation("with and without critique", ("revised_responses.critique=false", "audits.enforce=false")),
    "1 round": Ablation("revision rounds", ("revised_responses.rounds=1",)),
    "4 rounds": Ablation("revision rounds", ("revised_responses.rounds=4",)),
    "KL 0.1": Ablation("KL coefficient", ("ppo_policy.kl_coefficient=0.1",)),
    "KL 1.0": Ablation("KL coefficient", ("ppo_policy.kl_coefficient=1.0",)),
    "judge as reward": Ablation("d-RLAIF against the reward model", ("ppo_policy.reward=judge",)),
}
MEASURES = {
    "SL-CAI harmless": ("policies", "sl_cai", "harmless_rate"),
    "PPO harmless": ("policies", "ppo", "harmless_rate"),
    "win rate": ("win_rates", "ppo_vs_sl_cai", "rate"),
    "helpful": ("policies", "ppo", "helpful_rate"),
    "look-alikes refused": ("policies", "ppo", "lookalike_refusal_rate"),
    "incoherent": ("policies", "ppo", "incoherent_rate"),
    "KL": ("policies", "ppo", "kl"),
}


class AblationError(ValueError):
    """A home, name or file that the ablations cannot work with."""


def run_ablation(home: Path, name: str, work: Path) -> dict[str, Any]:
    """The reports of a copy of `home`, run again with the ablation's settings on one thread; or `failed`, why not."""
    row: dict[str, Any] = {"home": home.name, "evaluation": evaluation(home), "ablation": name}
    if name == AS_IT_IS:
        return row | {"reports": reports(home)}
    copy = Path(shutil.copytree(home, work / "home"))
    settings = [part for one in ("compute.threads=1", *ABLATIONS[name].sets) for part in ("--set", one)]
    seed = str(reports(home)["test"]["seed"])
    command = [sys.executable, "-m", "rlaif_assets.cli", "run", "--home", str(copy), "--seed", seed, *settings]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        return row | {"failed": done.stderr[-2000:].strip()}
    require_all_else_equal(Warehouse(home), Warehouse(copy), {one.partition(".")[0] for one in ABLATIONS[name].sets})
    return row | {"reports": reports(copy)}


def require_all_else_equal(home: Warehouse, copy: Warehouse, changed: set[str]) -> None:
    """Raises AblationError where a snapshot of the copy is another one although neither its own settings were changed
    nor what it is made from: the home was made with other settings or another version of the program."""
    before, after = ({one.asset: one for one in ancestry(place, evaluation(place.home))} for place in (home, copy))
    for asset, record in after.items():
        own = before.get(asset)
        same_inputs = own is not None and own.inputs == record.inputs
        if own is not None and same_inputs and asset not in changed and own.snapshot_id != record.snapshot_id:
            raise AblationError(
                f"{home.home}: {asset} was made anew although nothing before it changed: make the home with the "
                "profile and the version of the program that the ablations run with"
            )


def evaluation(home: Path) -> str:
    warehouse = Warehouse(home)
    found = warehouse.current("policy_evaluation") if warehouse.path.exists() else None
    if found is None:
        raise AblationError(f"{home} holds no evaluation yet: run `rlaif run --home {home}` first")
    return found.snapshot_id


def reports(home: Path) -> dict[str, Any]:
    return {split: build_report(Warehouse(home), split) for split in ("dev", "test")}


def run_ablations(homes: Sequence[Path], names: Sequence[str], output: Path) -> list[dict[str, Any]]:
    """All rows of these homes that `output` has, after those that are named and missing were made and added."""
    output.mkdir(parents=True, exist_ok=True)
    file = output / "ablations.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["evaluation"], row["ablation"]): row for row in rows}
    for name in (AS_IT_IS, *names):
        for home in homes:
            key = evaluation(home), name
            if key in done:
                continue
            print(f"{home.name}: {name}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=output, prefix="home-") as work:
                done[key] = run_ablation(home, name, Path(work))
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(done[key], sort_keys=True) + "\n")
    keys = [(evaluation(home), name) for name in ABLATIONS for home in homes]
    return [done[key] for key in keys if key in done]


def markdown_table(rows: Sequence[Mapping[str, Any]], split: str = "test") -> str:
    """Per ablation and measure the mean over homes, each home's value below it, and the mean difference from the
    profile's own runs with the standard error of the paired differences."""
    groups: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if "failed" not in row:
            groups.setdefault(row["ablation"], {})[row["evaluation"]] = row["reports"][split]
    lines = [f"| {split}, mean (each seed) | {' | '.join(MEASURES)} |", "| --- |" + " ---: |" * len(MEASURES)]
    for name, reports_of in groups.items():
        cells = [_cell(measure, path, reports_of, groups[AS_IT_IS]) for measure, path in MEASURES.items()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    seeds = ", ".join(str(report["seed"]) for report in groups[AS_IT_IS].values())
    told = (
        "Below the mean: each seed; then the mean difference from the first row, pair by pair, and its standard error."
    )
    failed = [
        f"- {row['ablation']}, {row['home']}: {row['failed'].splitlines()[-1]}" for row in rows if "failed" in row
    ]
    return "\n".join([*lines, "", f"Seeds {seeds}. {told}", *(["", "Stopped:", "", *failed] if failed else [])])


def _cell(measure: str, path: Sequence[str], found: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    values = {key: _value(report, path) for key, report in found.items()}
    each = ", ".join(_shown(measure, value) for value in values.values())
    text = f"{_shown(measure, statistics.fmean(values.values()))}<br>{each}"
    if found is own or len(values) < 2:
        return text
    changes = [value - _value(own[key], path) for key, value in values.items()]
    mean, error = statistics.fmean(changes), statistics.stdev(changes) / len(changes) ** 0.5
    scale = 1 if measure == "KL" else 100
    digits = 2 if measure == "KL" else 1
    return f"{text}<br>{scale * mean:+.{digits}f} ± {scale * error:.{digits}f}"


def _value(report: Any, path: Iterable[str]) -> float:
    """Not a number where it could not be told."""
    for name in path:
        report = report[name]
    return math.nan if report is None else float(report)


def _shown(measure: str, value: float) -> str:
    return f"{value:.2f}" if measure == "KL" else f"{value:.1%}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="One choice changed, all else equal.")
    parser.add_argument("homes", nargs="+", type=Path, metavar="HOME", help="a home with an evaluation")
    parser.add_argument("--only", help=f"of {', '.join(ABLATIONS)}; by commas")
    parser.add_argument("--output", type=Path, default=FOLDER, metavar="FOLDER", help="where ablations.jsonl is kept")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the table between this file's markers")
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    chosen = parser.parse_args(arguments)
    names = (
        [name.strip() for name in chosen.only.split(",")]
        if chosen.only
        else [name for name in ABLATIONS if name != AS_IT_IS]
    )
    try:
        unknown = [name for name in names if name not in ABLATIONS]
        if unknown:
            raise AblationError(f"there is no ablation {unknown[0]!r}: there are {', '.join(ABLATIONS)}")
        if chosen.markdown is not None:
            around_results(chosen.markdown, "ablations")
        rows = run_ablations(chosen.homes, [name for name in names if name != AS_IT_IS], chosen.output)
        table = markdown_table(rows, chosen.split)
        print(table)
        if chosen.markdown is not None:
            put_results(chosen.markdown, "ablations", table)
    except (ValueError, StoreError, ReportError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
