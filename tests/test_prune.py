"""`rlaif prune`: what is kept, what goes, and that it is recorded and can be told and made again afterwards."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import filelock
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from rlaif_assets.cli import app
from rlaif_assets.cli_common import user_name
from rlaif_assets.evaluation.export import export_policy
from rlaif_assets.instance import PID_TAG, prepare_home, process_tags
from rlaif_assets.relabel_lock import relabel_lock
from rlaif_assets.store import registry
from rlaif_assets.store.checkpoint_files import adopt_folder, adopted_folders, is_complete, new_work_folder
from rlaif_assets.store.columns import to_columns
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.lineage import ancestry, verify
from rlaif_assets.store.model_places import LOCAL_FOLDER, PLACES, remember_place
from rlaif_assets.store.pictures import PICTURES
from rlaif_assets.store.pruning import LOCK, Plan, named_in_mlflow, plan, prune
from rlaif_assets.store.trace import find_snapshot, trace_policy
from rlaif_assets.store.tracking import PRUNED_TAG, Tracker
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse, now
from rlaif_assets.verification import verify_policy
from tests.homes import Home

ROOT = Path(__file__).parent.parent
KILLED = """
import os, signal, sys
from pathlib import Path
from rlaif_assets.store import pruning
from rlaif_assets.store.warehouse import Warehouse

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "rename":
    Path.rename = die
else:
    pruning.shutil.rmtree = die
pruning.prune(Warehouse(Path(sys.argv[1])), 1, (), "me", lambda: [])
"""


class Made(NamedTuple):
    """A policy and what it was made from, by their records."""

    sl_cai: SnapshotRecord
    reward: SnapshotRecord
    policy: SnapshotRecord
    evaluation: SnapshotRecord


def weights(home: Path, asset: str, contents: str) -> str:
    folder = new_work_folder(home)
    (folder / "model.safetensors").write_text(contents)
    return adopt_folder(folder, home, asset)


def publish(
    warehouse: Warehouse, asset: str, name: str, *inputs: SnapshotRecord, contents: str | None = ""
) -> SnapshotRecord:
    """A snapshot with weights of these contents (None: without; else its name)."""
    record = SnapshotRecord(
        asset=asset,
        key=f"{asset}{name}".encode().hex().ljust(64, "0"),
        inputs={one.asset: one.snapshot_id for one in inputs},
        path=None if contents is None else weights(warehouse.home, asset, contents or name),
    )
    return warehouse.publish(record, {})


def materialize(warehouse: Warehouse, *records: SnapshotRecord) -> None:
    """Makes each its asset's current one, as `record_materialization` does, all at once."""
    with warehouse.connection(read_only=False) as connection:
        for one in records:
            connection.execute(
                "INSERT INTO materializations SELECT count(*), ?, ?, NULL, false, ? FROM materializations",
                [one.snapshot_id, one.asset, now()],
            )


def make(warehouse: Warehouse, name: str, base: SnapshotRecord) -> Made:
    sl_cai = publish(warehouse, "sl_cai_checkpoint", name, base)
    reward = publish(warehouse, "reward_model", name, base)
    policy = publish(warehouse, "ppo_policy", name, sl_cai, reward)
    return Made(sl_cai, reward, policy, publish(warehouse, "policy_evaluation", name, policy, contents=None))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Made]]:
    """A home of three policies, oldest first, each with its own SL-CAI and reward model, from one base model."""
    warehouse = Warehouse(tmp_path_factory.mktemp("homes") / "three")
    base = publish(warehouse, "base_model", "base")
    made = [make(warehouse, name, base) for name in ("first", "second", "third")]
    materialize(warehouse, base, *(record for one in made for record in one))
    return warehouse.home, made


@pytest.fixture
def made(three: tuple[Path, list[Made]]) -> list[Made]:
    return three[1]


@pytest.fixture
def warehouse(three: tuple[Path, list[Made]], tmp_path: Path) -> Warehouse:
    return Warehouse(Path(shutil.copytree(three[0], tmp_path / "home")))


def pruned(warehouse: Warehouse, keep: int = 1, named: Sequence[str] = ()) -> Plan:
    return prune(warehouse, keep, named, "me", list)


def there(warehouse: Warehouse, *records: SnapshotRecord) -> list[bool]:
    return [is_complete(warehouse.home / str(record.path)) for record in records]


