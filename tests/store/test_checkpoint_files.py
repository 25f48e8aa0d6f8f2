"""Checkpoint folders: adopted whole or not at all; only safetensors."""

import json
import shutil
from pathlib import Path

import pytest

from rlaif_assets.store.checkpoint_files import (
    MARKER,
    adopt_folder,
    folder_problems,
    is_complete,
    new_work_folder,
    remove_dead_work,
)
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.fingerprint import file_sha256, folder_fingerprint


def saved(home: Path, contents: bytes = b"weights") -> Path:
    folder = new_work_folder(home)
    (folder / "model.safetensors").write_bytes(contents)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_folder_is_renamed_and_marked(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    fingerprint = folder_fingerprint(folder)
    relative = adopt_folder(folder, tmp_path, "sl_cai_checkpoint", fingerprint)
    assert relative == f"checkpoints/sl_cai_checkpoint/{fingerprint[:32]}"
    assert not folder.exists()
    assert is_complete(tmp_path / relative)
    assert folder_problems(tmp_path / relative) == []
    assert folder_fingerprint(tmp_path / relative) == fingerprint


def test_the_same_weights_are_kept_once_and_damaged_ones_replaced(tmp_path: Path) -> None:
    relative = adopt_folder(saved(tmp_path), tmp_path, "ppo_policy")
    again = saved(tmp_path)
    assert adopt_folder(again, tmp_path, "ppo_policy") == relative
    assert not again.exists()
    (tmp_path / relative / "model.safetensors").write_bytes(b"we")
    assert not is_complete(tmp_path / relative)
    assert adopt_folder(saved(tmp_path), tmp_path, "ppo_policy") == relative
    assert folder_problems(tmp_path / relative) == []


def test_programs_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / "modeling_own.py").write_text("x = 1")
    with pytest.raises(StoreError, match="is a program"):
        adopt_folder(folder, tmp_path, "ppo_policy")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "optimizer.pt", "model.pkl"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path)
    (folder / name).write_bytes(b"x")
    with pytest.raises(StoreError, match=f"{name} may hold a pickle"):
        adopt_folder(folder, tmp_path, "ppo_policy")
    assert folder.exists()
    assert not (tmp_path / "checkpoints").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"holds no \*\.safetensors"):
        adopt_folder(new_work_folder(tmp_path), tmp_path, "ppo_policy")
    with pytest.raises(StoreError, match="not a folder"):
        adopt_folder(tmp_path / "none", tmp_path, "ppo_policy")
    with pytest.raises(StoreError, match="not an asset's name"):
        adopt_folder(saved(tmp_path), tmp_path, "../up")
    with pytest.raises(StoreError, match="changed after hashing"):
        adopt_folder(saved(tmp_path), tmp_path, "ppo_policy", "0" * 64)
    linked, nested = saved(tmp_path), saved(tmp_path)
    (linked / "tokenizer.json").symlink_to("/etc/hostname")
    (nested / "checkpoint-1").mkdir()
    for folder in (linked, nested):
        with pytest.raises(StoreError, match="is a link or a folder"):
            adopt_folder(folder, tmp_path, "ppo_policy")


def test_every_kind_of_damage_is_named(tmp_path: Path) -> None:
    folder = tmp_path / adopt_folder(saved(tmp_path), tmp_path, "ppo_policy")
    weights = folder / "model.safetensors"
    weights.write_bytes(b"weightz")
    assert is_complete(folder)
    assert "model.safetensors has changed" in folder_problems(folder)[0]
    weights.unlink()
    assert "model.safetensors is missing" in folder_problems(folder)[0]
    assert not is_complete(folder)
    weights.write_bytes(b"weights")
    (folder / "adapter.safetensors").write_bytes(b"x")
    assert "adapter.safetensors was added later" in folder_problems(folder)[0]
    (folder / "adapter.safetensors").unlink()
    (folder / "modeling_own.py").write_text("x = 1")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (folder / "runs").mkdir()
    added = [f"{folder.name}/{name} was added later" for name in ("modeling_own.py", "pytorch_model.bin", "runs")]
    assert folder_problems(folder) == added
    for name in ("modeling_own.py", "pytorch_model.bin"):
        (folder / name).unlink()
    (folder / "runs").rmdir()
    assert folder_problems(folder) == []
    marker = json.loads((folder / MARKER).read_text())
    (folder / "modeling_own.py").write_text("x = 1")
    own = {"size": 5, "sha256": file_sha256(folder / "modeling_own.py")}
    for change, told in (
        ({"fingerprint": "0" * 64}, "its fingerprint is not that of"),
        ({"files": {**marker["files"], "config.json": {**marker["files"]["config.json"], "size": 3}}}, "another size"),
        ({"files": {**marker["files"], "modeling_own.py": own}}, "modeling_own.py may run code"),
    ):
        (folder / MARKER).write_text(json.dumps(marker | change))
        assert any(told in problem for problem in folder_problems(folder)), told
    for damage in ("", "{", "[]", "{}", '{"fingerprint": "", "files": []}', '{"fingerprint": "", "files": {"a": 1}}'):
        (folder / MARKER).write_text(damage)
        assert not is_complete(folder)
        assert "missing or damaged" in folder_problems(folder)[0]


def test_only_dead_processes_work_folders_are_removed(tmp_path: Path) -> None:
    assert remove_dead_work(tmp_path) == []
    mine = saved(tmp_path)
    dead = mine.with_name(f"{2**22 + 1}-{'0' * 32}")  # above Linux's largest pid
    shutil.copytree(mine, dead)
    for foreign in ("my-notes", "99999999999999999999-x", "4194305-notes"):
        (mine.parent / foreign).mkdir()
    assert remove_dead_work(tmp_path) == [dead.name]
    assert mine.exists() and not dead.exists()
    assert {folder.name for folder in mine.parent.iterdir()} == {
        mine.name,
        "my-notes",
        "99999999999999999999-x",
        "4194305-notes",
    }
