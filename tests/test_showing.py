"""What Dagster's pages show: columns, where they come from, source links, numbers to follow, texts as texts."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from rlaif_assets.assets import showing
from rlaif_assets.assets.showing import COLUMN_LINEAGE, SAMPLE_ROWS, preview, sample
from rlaif_assets.definitions import defs
from rlaif_assets.store import warehouse
from tests.homes import Home

SPECS = {s.key.to_user_string(): s for s in sorted(defs.resolve_all_asset_specs(), key=lambda spec: spec.key)}
TABLES = {name: spec.metadata["dagster/table_name"] for name, spec in SPECS.items()}
LINEAGE = {name: spec.metadata[COLUMN_LINEAGE] for name, spec in SPECS.items() if COLUMN_LINEAGE in spec.metadata}


def columns(asset: str) -> list[str]:
    return [column.name for column in SPECS[asset].metadata["dagster/column_schema"].columns]


@pytest.mark.parametrize("asset", TABLES)
def test_the_columns_of_an_asset_are_those_of_its_table(asset: str) -> None:
    schema = (Path(warehouse.__file__).parent / "schema.sql").read_text()
    found = re.search(
        rf"CREATE TABLE {TABLES[asset]} \(\s*snapshot_id VARCHAR, position BIGINT,(.*?)\n\);", schema, re.S
    )
    assert found is not None
    assert [part.split()[0].strip('"') for part in found[1].split(",")] == columns(asset)


def test_every_table_that_is_made_of_others_tells_from_which_columns() -> None:
    assert LINEAGE.keys() == {name for name, spec in SPECS.items() if list(spec.deps)}


@pytest.mark.parametrize("asset", LINEAGE)
def test_columns_come_from_columns_that_are_there(asset: str) -> None:
    upstream = {dep.asset_key.to_user_string() for dep in SPECS[asset].deps}
    for column, made_of in LINEAGE[asset].deps_by_column.items():
        assert column in columns(asset) and made_of
        for dep in made_of:
            name = dep.asset_key.to_user_string()
            assert name in upstream and dep.column_name in columns(name), f"{column} of {name}.{dep.column_name}"


def test_every_asset_leads_to_its_source() -> None:
    for asset, spec in SPECS.items():
        (reference,) = spec.metadata["dagster/code_references"].code_references
        lines = Path(reference.file_path).read_text().splitlines()[reference.line_number - 1 :][:40]
        assert "@dg.asset" in lines[0], (asset, reference)
        assert any(asset in line or 'reward_model_half_{half}"' in line for line in lines), (asset, reference)


def shown(home: Home, asset: str) -> Mapping[str, dg.MetadataValue]:
    event = home.instance.get_latest_materialization_event(dg.AssetKey(asset))
    assert event is not None and event.asset_materialization is not None
    return event.asset_materialization.metadata


def test_numbers_to_follow_have_short_names_and_are_those_that_are_stored(home: Home) -> None:
    labels = home.warehouse.rows("labels", home.ids()["harmlessness_preferences"])
    flipped = [row["flipped"] for row in labels if row["flipped"] is not None]
    wanted: dict[str, dict[str, Any]] = {
        "policy_evaluation": {
            row["measure"]: row["value"]
            for row in home.warehouse.rows("evaluation_rates", home.ids()["policy_evaluation"])
            if row["split"] == "test"
            and (row["subject"], row["measure"])
            in {("ppo", "harmless_rate"), ("ppo", "helpful_rate"), ("ppo_vs_sl_cai", "win_rate")}
        },
        "harmlessness_preferences": {"flip_rate": sum(flipped) / len(flipped)},
        "reward_model": {
            f"accuracy_{source}": found["accuracy"]
            for source, found in metrics(home, "reward_model")["heldout"].items()
        },
    }
    for asset, numbers in wanted.items():
        found = shown(home, asset)
        for name, value in numbers.items():
            if value is None:
                assert name not in found
            else:
                assert isinstance(found[name], dg.FloatMetadataValue) and found[name].value == pytest.approx(value)
        assert isinstance(found["tokens_per_second"], dg.FloatMetadataValue)
    assert wanted["reward_model"]
    assert wanted["policy_evaluation"].keys() == {"harmless_rate", "helpful_rate", "win_rate"}


def metrics(home: Home, asset: str) -> dict[str, Any]:
    return home.warehouse.get(home.ids()[asset]).metrics


def test_what_a_person_looks_for_comes_first_and_columns_tell_where_they_come_from(home: Home) -> None:
    found = shown(home, "policy_evaluation")
    names = list(found)
    first = [names.index(name) for name in ("snapshot_id", "harmless_rate", "rates", "mlflow", "preview", "settings")]
    assert first == sorted(first)
    assert found[COLUMN_LINEAGE] == dg.MetadataValue.column_lineage(LINEAGE["policy_evaluation"])
    assert all(name.startswith("metrics/") for name in names[names.index("device") + 1 :])


def test_markup_in_a_text_stays_a_text_of_a_table() -> None:
    text = "![x](http://127.0.0.1/x.png) <script>alert(1)</script>\n# <b>big</b>"
    found = preview([{"text": text}])
    assert isinstance(found, dg.TableMetadataValue)
    assert found.records[0].data == {"text": text.replace("\n", " ")}


def test_a_preview_is_of_all_rows_with_ids_last_and_whole_numbers_as_they_are(home: Home) -> None:
    rows = [{"row_id": "a" * 32, "seed": 2**53 + 1, "count": 2**53, "text": "t"}]
    found = preview(rows)
    assert list(found.records[0].data) == ["seed", "count", "text", "row_id"]
    assert found.records[0].data["seed"] == str(2**53 + 1) and found.records[0].data["count"] == 2**53
    shown_rates = shown(home, "policy_evaluation")["preview"]
    assert isinstance(shown_rates, dg.TableMetadataValue)
    assert {"base", "ppo"} <= {row.data["subject"] for row in shown_rates.records}
    assert {row.data["split"] for row in shown_rates.records} == {"dev", "test"}


def test_mlflow_is_told_what_was_read_and_shows_the_policies_side_by_side(home: Home) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home.folder / 'mlflow.db'}")
    read = {}
    for asset in ("ppo_policy", "policy_evaluation"):
        run = client.get_run(str(home.warehouse.get(home.ids()[asset]).mlflow_run_id))
        assert run.inputs is not None
        read[asset] = {(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs}
    prompts = {("prompts", home.ids()[name]) for name in ("red_team_prompts", "helpful_prompts")}
    assert read["ppo_policy"] == prompts
    labels = home.ids()["harmlessness_preferences"]
    assert read["policy_evaluation"] > prompts | {("labels", labels)}
    assert ("rollouts", home.ids()["ppo_policy"]) not in read["policy_evaluation"]
    place = client.download_artifacts(run.info.run_id, "samples/side_by_side.json")
    table = json.loads(Path(place).read_text())
    wanted = {"kind", "prompt", "base", "base verdict", "sl_cai", "sl_cai verdict", "ppo", "ppo verdict"}
    assert set(table["columns"]) == wanted and table["data"]


def test_a_sample_is_drawn_from_all_rows_and_shortened() -> None:
    rows = [{"row": place, "text": f"{place} " + "long " * 500} for place in range(1000)]
    found = sample(rows)
    assert [row * SAMPLE_ROWS // 1000 for row in found["row"]] == list(range(SAMPLE_ROWS))
    assert {row % 3 for row in found["row"]} == {0, 1, 2} and found["row"][:2] == [0, 11]
    assert {len(text) for text in found["text"]} == {showing.SAMPLE_CHARACTERS} and found["text"][1].startswith(
        "11 long"
    )
    assert sample(rows[:3])["row"] == [0, 1, 2] and sample([]) == {}