def removals(warehouse: Warehouse) -> list[tuple[Any, ...]]:
    with warehouse.connection(read_only=True) as connection:
        query = "SELECT position, snapshot_id, path, bytes, who, why FROM removals ORDER BY position"
        return connection.execute(query).fetchall()


def command(warehouse: Warehouse, *words: str) -> Any:
    return CliRunner().invoke(app, [*words, "--home", str(warehouse.home)])


def test_the_newest_policies_and_all_that_they_were_made_from_stay(warehouse: Warehouse, made: list[Made]) -> None:
    found = pruned(warehouse, 2)
    assert found.kept == [made[1].policy.snapshot_id, made[2].policy.snapshot_id]
    assert [one.path for one in found.removals] == [record.path for record in made[0][:3]]
    assert there(warehouse, *made[0][:3]) == [False] * 3
    assert len(adopted_folders(warehouse.home)) == 7
    for one in made[1:]:
        records = ancestry(warehouse, one.policy.snapshot_id)
        assert len(records) == 4 and not any(verify(warehouse, record.snapshot_id) for record in records)


@pytest.mark.parametrize("seed", range(4))
def test_no_kept_policy_loses_an_ancestor_and_nothing_else_stays(tmp_path: Path, seed: int) -> None:
    """Policies from random ones of the models there are, sharing some contents, with a random alias."""
    draw, warehouse, records = random.Random(seed), Warehouse(tmp_path), []
    models: dict[str, list[SnapshotRecord]] = {"base_model": [], "sl_cai_checkpoint": [], "reward_model": []}

    def add(asset: str, *inputs: SnapshotRecord) -> SnapshotRecord:
        record = SnapshotRecord(
            asset=asset,
            key="",
            snapshot_id=f"{len(records):032x}",
            inputs={one.asset: one.snapshot_id for one in inputs},
            path=weights(tmp_path, asset, str(draw.randrange(6))),
            created_at=f"2026-01-{len(records) + 1:02}",
        )
        records.append(record)
        return record

    policies: list[SnapshotRecord] = []
    for _ in range(6):
        for asset in models:
            if not models[asset] or draw.random() < 0.4:
                models[asset].append(add(asset, *models["base_model"][-1:]))
        policies.append(
            add("ppo_policy", draw.choice(models["sl_cai_checkpoint"]), draw.choice(models["reward_model"]))
        )
    rows = [{"position": place, **dataclasses.asdict(record)} for place, record in enumerate(records)]
    with warehouse.connection(read_only=False) as connection:
        connection.register("incoming", pa.table(to_columns("snapshots", rows, positioned=False)))
        connection.execute("INSERT INTO snapshots BY NAME SELECT * FROM incoming")
    materialize(warehouse, *records)

    named = draw.choice(policies[:4])
    found = pruned(warehouse, 1, [named.snapshot_id])
    assert found.kept == [named.snapshot_id, policies[-1].snapshot_id]
    roots = [named, policies[-1], *(made[-1] for made in models.values())]
    needed = {one.path for root in roots for one in ancestry(warehouse, root.snapshot_id)}
    assert set(adopted_folders(tmp_path)) == needed and found.removals


def test_an_alias_of_the_registry_keeps_its_policy(warehouse: Warehouse, made: list[Made]) -> None:
    for version, one in enumerate(made, 1):
        registry.add_version(warehouse, "m", one.policy.snapshot_id, version)
    registry.set_alias(warehouse, "m", "champion", 2, "me", "why")
    registry.set_alias(warehouse, "m", "champion", 1, "me", "why")
    assert command(warehouse, "prune", "--keep", "1").exit_code == 0
    assert [there(warehouse, *one[:3]) for one in made] == [[True] * 3, [False] * 3, [True] * 3]


def test_what_is_current_stays_though_no_kept_policy_was_made_from_it(warehouse: Warehouse, made: list[Made]) -> None:
    base = publish(warehouse, "base_model", "other base")
    old, new = (publish(warehouse, "sl_cai_checkpoint", name, base) for name in ("old", "new"))
    materialize(warehouse, base, old, new)
    pruned(warehouse)
    assert there(warehouse, base, old, new, made[2].sl_cai) == [True, False, True, True]


