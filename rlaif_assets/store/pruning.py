"""Weights and artifacts that no kept policy needs: which they are, and taking them out of the home. Rows stay, so
`trace` and `diff` still answer.

Kept are the newest policies, those that an alias of the registry names, and what is current of every asset; each with
all that it was made from, also where its base or feedback model is a folder of this home. The order of `prune`: the
removals are recorded in the warehouse, in one transaction; every folder and file is renamed into a work folder, so that
none is ever half there; the work folder is deleted; MLflow's runs are tagged. Killed after the record, nothing is
missing yet: `Warehouse.removals` looks for the files too, and the next prune records and removes them again. Killed
later, what was renamed is a dead process's work folder, which the next run, prune or doctor deletes.
"""

import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock

from rlaif_assets.store import registry
from rlaif_assets.store.checkpoint_files import (
    RESUME_FOLDER,
    adopted_folders,
    is_complete,
    new_work_folder,
    remove_dead_work,
)
from rlaif_assets.store.errors import StoreError, TrackingError
from rlaif_assets.store.model_places import PLACES
from rlaif_assets.store.moved_home import ARTIFACTS
from rlaif_assets.store.pictures import PICTURES
from rlaif_assets.store.trace import POLICY
from rlaif_assets.store.tracking import Tracker
from rlaif_assets.store.warehouse import FILE, SnapshotRecord, Warehouse, now

LOCK = "prune.lock"
KINDS = {"checkpoints": "weights", ARTIFACTS: "artifacts", PICTURES: "pictures", RESUME_FOLDER: "state"}
# A policy that was made again, or is used again, is as new as that.
NEWEST = (
    "SELECT snapshot_id FROM (SELECT snapshot_id, asset, created_at, position FROM snapshots"
    " UNION ALL SELECT snapshot_id, asset, created_at, -1 FROM materializations) WHERE asset = ?"
    " GROUP BY snapshot_id ORDER BY max(created_at) DESC, max(position) DESC LIMIT ?"
)
# What is said of a policy needs no weights, and is no reason to keep those of one that was refused.
CURRENT = (
    "SELECT asset, arg_max(snapshot_id, position) FROM materializations WHERE asset <> 'champion_policy'"
    " GROUP BY asset ORDER BY asset"
)
LOCAL_MODELS = "SELECT snapshot_id, fingerprint FROM external_models WHERE model IS NULL"  # an endpoint has a name


@dataclass(frozen=True)
class Removal:
    """A folder or file of the home, by its path there, and what it holds in bytes. Two snapshots of the same content
    share a folder and have a removal each. `record` None: no snapshot names the folder."""

    path: str
    size: int
    record: SnapshotRecord | None

    @property
    def kind(self) -> str:
        return KINDS[self.path.partition("/")[0]]


@dataclass(frozen=True)
class Plan:
    """`kept`: ids of the policies whose weights stay, oldest first."""

    kept: Sequence[str]
    removals: Sequence[Removal]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum({one.path: one.size for one in self.removals}.values())


def named_in_mlflow(warehouse: Warehouse, tracker: Tracker) -> set[str]:
    """The snapshots that an alias of MLflow's registry names: a person may have given one there. None where its
    database is gone. Raises TrackingError where it cannot be asked."""
    if tracker.lost:
        return set()
    models = {version.name for version in registry.versions(warehouse)}
    return {one for name in models for one in tracker.aliased(name).values()}


