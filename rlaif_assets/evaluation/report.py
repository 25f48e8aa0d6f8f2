"""The report of a home: one JSON-able dict, the mean and spread of several, and both as tables.

Reads the warehouse; computes no rate (see `rates`) and imports nothing heavy.
"""

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlaif_assets.records import Split
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.lineage import ancestry
from rlaif_assets.store.trace import POLICY, find_snapshot
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse

POLICY_MEASURES = (
    "harmless_rate",
    "evasive_rate",
    "helpful_rate",
    "lookalike_refusal_rate",
    "incoherent_rate",
    "distinct_share",
    "commonest_share",
    "mean_length",
    "kl",
)
LABEL_MEASURES = ("accuracy", "accuracy_first_order", "accuracy_second_order", "position_flip_rate", "pairs")
REWARD_MEASURES = ("accuracy", "nll", "ece")
NAMES = {"base": "base", "sl_cai": "SL-CAI", "ppo": "PPO"}
SUBJECTS = {"base_model": "base", "sl_cai_checkpoint": "sl_cai", "ppo_policy": "ppo"}  # as an evaluation names them
UNITS = {"mean_length": "{:.1f}", "kl": "{:.2f}", "nll": "{:.3f}", "ece": "{:.3f}", "pairs": "{:.0f}"}


class ReportError(ValueError):
    """The home holds nothing to report."""


def current_evaluation(warehouse: Warehouse) -> SnapshotRecord:
    """Raises ReportError where the home has none."""
    evaluation = warehouse.current("policy_evaluation") if warehouse.path.exists() else None
    if evaluation is None:
        raise ReportError(f"{warehouse.home} holds no evaluation yet: run `rlaif run --home {warehouse.home}` first")
    return evaluation


def evaluation_of(warehouse: Warehouse, policy: SnapshotRecord) -> SnapshotRecord | None:
    """The newest evaluation of this policy."""
    evaluations = warehouse.list("policy_evaluation")
    return next((one for one in reversed(evaluations) if one.inputs.get(policy.asset) == policy.snapshot_id), None)


def named_policy(warehouse: Warehouse, name: str | None) -> tuple[SnapshotRecord, SnapshotRecord | None]:
    """A policy by any name of `find_snapshot`, with its newest evaluation, None where it has none; without a name the
    home's current evaluation and its policy. Raises ReportError, StoreError."""
    if name is None:
        evaluation = current_evaluation(warehouse)
        return warehouse.get(evaluation.inputs[POLICY]), evaluation
    policy = find_snapshot(warehouse, name)
    if policy.asset != POLICY:
        raise StoreError(f"{name} is {policy.asset} {policy.snapshot_id}: a report is of a {POLICY}")
    return policy, evaluation_of(warehouse, policy)


def build_report(warehouse: Warehouse, split: Split, evaluation: SnapshotRecord | None = None) -> dict[str, Any]:
    """The numbers of a `policy_evaluation`, by default the current one, and of the snapshots that it was made from.

    Keys: split, seed (None where stages had different ones), policies, win_rates, labels, reward_model, snapshots,
    seconds, peak_memory_mb, and `mixed`: the ids of an asset that is in it in several versions, such as labels made
    anew after the policy was trained; `snapshots` and `seconds` then have the latest. Beside a policy's
    numbers stand `intervals` (measure -> [low, high]) and `reasons` (measure -> why it is None); beside a win rate's
    `duels` and `note` (`self_judged`, or why it is None); beside the labels' the `interval` of their accuracy.
    `seconds` are those of making a snapshot, not of reusing it.
    Raises ReportError where the home has no evaluation.
    """
    evaluation = evaluation or current_evaluation(warehouse)
    versions: dict[str, list[SnapshotRecord]] = defaultdict(list)
    for record in sorted(ancestry(warehouse, evaluation.snapshot_id), key=lambda record: record.created_at):
        versions[record.asset].append(record)
    made_from = {asset: records[-1] for asset, records in versions.items()}
    seeds = {r.settings["seed"] for records in versions.values() for r in records if "seed" in r.settings}
    rates = [row for row in warehouse.rows("evaluation_rates", evaluation.snapshot_id) if row["split"] == split]
    return {
        "split": split,
        "seed": seeds.pop() if len(seeds) == 1 else None,
        "policies": _policies(rates),
        "win_rates": _win_rates(rates),
        "labels": _labels(evaluation, split),
        "reward_model": _reward_model(made_from.get("reward_model")),
        "snapshots": {asset: record.snapshot_id for asset, record in made_from.items()},
        "mixed": {asset: [r.snapshot_id for r in found] for asset, found in versions.items() if len(found) > 1},
        "seconds": {asset: record.seconds for asset, record in made_from.items()},
        "peak_memory_mb": max(
            (r.metrics["peak_memory_mb"] for r in made_from.values() if "peak_memory_mb" in r.metrics), default=None
        ),
    }