def test_a_policy_that_is_used_again_is_new(warehouse: Warehouse, made: list[Made]) -> None:
    warehouse.record_materialization(made[0].policy.snapshot_id, None, reused=True)
    warehouse.record_materialization(made[2].policy.snapshot_id, None, reused=True)
    assert plan(warehouse, 2).kept == [made[0].policy.snapshot_id, made[2].policy.snapshot_id]


def test_a_folder_of_two_snapshots_stays_while_one_is_kept(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    for name in ("one", "two"):
        materialize(warehouse, publish(warehouse, "reward_model", name, contents="the same"))
        publish(warehouse, "pmp_checkpoint", name, contents="the same")
    shared = [one for one in warehouse.list() if one.asset == "reward_model"]
    assert shared[0].path == shared[1].path and shared[0].snapshot_id != shared[1].snapshot_id
    found = pruned(warehouse)
    assert there(warehouse, *shared) == [True, True]
    assert [one.record and one.record.asset for one in found.removals] == ["pmp_checkpoint"] * 2
    assert found.size == found.removals[0].size == found.removals[1].size > 0  # one folder, counted once
    assert {row[1] for row in removals(warehouse)} == {
        one.snapshot_id for one in warehouse.list("pmp_checkpoint") if one.path == found.removals[0].path
    }


@pytest.mark.parametrize("absolute", [False, True])
def test_a_model_that_lies_in_the_home_stays_with_all_that_it_was_made_from(
    warehouse: Warehouse, made: list[Made], absolute: bool
) -> None:
    """The current base model is the first policy, under another asset's name."""
    folder = warehouse.home / str(made[0].policy.path)
    remember_place(warehouse.home, "f" * 64, folder)
    if absolute:  # as where the home was named by a link
        link = warehouse.home.with_name("link")
        link.symlink_to(warehouse.home)
        (warehouse.home / PLACES / ("f" * 64)).write_text(str(link / str(made[0].policy.path)))
    row = {"fingerprint": "f" * 64, "source": LOCAL_FOLDER, "architecture": "LlamaForCausalLM", "parameters": 1}
    base = warehouse.publish(SnapshotRecord(asset="base_model", key="e" * 64), {"external_models": [row]})
    materialize(warehouse, base)
    found = pruned(warehouse)
    assert found.kept == [made[0].policy.snapshot_id, made[2].policy.snapshot_id]
    assert there(warehouse, *made[0][:3]) == [True] * 3 and there(warehouse, *made[1][:3]) == [False] * 3
    assert not any(verify(warehouse, one.snapshot_id) for one in ancestry(warehouse, made[0].policy.snapshot_id))

    # Nothing stays of a model that was current once, nor for one that lies elsewhere.
    remember_place(warehouse.home, "f" * 64, warehouse.home.parent)
    assert [one.path for one in plan(warehouse, 1).removals] == [one.path for one in made[0][:3]]


def test_a_model_in_a_folder_of_the_home_that_no_snapshot_owns_stays(warehouse: Warehouse) -> None:
    own, left = (weights(warehouse.home, "ppo_policy", name) for name in ("own", "left"))
    row = {"fingerprint": "f" * 64, "source": LOCAL_FOLDER, "architecture": "LlamaForCausalLM", "parameters": 1}
    materialize(
        warehouse,
        warehouse.publish(SnapshotRecord(asset="feedback_model", key="e" * 64), {"external_models": [row]}),
    )
    remember_place(warehouse.home, "f" * 64, warehouse.home / own)
    removed = [one.path for one in pruned(warehouse).removals]
    assert left in removed and own not in removed and (warehouse.home / own).is_dir()


def delete(warehouse: Warehouse, table: str, where: str) -> None:
    with warehouse.connection(read_only=False) as connection:
        connection.execute(f"DELETE FROM {table} WHERE {where}")


def test_nothing_is_removed_where_what_must_stay_has_no_record(warehouse: Warehouse, made: list[Made]) -> None:
    champion, ancestor = made[0].policy, made[0].reward
    registry.add_version(warehouse, "m", champion.snapshot_id, 1)
    before = adopted_folders(warehouse.home)

    def refused(who: str, what: str, *words: str) -> None:
        for dry in ([], ["--dry-run"]):
            done = command(warehouse, "prune", *(words or ("--keep", "1")), *dry)
            assert done.exit_code == 1 and "nothing was removed: " in done.stderr, done.output
            assert f"{what} is missing in {warehouse.path}, and {who} names it" in done.stderr
            assert "`rlaif verify`" in done.stderr
        assert adopted_folders(warehouse.home) == before and removals(warehouse) == []

    delete(warehouse, "snapshots", f"snapshot_id = '{ancestor.snapshot_id}'")
    lost = f"the record of snapshot {ancestor.snapshot_id}"
    refused(f"ppo_policy {champion.snapshot_id} (its reward_model)", lost, "--keep", "3")
    registry.set_alias(warehouse, "m", "champion", 1, "me", "why")
    refused(f"ppo_policy {champion.snapshot_id} (its reward_model)", lost)

    delete(warehouse, "snapshots", f"snapshot_id = '{champion.snapshot_id}'")
    lost = f"the record of snapshot {champion.snapshot_id}"
    refused("m/1 @champion", lost)
    delete(warehouse, "registrations", "true")
    refused("the alias @champion", "the registration of m/1")
    delete(warehouse, "aliases", "true")
    refused("a materialization of ppo_policy", lost, "--keep", "3")
    with pytest.raises(StoreError, match="the newest materialization of reward_model"):
        delete(warehouse, "snapshots", f"snapshot_id = '{made[2].reward.snapshot_id}'")
        delete(warehouse, "snapshots", f"snapshot_id = '{made[2].policy.snapshot_id}'")
        plan(warehouse, 1)


def test_a_missing_record_that_mlflow_names_counts_where_it_was_of_this_home(
    warehouse: Warehouse, made: list[Made]
) -> None:
    registry.add_version(warehouse, "m", made[0].policy.snapshot_id, 1)
    assert plan(warehouse, 1, ["0" * 32]).kept == [made[2].policy.snapshot_id]  # homes may share a server
    delete(warehouse, "snapshots", f"snapshot_id = '{made[0].policy.snapshot_id}'")
    with pytest.raises(StoreError, match="MLflow's alias of m/1 names it"):
        plan(warehouse, 1, [made[0].policy.snapshot_id])


def contents(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_a_dry_run_tells_and_changes_nothing(warehouse: Warehouse, made: list[Made]) -> None:
    prepare_home(warehouse.home)
    before = contents(warehouse.home)
    done = command(warehouse, "prune", "--keep", "2", "--dry-run")
    assert done.exit_code == 0 and contents(warehouse.home) == before
    size = sum(path.stat().st_size for path in (warehouse.home / str(made[0].policy.path)).iterdir())
    lines = done.output.splitlines()
    policy = made[0].policy
    told = f"ppo_policy {policy.snapshot_id} of {policy.created_at[:10]}: {size / 2**20:.2f} MB of weights"
    assert f"{told} would be removed" in lines
    assert lines[-1].startswith("0.00 MB would be removed; kept: 2 policies")
    whole = json.loads(command(warehouse, "prune", "--keep", "2", "--dry-run", "--json").output)
    assert {(one["asset"], one["path"]) for one in whole["removed"]} == {(one.asset, one.path) for one in made[0][:3]}
    assert whole["kept"] == [one.policy.snapshot_id for one in made[1:]] and whole["dry_run"] is True
    assert whole["bytes"] == sum(one["bytes"] for one in whole["removed"])
    assert next(one for one in whole["removed"] if one["snapshot_id"] == policy.snapshot_id)["bytes"] == size


def test_what_was_removed_is_recorded_and_told(warehouse: Warehouse, made: list[Made], tmp_path: Path) -> None:
    size = sum(path.stat().st_size for path in (warehouse.home / str(made[0].policy.path)).iterdir())
    done = command(warehouse, "prune", "--keep", "2")
    assert done.exit_code == 0 and "MB of weights removed" in done.output, done.output
    rows, policy = removals(warehouse), made[0].policy
    assert [row[0] for row in rows] == [0, 1, 2]
    assert rows[2][1:] == (policy.snapshot_id, policy.path, size, user_name(), "prune --keep 2")
    assert not list((warehouse.home / "work").iterdir())

    found = trace_policy(warehouse, policy.snapshot_id)
    told = {one["asset"]: one["removed"] for one in found["snapshots"]}
    assert told["base_model"] is None and told["ppo_policy"]["bytes"] == size
    day = told["ppo_policy"]["created_at"][:10]
    text = f"removed {day} by {user_name()}: prune --keep 2"
    traced = command(warehouse, "trace", policy.snapshot_id).output
    assert traced.count(f"weights {text}") == 3 and traced.count("weights checkpoints/base_model/") == 1
    assert find_snapshot(warehouse, str(warehouse.home / str(policy.path))) == policy  # by the folder that was

    verified = command(warehouse, "verify", policy.snapshot_id)
    assert verified.exit_code == 1
    assert f"ppo_policy {policy.snapshot_id}: the weights were {text}, on purpose" in verified.output
    assert "is missing or damaged" not in verified.output
    with pytest.raises(StoreError, match="`rlaif run` with the settings"):  # which is what `chat` asks
        warehouse.weights(policy)
    refused = command(warehouse, "export", policy.snapshot_id, str(tmp_path / "export"))
    assert refused.exit_code == 1
    assert f"the weights of ppo_policy {policy.snapshot_id} were {text}; `rlaif run`" in refused.stderr
    assert not (tmp_path / "export").exists()

    again = command(warehouse, "prune", "--keep", "2")
    assert again.output.startswith("0.00 MB removed") and removals(warehouse) == rows


def test_rows_stay(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    rollouts = [{"prompt_id": "p", "update": 0, "text": "said", "score": 1.0, "kl": 0.0, "tokens": 1}]
    record = SnapshotRecord(
        asset="ppo_policy", key="k" * 64, path=weights(warehouse.home, "ppo_policy", "with rollouts")
    )
    policy = warehouse.publish(record, {"rollouts": rollouts})
    publish(warehouse, "ppo_policy", "newer")
    pruned(warehouse)
    assert there(warehouse, policy) == [False] and warehouse.rows("rollouts", policy.snapshot_id) == rollouts
    (problem,) = verify(warehouse, policy.snapshot_id)
    assert "on purpose" in problem


def test_what_is_made_again_is_no_longer_told_as_removed(warehouse: Warehouse, made: list[Made]) -> None:
    policy = made[0].policy
    assert warehouse.find("ppo_policy", policy.key) == policy
    pruned(warehouse)
    assert warehouse.find("ppo_policy", policy.key) is None  # so a run of these settings makes it
    for one in made[0][:2]:
        publish(warehouse, one.asset, "first", warehouse.get(one.inputs["base_model"]))
    assert publish(warehouse, "ppo_policy", "first", *made[0][:2]) == policy
    materialize(warehouse, *made[0])
    assert warehouse.find("ppo_policy", policy.key) == policy and warehouse.weights(policy).is_dir()
    assert not any(one["removed"] for one in trace_policy(warehouse, policy.snapshot_id)["snapshots"])
    assert verify(warehouse, policy.snapshot_id) == []
    assert pruned(warehouse).kept == [policy.snapshot_id]
    made_again = [row[5] for row in removals(warehouse) if row[1] == made[2].policy.snapshot_id]
    assert made_again == ["prune --keep 1"]


def test_nothing_is_removed_while_a_run_is_open(warehouse: Warehouse, made: list[Made]) -> None:
    @dg.op
    def nothing() -> None:
        pass

    @dg.job
    def some_job() -> None:
        nothing()

    before = adopted_folders(warehouse.home)
    prepare_home(warehouse.home)
    with dg.DagsterInstance.get() as instance:
        dead = process_tags() | {PID_TAG: str(2**22 + 1)}  # above Linux's largest pid
        runs = [instance.create_run_for_job(some_job, tags=tags) for tags in (process_tags(), dead)]
        for run in runs:
            instance.report_dagster_event(dg.DagsterEvent("PIPELINE_START", some_job.name), run.run_id)
        refused = command(warehouse, "prune", "--keep", "1")
        assert refused.exit_code == 1
        assert f"nothing was removed: run {runs[0].run_id[:8]} (some_job) is alive in process" in refused.stderr
        assert adopted_folders(warehouse.home) == before and removals(warehouse) == []
        dry = command(warehouse, "prune", "--keep", "1", "--dry-run")
        assert dry.exit_code == 0 and f"prune would be refused now: run {runs[0].run_id[:8]}" in dry.stderr
        instance.report_run_canceled(runs[0])
        assert command(warehouse, "prune", "--keep", "1").exit_code == 0
    assert there(warehouse, made[0].policy, made[2].policy) == [False, True]


def test_a_relabel_a_run_that_begins_and_another_prune_are_refused(warehouse: Warehouse, made: list[Made]) -> None:
    with relabel_lock(warehouse.home, "0123456789", print):
        refused = command(warehouse, "prune", "--keep", "1")
    assert refused.exit_code == 1 and "relabels this home" in refused.stderr
    asked = iter([[], ["run 01234567 has begun"]])
    with pytest.raises(StoreError, match="nothing was removed: run 01234567 has begun"):
        prune(warehouse, 1, (), "me", lambda: next(asked))
    with filelock.FileLock(warehouse.home / LOCK), pytest.raises(StoreError, match="another prune is at work"):
        pruned(warehouse)
    assert removals(warehouse) == [] and len(adopted_folders(warehouse.home)) == 10
    assert len(pruned(warehouse).removals) == 6


@pytest.mark.parametrize("killed_at", ["rename", "rmtree"])
def test_a_prune_that_was_killed_is_ended_by_the_next(warehouse: Warehouse, made: list[Made], killed_at: str) -> None:
    words = [sys.executable, "-c", KILLED, str(warehouse.home), killed_at]
    done = subprocess.run(words, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    policy = made[0].policy
    assert policy.snapshot_id in {row[1] for row in removals(warehouse)} and len(removals(warehouse)) == 6
    removed = trace_policy(warehouse, policy.snapshot_id)["snapshots"][-1]["removed"]
    if killed_at == "rename":  # recorded, and all is still there
        assert removed is None and verify(warehouse, policy.snapshot_id) == []
        assert len(pruned(warehouse).removals) == 6 and len(removals(warehouse)) == 12
    else:  # out of sight, and still on the disk
        assert removed["who"] == "me" and list((warehouse.home / "work").glob("*/*/model.safetensors"))
        assert pruned(warehouse).removals == [] and len(removals(warehouse)) == 6
    assert not list((warehouse.home / "work").iterdir())
    assert len(adopted_folders(warehouse.home)) == 4 and there(warehouse, policy, made[2].policy) == [False, True]


def test_what_runs_that_died_left_behind_is_named(warehouse: Warehouse, made: list[Made]) -> None:
    foreign = warehouse.home / "checkpoints" / "ppo_policy" / "mine"
    foreign.mkdir()
    link = foreign.with_name("0" * 32)
    link.symlink_to(foreign)
    states = {name: warehouse.home / "unfinished" / name for name in ("ended", "pruned", "begun")}
    states["ended"] = states["ended"].with_name(f"ppo_policy-{made[2].policy.key[:32]}.pt")
    states["pruned"] = states["pruned"].with_name(f"ppo_policy-{made[0].policy.key[:32]}.pt")
    states["begun"] = states["begun"].with_name(f"ppo_policy-{'0' * 32}.pt")
    pruned(warehouse)
    states["ended"].parent.mkdir()
    for state in states.values():
        state.write_bytes(b"state")
    left = weights(warehouse.home, "reward_model", "never published")
    done = command(warehouse, "prune", "--keep", "1")
    assert f"{left}, left over: 0.00 MB of weights removed" in done.output
    assert f"ppo_policy {made[2].policy.snapshot_id} of" in done.output and "of state removed" in done.output
    assert not (warehouse.home / left).exists() and foreign.is_dir() and link.is_symlink()
    # The state of weights that are gone may be of the training that makes them again.
    assert {name: state.exists() for name, state in states.items()} == {"ended": False, "pruned": True, "begun": True}
    assert [row[1:3] for row in removals(warehouse)[-2:]] == [
        (None, left),
        (made[2].policy.snapshot_id, f"unfinished/{states['ended'].name}"),
    ]
    assert there(warehouse, made[2].policy) == [True]


def artifacts_of(home: Path, record: SnapshotRecord) -> list[Path]:
    folders = [home / "mlflow_artifacts" / str(record.mlflow_run_id)]
    model = record.metrics.get("mlflow_model_id")
    folders += [home / "mlflow_artifacts" / "models" / model] if model else []
    return [*folders, home / PICTURES / record.snapshot_id]


@pytest.fixture
def copy(home: Home, tmp_path: Path) -> Warehouse:
    """A copy of the home with a second policy, which is the candidate in the home's own record."""
    warehouse = Warehouse(Path(shutil.copytree(home.folder, tmp_path / "copy")))
    first = warehouse.get(home.first["ppo_policy"])
    inputs = [warehouse.get(one) for one in first.inputs.values()]
    second = publish(warehouse, "ppo_policy", "second", *inputs)
    materialize(warehouse, second, publish(warehouse, "policy_evaluation", "second", second, contents=None))
    registry.add_version(warehouse, "rlaif-policy", second.snapshot_id, 99)
    registry.set_alias(warehouse, "rlaif-policy", "candidate", 99, "me", "why")
    return warehouse


def test_artifacts_go_with_the_weights_and_mlflow_keeps_its_run(home: Home, copy: Warehouse) -> None:
    tracker = Tracker(None, copy.home, "rlaif", "http://127.0.0.1:5000")
    first, reward = copy.get(home.first["ppo_policy"]), copy.get(home.first["reward_model"])
    evaluation = copy.get(home.first["policy_evaluation"])
    named = named_in_mlflow(copy, tracker)  # MLflow's alias still names the first, as a person's may
    assert first.snapshot_id not in plan(copy, 1).kept and first.snapshot_id in plan(copy, 1, named).kept
    kept = command(copy, "prune", "--keep", "1")
    assert kept.exit_code == 0 and there(copy, first) == [True], kept.output
    tracker.client.delete_registered_model_alias("rlaif-policy", "candidate")
    own = [*artifacts_of(copy.home, first), *artifacts_of(copy.home, reward)]
    assert all(path.is_dir() for path in own)
    originals = contents(home.folder / "mlflow_artifacts")
    measures = tracker.client.get_run(str(first.mlflow_run_id)).data.metrics

    done = command(copy, "prune", "--keep", "1")
    assert done.exit_code == 0 and "of weights and" in done.output, done.output
    assert [path.is_dir() for path in own] == [False, False, False, True, True, True]
    assert not any(path.exists() for path in artifacts_of(copy.home, evaluation))  # the pictures of what was removed
    assert contents(home.folder / "mlflow_artifacts") == originals  # where MLflow's addresses lead
    run = tracker.client.get_run(str(first.mlflow_run_id))
    assert run.data.tags[PRUNED_TAG].endswith(f" by {user_name()}: prune --keep 1")
    assert run.data.metrics == measures and measures
    assert PRUNED_TAG in tracker.client.get_logged_model(first.metrics["mlflow_model_id"]).tags
    assert PRUNED_TAG not in (tracker.run_tags(str(reward.mlflow_run_id)) or {})
    told = verify_policy(copy, first.snapshot_id, tracker, home.instance)["problems"]
    assert len(told) == 1 and "on purpose" in told[0]
    with pytest.raises(StoreError, match="prune --keep 1"):
        export_policy(copy, first.snapshot_id, copy.home / "export")


def test_a_lost_mlflow_database_is_not_made_anew_and_links_are_not_followed(home: Home, copy: Warehouse) -> None:
    (copy.home / "mlflow.db").unlink()
    elsewhere = copy.home.parent / "elsewhere"
    (copy.home / "mlflow_artifacts").rename(elsewhere)
    (copy.home / "mlflow_artifacts").symlink_to(elsewhere)
    before = contents(elsewhere)
    first = copy.get(home.first["ppo_policy"])
    done = command(copy, "prune", "--keep", "1")
    assert done.exit_code == 0 and there(copy, first) == [False], done.output
    assert not (copy.home / "mlflow.db").exists() and not (copy.home / "history").exists()
    assert contents(elsewhere) == before


@pytest.mark.parametrize("words", [[], ["--keep", "0"]])
def test_how_many_to_keep_must_be_said(warehouse: Warehouse, made: list[Made], words: list[str]) -> None:
    assert command(warehouse, "prune", *words).exit_code == 2
    assert len(adopted_folders(warehouse.home)) == 10


def test_a_user_without_a_name_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("getpass.getuser", unknown)
    assert user_name() == f"user {os.getuid()}"
