"""`rlaif verify`: a home that was copied verifies, and each thing that was done to a copy is named."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner, Result

from rlaif_assets.assets.configuration import AuditLimits
from rlaif_assets.cli import app
from rlaif_assets.evaluation.as_published import LIMITS, SOURCES
from rlaif_assets.store.fingerprint import row_id
from rlaif_assets.store.lineage import ancestry
from rlaif_assets.store.tracking import Tracker
from rlaif_assets.store.warehouse import Warehouse
from rlaif_assets.verification import missing_databases, verify_policy
from tests.homes import Home


@pytest.fixture
def copy(home: Home, tmp_path: Path) -> Iterator[Path]:
    """The home's folder is away meanwhile: no path into the original can be followed."""
    shutil.copytree(home.folder, tmp_path / "copy")
    away = home.folder.rename(home.folder.with_name("away"))
    try:
        yield tmp_path / "copy"
    finally:
        away.rename(home.folder)


@pytest.fixture
def command(home: Home, copy: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`rlaif verify` of the copy, with the Dagster instance that the home was made with, which is in no file."""
    monkeypatch.setattr("rlaif_assets.cli_lineage.dagster_instance", lambda: nullcontext(home.instance))
    monkeypatch.setattr("rlaif_assets.verification.missing_databases", lambda folder: [])
    return lambda *words: CliRunner().invoke(app, ["verify", *words, "--home", str(copy)])


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


def mlflow_sql(statement: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with closing(sqlite3.connect(folder / "mlflow.db")) as connection, connection:
            assert connection.execute(statement).rowcount

    return change


def sql(statement: str) -> Callable[[Path], None]:
    return lambda folder: execute(folder, statement)


def delete_the_registered_model(folder: Path) -> None:
    tracker(folder).client.delete_registered_model("rlaif-policy")


def change_an_audit(folder: Path) -> None:
    record = Warehouse(folder).current("harmlessness_preferences")
    assert record is not None
    passport = record.metrics["passport"]
    passport["audits"][0]["passed"] = not passport["audits"][0]["passed"]
    content = {name: value for name, value in passport.items() if name not in ("passport_id", "date")}
    passport["passport_id"] = row_id("passport", content)
    told = json.dumps(record.metrics).replace("'", "''")
    execute(folder, f"UPDATE snapshots SET metrics = '{told}' WHERE snapshot_id = '{record.snapshot_id}'")


def set_of(asset: str, values: str) -> Callable[[Path], None]:
    return sql(f"UPDATE snapshots SET {values} WHERE asset = '{asset}'")


def merged(column: str, change: str) -> str:
    return f"{column} = json_merge_patch({column}, '{change}')"


KEY = "its key does not follow from its inputs, settings and code version"
SAYS = "Dagster: a materialization says otherwise: "
# Damages of one copy hide none of each other.
DAMAGE = [
    {
        set_of("ppo_policy", merged("settings", '{"kl_coefficient": 9.9}')): [
            f"{SAYS}settings",
            "has other settings: kl_coefficient",
        ],
        set_of("helpful_prompts", merged("settings", '{"limit": 9}')): [KEY, f"{SAYS}settings"],
        change_a_label: ["harmlessness_preferences", "labels: the rows' hash differs"],
        sql("UPDATE judgements SET principle_id = 'nobody'"): ["is of principle nobody"],
        sql("UPDATE judgements SET pair_id = 'none'"): ["is of pair none"],
        delete_a_run: ["reward_model", "MLflow: run", "is missing or was deleted"],
    },
    {
        delete_a_judgement: ["harmlessness_preferences", "labels: judgement", "is missing"],
        swap_checkpoints: ["ppo_policy", "content hash of rows and weights differs"],
        change_a_tag: ["reward_model", "names other versions of response_pairs"],
        set_of("ppo_policy", "code_version = 99"): [KEY, f"{SAYS}code_version", "has dagster.code_version"],
        set_of("reward_model", "dagster_run_id = 'another'"): [
            "Dagster: run another is missing or was deleted",
            "has dagster.run_id",
        ],
    },
    {
        set_of("ppo_policy", "mlflow_run_id = NULL"): ["MLflow: it names the page", "and no run"],
        set_of("reward_model", "mlflow_run_id = NULL, " + merged("metrics", '{"mlflow_url": null}')): [
            f"{SAYS}mlflow",
            "MLflow was away when it was made",
        ],
        change_an_audit: ["the audits in its passport are not its verdicts", f"{SAYS}passport"],
        delete_the_registered_model: ["rlaif-policy/1 is", "nothing in MLflow's registry"],
        sql("DELETE FROM materializations"): ["the warehouse does not know of its materialization by run"],
    },
    {
        sql("UPDATE labels SET judgement_ids = NULL WHERE position = 3"): ["labels: the judgements of label"],
        sql("UPDATE pairs SET position = NULL WHERE position = 2"): ["pairs: 1 of", "missing, at positions 2"],
        mlflow_sql("UPDATE latest_metrics SET value = value + 1 WHERE key = 'judging/computed'"): [
            "harmlessness_preferences",
            "has other metrics: judging/computed",
        ],
        mlflow_sql("UPDATE datasets SET digest = 'another' WHERE name = 'comparisons'"): ["was told to read another"],
        mlflow_sql(
            "DELETE FROM inputs WHERE destination_id IN (SELECT run_uuid FROM runs WHERE name LIKE '%sl_cai%')"
        ): [
            "sl_cai_checkpoint",
            "names no data set that it read",
        ],
        mlflow_sql("DELETE FROM registered_model_aliases WHERE alias = 'candidate'"): [
            "rlaif-policy@candidate is",
            "nothing in MLflow's registry",
        ],
    },
    {
        delete_mlflow: ["MLflow: mlflow.db is missing"],
        sql("INSERT INTO snapshots SELECT * FROM snapshots WHERE asset = 'ppo_policy'"): [
            "the warehouse has 2 records of it"
        ],
    },
    {
        flip_a_byte: ["sl_cai_checkpoint", "model.safetensors has changed"],
        sql(
            "UPDATE registrations SET snapshot_id = (SELECT snapshot_id FROM snapshots"
            " WHERE asset = 'sl_cai_checkpoint' LIMIT 1)"
        ): ["rlaif-policy/1 is"],
    },
]


@pytest.mark.parametrize("damages", DAMAGE)
def test_damage_is_named_and_ends_the_command_with_1(
    copy: Path, command: Callable[..., Result], damages: dict[Callable[[Path], None], list[str]]
) -> None:
    for damage in damages:
        damage(copy)
    done = command("@candidate", "--json")
    assert done.exit_code == 1
    found = json.loads(done.output)
    told = "\n".join([*found["problems"], *found["notes"]])
    assert found["problems"] and [part for named in damages.values() for part in named if part not in told] == [], told


def test_what_cannot_be_read_is_named_and_no_crash(home: Home, copy: Path, command: Callable[..., Result]) -> None:
    labels = home.first["harmlessness_preferences"]
    execute(copy, "UPDATE pairs SET response_a = NULL WHERE position = 1")
    done = command("@candidate")
    assert done.exit_code == 1 and "not foreseen" not in done.output and "pairs: the rows' hash differs" in done.output
    execute(copy, f"UPDATE snapshots SET settings = NULL WHERE snapshot_id = '{labels}'")
    done = command("@candidate")
    assert done.exit_code == 1 and f"the record of snapshot {labels}" in done.output, done.output


def test_the_limits_of_audits_are_in_no_key() -> None:
    assert AuditLimits.model_fields.keys() == LIMITS


def test_without_damage_the_command_ends_with_0(command: Callable[..., Result]) -> None:
    done = command("@candidate")
    assert done.exit_code == 0 and "0 problems" in done.output, done.output


def test_the_log_of_a_run_that_was_deleted_is_missed(home: Home, copy: Path) -> None:
    (copy / "history" / "runs").mkdir(parents=True)
    record = home.first["ppo_policy"]
    runs = {one.dagster_run_id for one in ancestry(Warehouse(copy), record)}
    for name in ("index", *runs):
        (copy / "history" / "runs" / f"{name}.db").touch()
    assert problems(home, copy) == []
    for name in runs:
        (copy / "history" / "runs" / f"{name}.db").unlink()
    assert all("Dagster: the log of run" in one and "is missing" in one for one in problems(home, copy))


def test_the_assets_without_a_run_in_mlflow_are_the_sources(home: Home) -> None:
    records = ancestry(home.warehouse, home.first["ppo_policy"])
    assert {record.asset for record in records if record.mlflow_run_id is None} == SOURCES


def test_a_materialization_that_dagster_does_not_know_is_named(home: Home, copy: Path) -> None:
    with dg.DagsterInstance.ephemeral() as empty:
        found = verify_policy(Warehouse(copy), "@candidate", tracker(copy), empty)["problems"]
    assert sum("Dagster: its event log has no materialization of it" in one for one in found) > 15
    assert sum("is missing or was deleted" in one for one in found) > 15


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