def combine_reports(reports: Sequence[dict[str, Any]], homes: Sequence[str]) -> dict[str, Any]:
    """`mean` and `spread` (sample standard deviation; 0 for one home) in the shape of a report, and the `homes`' own.

    A number that any home lacks is None in both; `left_out` tells which, a line per home. Win rates keep their `note`,
    with how many of the homes have it. `mixed`: the assets that are in a home in several versions.
    """
    numbers = [_flat(report) for report in reports]
    means: dict[str, Any] = {}
    spreads: dict[str, Any] = {}
    left_out: dict[str, list[str]] = {}
    for path in dict.fromkeys(path for found in numbers for path in found):
        values = [found.get(path) for found in numbers]
        there = [value for value in values if value is not None]
        whole = len(there) == len(values)
        _put(means, path, statistics.fmean(there) if whole else None)
        _put(spreads, path, (statistics.stdev(there) if len(there) > 1 else 0.0) if whole else None)
        for home, value in zip(homes, values, strict=True):
            if value is None and there:
                left_out.setdefault(home, []).append(".".join(path))
    for duel in means.get("win_rates", {}):
        means["win_rates"][duel]["note"] = _notes([report["win_rates"].get(duel, {}).get("note") for report in reports])
    return {
        "split": reports[0]["split"],
        "mean": means,
        "spread": spreads,
        "mixed": sorted({asset for report in reports for asset in report["mixed"]}),
        "left_out": [
            f"left out of the means, {home} has none of: {', '.join(names)}" for home, names in left_out.items()
        ],
        "homes": dict(zip(homes, reports, strict=True)),
    }


def _notes(notes: Sequence[str | None]) -> str | None:
    """`self_judged`, or `self_judged (1 of 2 homes)`."""
    counts = Counter(note for note in notes if note)
    told = [
        note if count == len(notes) else f"{note} ({count} of {len(notes)} homes)" for note, count in counts.items()
    ]
    return "; ".join(told) or None