def plan(warehouse: Warehouse, keep: int, named: Collection[str] = ()) -> Plan:
    """What `prune` would remove. `named`: snapshots to keep beside those that the home's own record has an alias for,
    see `named_in_mlflow`. Nothing is changed.

    A folder stays while a kept snapshot shares it; one that no snapshot names is a killed run's, and goes. Artifacts,
    in the home's own folder, go of the MLflow runs of all models that are not kept, and of what was made from these
    (their evaluations). A training's state goes where its training has ended.

    Raises StoreError where something that is to stay has no record: its weights would be taken for left over.
    """
    records = warehouse.list()
    places = _places(warehouse)
    kept = _kept(warehouse, records, places, _roots(warehouse, records, keep, named))
    folders = set(adopted_folders(warehouse.home))
    used = {record.path for record in records if record.snapshot_id in kept}
    used |= {place for one in kept for place in places.get(one, ())}
    spare = [record for record in records if record.snapshot_id not in kept]
    gone: set[str] = set()
    removals: list[Removal] = []

    def add(path: str, record: SnapshotRecord | None) -> None:
        removals.append(Removal(path, _size(warehouse.home / path), record))

    for record in spare:  # inputs are published before what reads them
        if record.path in folders and record.path not in used:
            add(str(record.path), record)
        if record.path is not None or gone & set(record.inputs.values()):
            gone.add(record.snapshot_id)
            for path in _artifacts(warehouse.home, record):
                add(path, record)
    for path in sorted(folders - used - {record.path for record in records}):
        add(path, None)
    for path, record in _ended_states(warehouse.home, records):
        add(path, record)
    policies = [record.snapshot_id for record in records if record.asset == POLICY and record.snapshot_id in kept]
    return Plan(policies, removals)


