"""A model in a folder outside of the home: what it is counts, not where it lies."""

import shutil
from pathlib import Path

import pytest

from rlaif_assets.evaluation.as_published import record_problems
from rlaif_assets.language_models.external import external_problems
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.model_places import LOCAL_FOLDER, locate, remember_place
from tests.homes import Home, failure, metadata
from tests.tiny_models import tiny_model

CHOSEN = ["base_model", "critique_constitution", "red_team_prompts"]


def test_a_moved_model_is_found_again_and_is_the_same_snapshot(tmp_path: Path) -> None:
    old, new = tiny_model("llama", tmp_path / "old"), tmp_path / "elsewhere" / "renamed"
    home = Home(tmp_path / "home", old)
    assert home.run(CHOSEN).success
    before = home.ids()
    assert str(tmp_path) not in str(home.warehouse.rows("external_models", before["base_model"]))
    shutil.move(old, new)
    assert "does not exist" in failure(home.run(["revised_responses"]))
    found = metadata(home.run(["base_model"], f"base_model.source={new}"))
    assert found["base_model"]["reused"] and home.ids() == before
    step = home.run(["revised_responses"])
    assert step.success, failure(step)
    other = Home(tmp_path / "other", new)
    assert other.run(["base_model"]).success
    assert other.ids()["base_model"] == before["base_model"]


def test_a_folder_that_the_home_was_never_told_is_asked_for(tmp_path: Path) -> None:
    row = {"fingerprint": "f" * 64, "source": LOCAL_FOLDER, "revision": None}
    with pytest.raises(StoreError, match="does not know where"):
        locate(tmp_path, row)
    remember_place(tmp_path, "f" * 64, tmp_path / "first")
    remember_place(tmp_path, "f" * 64, tmp_path / "second")
    assert locate(tmp_path, row) == (str(tmp_path / "second"), None)
    remember_place(tmp_path / "home", "f" * 64, tmp_path / "home" / "models" / "own")
    shutil.move(tmp_path / "home", tmp_path / "moved")
    assert locate(tmp_path / "moved", row) == (str(tmp_path / "moved" / "models" / "own"), None)
    assert locate(tmp_path, {**row, "fingerprint": "e" * 64, "source": "a/b", "revision": "1"}) == ("a/b", "1")


def test_the_packaged_model_is_the_homes_own_and_verifies(model: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "home", model, "base_model.source=pocket")
    made = home.run(["base_model"])
    assert made.success, failure(made)
    record = home.warehouse.get(home.ids()["base_model"])
    assert record.path is not None and home.warehouse.rows("external_models", record.snapshot_id)
    assert [*record_problems(home.warehouse, record), *external_problems(home.warehouse, record)] == []