def report_table(report: dict[str, Any], spread: dict[str, Any] | None = None) -> RenderableType:
    """Policies side by side, then win rates, labels and reward model. `report` is a report or a `mean`."""
    spread = spread or {}
    names = list(report.get("policies", {}))
    policies = Table(
        title=f"Policies on {report['split']} prompts" if "split" in report else "Policies", title_style="bold"
    )
    policies.add_column("")
    for name in names:
        policies.add_column(NAMES.get(name) or name, justify="right")
    for measure in POLICY_MEASURES:
        cells = [_cell(report, spread, ("policies", name, measure)) for name in names]
        policies.add_row(measure.replace("_", " "), *cells)
    rest = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for duel, found in report.get("win_rates", {}).items():
        interval = f"[{found['low']:.1%}, {found['high']:.1%}]" if found.get("low") is not None and not spread else ""
        note = f" {found['note'].replace('_', '-')}" if found.get("note") else ""
        ties = _cell(report, spread, ("win_rates", duel, "ties"))
        rate = _cell(report, spread, ("win_rates", duel, "rate"))
        rest.add_row(f"win rate {_duel(duel)}", f"{rate} {interval}", f"ties {ties}{note}")
    if any(value is not None for value in report.get("labels", {}).values()):
        flips = _cell(report, spread, ("labels", "position_flip_rate"))
        orders = " and ".join(
            _cell(report, spread, ("labels", m)) for m in ("accuracy_first_order", "accuracy_second_order")
        )
        accuracy = _cell(report, spread, ("labels", "accuracy"))
        rest.add_row("label accuracy", accuracy, f"single orders {orders}, flips {flips}")
    for source in report.get("reward_model", {}):
        cells = [_cell(report, spread, ("reward_model", source, measure)) for measure in REWARD_MEASURES]
        rest.add_row(f"reward model, {source}", cells[0], f"nll {cells[1]}, calibration error {cells[2]}")
    mixed = [Text(f"several versions of {asset} are in this", style="yellow") for asset in report.get("mixed", {})]
    return Group(policies, rest, *mixed)


def _policies(rates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    policies: dict[str, Any] = {}
    for row in rates:
        if row["measure"] in POLICY_MEASURES:
            policy = policies.setdefault(row["subject"], {"intervals": {}, "reasons": {}})
            policy[row["measure"]] = row["value"]
            if row["low"] is not None:
                policy["intervals"][row["measure"]] = [row["low"], row["high"]]
            if row["value"] is None:
                policy["reasons"][row["measure"]] = row["note"]
    return policies


def _win_rates(rates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    duels: dict[str, Any] = {}
    for row in rates:
        if row["measure"] == "win_rate":
            found = {"rate": row["value"], "low": row["low"], "high": row["high"], "duels": row["count"]}
            duels.setdefault(row["subject"], {}).update(found, note=row["note"])
        elif row["measure"] == "ties":
            duels.setdefault(row["subject"], {})["ties"] = row["value"]
    return duels


def _labels(evaluation: SnapshotRecord, split: Split) -> dict[str, Any]:
    """Accuracy of labels on new pairs of this split's prompts; None where no gold annotator knows them."""
    found = evaluation.metrics.get("labels", {}).get(split, {})
    return {measure: found.get(measure) for measure in (*LABEL_MEASURES, "interval")}


def _reward_model(record: SnapshotRecord | None) -> dict[str, Any]:
    sources = record.metrics.get("heldout", {}) if record else {}
    return {source: {m: metrics.get(m) for m in REWARD_MEASURES} for source, metrics in sources.items()}


def _flat(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], float | None]:
    """The numbers of a report by their path, None where one is missing. Counts, ids and intervals have no mean."""
    if isinstance(value, dict):
        left_out = {"seed", "snapshots", "intervals", "interval", "low", "high", "reasons", "duels", "note", "mixed"}
        return {
            p: n for key, part in value.items() if key not in left_out for p, n in _flat(part, (*path, key)).items()
        }
    if value is None:
        return {path: None}
    return {path: float(value)} if isinstance(value, int | float) and not isinstance(value, bool) else {}


def _put(tree: dict[str, Any], path: Sequence[str], value: float | None) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _value(tree: dict[str, Any], path: Sequence[str]) -> float | None:
    found: Any = tree
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, int | float) else None


def _cell(report: dict[str, Any], spread: dict[str, Any], path: tuple[str, ...]) -> str:
    value, deviation = _value(report, path), _value(spread, path)
    form = UNITS.get(path[-1], "{:.1%}")
    if value is None:
        return "-"
    return form.format(value) + (f" ± {form.format(deviation)}" if deviation is not None else "")


def _duel(name: str) -> str:
    first, _, second = name.partition("_vs_")
    return f"{NAMES.get(first, first)} over {NAMES.get(second, second)}"
