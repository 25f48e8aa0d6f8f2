"""`rlaif verify`: a home that was copied verifies, and each thing that was done to a copy is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner

from rlaif_assets.cli import app
from rlaif_assets.store.tracking import Tracker
from rlaif_assets.store.warehouse import Warehouse
from rlaif_assets.verification import missing_databases, verify_policy
from tests.homes import Home


@pytest.fixture
def copy(home: Home, tmp_path: Path) -> Path:
    """Copied twice, and the first copy deleted: no path into the original is left to be followed."""
    shutil.copytree(home.folder, tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    shutil.rmtree(tmp_path / "first")
    return tmp_path / "copy"


def tracker(folder: Path) -> Tracker:
    return Tracker(None, folder, "rlaif", "http://127.0.0.1:5000")


def problems(home: Home, folder: Path, name: str = "@candidate", instance: bool = True) -> list[str]:
    found = verify_policy(Warehouse(folder), name, tracker(folder), home.instance if instance else None)
    assert found["snapshot_id"] == home.first["ppo_policy"] and found["snapshots"] > 15 and found["rows"] > 100
    return found["problems"]


def test_a_copied_home_verifies(home: Home, copy: Path) -> None:
    assert problems(home, copy) == []


def execute(folder: Path, *statements: str) -> None:
    with Warehouse(folder).connection(read_only=False) as connection:
        for statement in statements:
            connection.execute(statement)


def weights_of(folder: Path, asset: str) -> Path:
    record = Warehouse(folder).current(asset)
    assert record is not None and record.path is not None
    return folder / record.path


def flip_a_byte(folder: Path) -> None:
    path = weights_of(folder, "sl_cai_checkpoint") / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def change_a_label(folder: Path) -> None:
    record = Warehouse(folder).current("harmlessness_preferences")
    assert record is not None
    execute(folder, f"UPDATE labels SET p_a = 1 - p_a WHERE snapshot_id = '{record.snapshot_id}' AND position = 3")


def delete_a_judgement(folder: Path) -> None:
    warehouse = Warehouse(folder)
    record = warehouse.current("harmlessness_preferences")
    assert record is not None
    used = warehouse.rows("labels", record.snapshot_id)[0]["judgement_ids"][0]
    execute(folder, f"DELETE FROM judgements WHERE judgement_id = '{used}'")


def swap_checkpoints(folder: Path) -> None:
    target = weights_of(folder, "ppo_policy")
    shutil.rmtree(target)
    shutil.copytree(weights_of(folder, "sl_cai_checkpoint"), target)


def delete_a_run(folder: Path) -> None:
    record = Warehouse(folder).current("reward_model")
    assert record is not None
    tracker(folder).client.delete_run(str(record.mlflow_run_id))


def delete_mlflow(folder: Path) -> None:
    (folder / "mlflow.db").unlink()


def change_a_tag(folder: Path) -> None:
    record = Warehouse(folder).current("reward_model")
    assert record is not None
    tracker(folder).client.set_tag(str(record.mlflow_run_id), "rlaif.snapshot.response_pairs", "another")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (flip_a_byte, ["sl_cai_checkpoint", "model.safetensors has changed"]),
        (change_a_label, ["harmlessness_preferences", "labels: the rows' hash differs"]),
        (delete_a_judgement, ["harmlessness_preferences", "labels: judgement", "is missing"]),
        (swap_checkpoints, ["ppo_policy", "content hash of rows and weights differs"]),
        (delete_a_run, ["reward_model", "MLflow: run", "is missing or was deleted"]),
        (delete_mlflow, ["MLflow: mlflow.db is missing"]),
        (change_a_tag, ["reward_model", "names other versions of response_pairs"]),
    ],
)
def test_damage_is_named(home: Home, copy: Path, damage: Callable[[Path], None], named: list[str]) -> None:
    damage(copy)
    found = problems(home, copy, home.first["ppo_policy"])
    assert len(found) == 1 and all(part in found[0] for part in named), found


def test_a_materialization_that_dagster_does_not_know_is_named(home: Home, copy: Path) -> None:
    with dg.DagsterInstance.ephemeral() as empty:
        found = verify_policy(Warehouse(copy), "@candidate", tracker(copy), empty)["problems"]
    assert len(found) > 15 and all("Dagster: its event log has no materialization of it" in one for one in found)


def test_missing_databases_of_dagster_are_named(home: Home, copy: Path) -> None:
    assert missing_databases(copy) == ["history/runs.db", "history/runs/index.db"]
    assert problems(home, copy, instance=False) == [
        "Dagster: history/runs.db and history/runs/index.db missing: its record is lost"
    ]
    (copy / "dagster.yaml").write_text("storage:\n  postgres: {}\n")
    assert missing_databases(copy) == []


def test_the_command_ends_with_1_and_makes_no_database_of_what_is_missing(home: Home, copy: Path) -> None:
    (copy / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    words = ["verify", "@candidate", "--home", str(copy)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1 and "history/runs.db" in done.output and "1 problems" in done.output
    assert not (copy / "history").exists()
    assert json.loads(CliRunner().invoke(app, [*words, "--json"]).output)["snapshots"] > 15
