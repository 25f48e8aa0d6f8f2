"""What test_golden compares: a summary of a snapshot that is equal on machines whose floats differ in the last digits.

Texts, ids and whole numbers are hashed. Columns of floats and tensors of weights are a few statistics each, compared
with a tolerance: a hash of rounded floats would change wherever a value lies beside a rounding limit.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from rlaif_assets.store.fingerprint import table_hash
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse

# What is made of a model's fingerprint or folder, which name the bytes of weights and the place of the test's model.
OF_FINGERPRINTS = {
    "external_models": {"fingerprint", "source"},
    "labels": {"label_id", "judgement_ids", "annotator", "judgements_hash"},
}
PLACES = {"path", "source"}  # settings: where it lies on this machine
STARTS = {
    "sl_cai_checkpoint": "base_model",
    "pmp_checkpoint": "base_model",
    "reward_model": "pmp_checkpoint",
    "reward_model_half_a": "pmp_checkpoint",
    "reward_model_half_b": "pmp_checkpoint",
    "ppo_policy": "sl_cai_checkpoint",
}
Summary = dict[str, Any]


def summarize(warehouse: Warehouse, record: SnapshotRecord, base: Path) -> Summary:
    """Version, settings, hashes of tables, numbers of float columns, and how weights changed since `STARTS`.

    `base`: the folder of the base model, which is not in the home.
    """
    settings = {name: value for name, value in record.settings.items() if name not in PLACES}
    found: Summary = {"code_version": record.code_version, "settings": settings, "tables": {}, "numbers": {}}
    for table in sorted(record.table_hashes):
        rows = [
            {name: value for name, value in row.items() if name not in OF_FINGERPRINTS.get(table, ())}
            for row in warehouse.rows(table, record.snapshot_id)
        ]
        for row in rows if table == "training_rows" else ():
            if row["source"] == "ai":
                del row["row_id"]  # a label's id
        floats = sorted({name for row in rows for name, value in row.items() if isinstance(value, float)})
        found["numbers"] |= {f"{table}.{name}": statistics([row[name] for row in rows]) for name in floats}
        exact = [{name: value is None if name in floats else value for name, value in row.items()} for row in rows]
        found["tables"][table] = {"rows": len(rows), "hash": table_hash(exact)[:32]}
    if record.asset in STARTS:
        start = warehouse.get(record.inputs[STARTS[record.asset]])
        found["weights"] = weight_changes(warehouse.weights(start) if start.path else base, warehouse.weights(record))
    return found


def statistics(column: Sequence[float | None]) -> list[float]:
    """Mean, spread, and a mean weighted by place, which tells when values change places."""
    values = np.array([value for value in column if value is not None])
    places = np.linspace(-1, 1, len(values))
    return [_short(value) for value in (values.mean(), values.std(), (values * places).mean())]


def weight_changes(before: Path, after: Path) -> dict[str, list[float]]:
    """By tensor: the change's norm, and its length along a fixed random direction, as a share of that norm times
    sqrt(size) (about -2 to 2). Adam's steps have one size whatever the loss is; their direction tells losses apart."""
    old, new = (load_file(folder / "model.safetensors") for folder in (before, after))
    found: dict[str, list[float]] = {}
    for name, tensor in sorted(new.items()):
        change = (tensor.astype(np.float64) - old.get(name, 0.0)).ravel()
        norm = float(np.linalg.norm(change))
        direction = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(change.size)
        found[name] = [_short(norm), _short(float(change @ direction) / norm) if norm > 1e-6 else 0.0]
    return found


def problems(
    golden: Mapping[str, Summary], found: Mapping[str, Summary], inputs: Mapping[str, Sequence[str]]
) -> list[str]:
    """What is wrong with the golden file or with the code; assets in the order of the graph, inputs first."""
    told = [
        f"{asset}: it is in the golden file and not in the graph: rewrite the file" for asset in golden.keys() - found
    ]
    changed: set[str] = set()
    for asset, now in found.items():
        if asset not in golden:
            changed.add(asset)
            told.append(f"{asset}: it is not in the golden file: rewrite the file")
            continue
        of, is_now = golden[asset]["code_version"], now["code_version"]
        different = differences(golden[asset], now)
        set_otherwise = golden[asset].get("settings") != now["settings"]
        follows = set_otherwise or not changed.isdisjoint(inputs[asset])
        if different or set_otherwise or of != is_now:
            changed.add(asset)
        if of != is_now:
            told.append(f"{asset}: the golden content is of code_version {of}, not {is_now}: rewrite the file")
        elif different and not follows:
            told.append(f"{asset}: {UNVERSIONED} {is_now} ({', '.join(different)}): raise it, then rewrite the file")
        elif different or set_otherwise:
            told.append(f"{asset}: its content follows inputs or settings that changed: rewrite the file")
    return told


UNVERSIONED = "its content changed without a new code_version; it is still"


def differences(golden: Summary, now: Summary) -> list[str]:
    """The tables, columns and tensors whose content is not the golden one."""
    exact = [part for part in ("tables", "packaged") for part in _unequal(part, golden.get(part), now.get(part))]
    near = [
        f"{name} {old.get(name)} -> {new.get(name)}"
        for part, slack in (("numbers", 0.01), ("weights", 0.05))
        for old, new in [(golden.get(part, {}), now.get(part, {}))]
        for name in sorted(old.keys() | new.keys())
        if name not in old or name not in new or not _near(old[name], new[name], slack)
    ]
    return exact + near


def _unequal(part: str, old: Any, new: Any) -> list[str]:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return [] if old == new else [part]
    return [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]


def _near(old: Sequence[float], new: Sequence[float], slack: float) -> bool:
    return all(math.isclose(a, b, rel_tol=slack, abs_tol=slack / 2) for a, b in zip(old, new, strict=True))


def _short(value: float) -> float:
    return float(f"{value:.4g}")