def prune(
    warehouse: Warehouse, keep: int, named: Collection[str], who: str, open_runs: Callable[[], Sequence[str]]
) -> Plan:
    """Records and removes what `plan` tells, and returns that. `open_runs`: a sentence for each run that is waiting or
    at work in this home now; it is asked before the plan and after it.

    Raises StoreError, and removes nothing, while a run is open, since it may read anything, or another prune works.
    """
    home = warehouse.home
    lock = filelock.FileLock(home / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise StoreError(f"another prune is at work in {home}: wait until it has ended") from error
    try:
        _refuse(open_runs())
        remove_dead_work(home)
        found = plan(warehouse, keep, named)
        _refuse(open_runs())
        warehouse.record_removals(
            [
                {"snapshot_id": one.record and one.record.snapshot_id, "path": one.path, "bytes": one.size}
                | {"who": who, "why": reason(keep)}
                for one in found.removals
            ]
        )
        if found.removals:
            work = new_work_folder(home)
            for number, path in enumerate(sorted({one.path for one in found.removals})):
                (home / path).rename(work / str(number))
            shutil.rmtree(work)
        return found
    finally:
        lock.release()


def tag_runs(found: Plan, tracker: Tracker, who: str, keep: int) -> str | None:
    """Tells MLflow whose weights and artifacts were removed. Returns why it could not be told; None where it was, and
    where its database is gone."""
    if tracker.lost:
        return None
    pruned = {one.record.snapshot_id: one.record for one in found.removals if one.record and one.kind != "state"}
    try:
        for record in pruned.values():
            if record.mlflow_run_id is not None:
                model_id = record.metrics.get("mlflow_model_id")
                tracker.mark_pruned(record.mlflow_run_id, model_id, f"{now()[:19]} by {who}: {reason(keep)}")
    except TrackingError as error:
        return str(error)
    return None


def reason(keep: int) -> str:
    return f"prune --keep {keep}"


def _roots(
    warehouse: Warehouse, records: Sequence[SnapshotRecord], keep: int, named: Collection[str]
) -> dict[str, str]:
    """What is kept for its own sake: snapshot ids, each with what names it. Of `named`, those that this home has never
    heard of are another home's: several may share a server. Raises StoreError where an alias names no version."""
    with warehouse.connection(read_only=True) as connection:
        newest = connection.execute(NEWEST, [POLICY, keep]).fetchall()
        current = connection.execute(CURRENT).fetchall()
    versions = registry.versions(warehouse)
    registered = {one.snapshot_id: f"{one.name}/{one.version}" for one in versions}
    for name, alias, version in registry.aliases(warehouse):
        if not any((one.name, one.version) == (name, version) for one in versions):
            raise _missing(warehouse, f"the registration of {name}/{version}", f"the alias @{alias}")
    known = {record.snapshot_id for record in records} | registered.keys()
    roots = {one: f"a materialization of {POLICY}" for (one,) in newest}
    roots |= {one: f"the newest materialization of {asset}" for asset, one in current}
    roots |= {one: f"MLflow's alias of {registered.get(one, POLICY)}" for one in named if one in known}
    return roots | {
        one.snapshot_id: f"{one.name}/{one.version} @{' @'.join(one.aliases)}" for one in versions if one.aliases
    }


def _kept(
    warehouse: Warehouse,
    records: Sequence[SnapshotRecord],
    places: Mapping[str, Collection[str]],
    roots: Mapping[str, str],
) -> set[str]:
    """Ids of what stays: the roots and all that they were made from, whoever owns a model's folder among it. Raises
    StoreError where one of these has no record."""
    known = {record.snapshot_id: record for record in records}
    owners: dict[str, list[str]] = {}
    for record in records:
        owners.setdefault(str(record.path), []).append(record.snapshot_id)
    kept: set[str] = set()
    waiting = dict(roots)
    while waiting:
        one, reader = waiting.popitem()
        if one in kept:
            continue
        if one not in known:
            raise _missing(warehouse, f"the record of snapshot {one}", reader)
        kept.add(one)
        told = f"{known[one].asset} {one}"
        waiting |= {upstream: f"{told} (its {asset})" for asset, upstream in known[one].inputs.items()}
        waiting |= {owner: told for place in places.get(one, ()) for owner in owners.get(place, ())}
    return kept


def _places(warehouse: Warehouse) -> dict[str, list[str]]:
    """By snapshot id, the folders of the home that its `external_models` are loaded from."""
    with warehouse.connection(read_only=True) as connection:
        rows = connection.execute(LOCAL_MODELS).fetchall()
    root, found = warehouse.home.resolve(), {}
    for snapshot_id, fingerprint in rows:
        place = root / PLACES / fingerprint
        folder = (root / place.read_text(encoding="utf-8")).resolve() if place.is_file() else None
        if folder is not None and folder.is_relative_to(root):
            found.setdefault(snapshot_id, []).append(str(folder.relative_to(root)))
    return found


def _missing(warehouse: Warehouse, what: str, reader: str) -> StoreError:
    return StoreError(
        f"nothing was removed: {what} is missing in {warehouse.path}, and {reader} names it, so what must stay cannot "
        f"be told: see `rlaif verify`, and put back a copy of {FILE} that has it"
    )


def _artifacts(home: Path, record: SnapshotRecord) -> Iterator[str]:
    """A snapshot's pictures, and what MLflow holds of its run and model in the home's own folder. MLflow's own
    addresses are not followed: in a copied home they lead to the original."""
    run, model = str(record.mlflow_run_id), str(record.metrics.get("mlflow_model_id"))
    paths = [f"{PICTURES}/{record.snapshot_id}"]
    paths += [f"{ARTIFACTS}/{run}"] if re.fullmatch(r"[0-9a-f]{32}", run) else []
    paths += [f"{ARTIFACTS}/models/{model}"] if re.fullmatch(r"m-[0-9a-f]{32}", model) else []
    for path in paths:
        if (home / path).is_dir() and (home / path).resolve() == home.resolve() / path:  # no link leads there
            yield path


def _ended_states(home: Path, records: Sequence[SnapshotRecord]) -> Iterator[tuple[str, SnapshotRecord]]:
    """States that a training was killed with after its snapshot was stored."""
    for state in sorted((home / RESUME_FOLDER).glob("*.pt")):
        made = [record for record in records if f"{record.asset}-{record.key[:32]}.pt" == state.name]
        for record in [one for one in made if one.path is not None and is_complete(home / one.path)][:1]:
            yield f"{RESUME_FOLDER}/{state.name}", record


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(file.stat().st_size for file in files)


def _refuse(open_runs: Sequence[str]) -> None:
    if open_runs:
        raise StoreError(
            f"nothing was removed: {'; '.join(open_runs)}: wait until it has ended, or cancel it in the UI"
        )
