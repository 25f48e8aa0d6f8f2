"""Weights on disk: written to a work folder, synced, marked, renamed into the home. Only safetensors.

What the weights mean belongs to `training`; which snapshot owns a folder, to `warehouse`. The marker is written before
the rename, so a folder under `checkpoints/` either is whole or was damaged later.
"""

import json
import os
import re
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import psutil

from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.fingerprint import file_sha256, files_fingerprint

RESUME_FOLDER = "unfinished"  # states of trainings that were killed
MARKER = "rlaif_checkpoint.json"
CODE = ".py"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".msgpack", ".h5")


def new_work_folder(home: Path) -> Path:
    """A new empty folder on the same file system as the checkpoints. Its owner removes it, or has it adopted."""
    folder = home / "work" / f"{os.getpid()}-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    return folder


def remove_dead_work(home: Path) -> list[str]:
    """Removes the work folders and half-written states that no process of this host is at work on; returns their names.

    What has another name than `new_work_folder` gives is not ours and stays.
    Only for a home on which no run is open: another host's process cannot be seen from here.
    """
    removed = []
    for folder in sorted((home / "work").glob("*-*")):
        ours = re.fullmatch(r"(\d{1,9})-[0-9a-f]{32}", folder.name)
        if ours and not psutil.pid_exists(int(ours[1])):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
    for part in sorted((home / RESUME_FOLDER).glob("*.part")):
        ours = re.fullmatch(r".*\.pt\.(\d{1,9})\.part", part.name)
        if ours and not psutil.pid_exists(int(ours[1])):
            part.unlink(missing_ok=True)
            removed.append(part.name)
    return removed


def killed_trainings(home: Path) -> list[str]:
    """A line for each state that a killed training left and that the same run would go on from."""
    lines = []
    for state in sorted((home / RESUME_FOLDER).glob("*.pt")):
        size, days = state.stat().st_size / 2**20, (time.time() - state.stat().st_mtime) / 86400
        lines.append(
            f"{RESUME_FOLDER}/{state.name} ({size:.0f} MB, {days:.1f} days old) is the state of a training that did "
            "not end: the same run goes on from it; remove it if none will come"
        )
    return lines


def adopt_folder(temporary: Path, home: Path, asset: str, content_hash: str | None = None) -> str:
    """Renames a finished model folder to `checkpoints/ASSET/FINGERPRINT`; returns that path relative to `home`.

    `content_hash`: the folder's fingerprint, checked where given. A whole folder of the same content that is already
    there is kept and the temporary one removed; a damaged one is replaced. Raises StoreError on pickles, links,
    subfolders, or when there are no safetensors.
    """
    if not re.fullmatch(r"[a-z0-9_]+", asset):
        raise StoreError(f"{asset!r} is not an asset's name: use a-z, 0-9 and _")
    hashes = {path.name: file_sha256(path) for path in _checked_files(temporary)}
    fingerprint = files_fingerprint(hashes)
    if content_hash not in (None, fingerprint):
        raise StoreError(f"{temporary} has the fingerprint {fingerprint}, not {content_hash}: it changed after hashing")
    relative = f"checkpoints/{asset}/{fingerprint[:32]}"
    target = home / relative
    if is_complete(target) and marked_fingerprint(target) == fingerprint:
        shutil.rmtree(temporary)
        return relative
    files = {name: {"size": (temporary / name).stat().st_size, "sha256": hashes[name]} for name in sorted(hashes)}
    (temporary / MARKER).write_text(json.dumps({"fingerprint": fingerprint, "files": files}, indent=1))
    for name in [*files, MARKER]:
        _sync(temporary / name)
    _sync(temporary)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(new_work_folder(home) / "damaged")
    temporary.rename(target)
    _sync(target.parent)
    return relative


def adopted_folders(home: Path) -> list[str]:
    """What `adopt_folder` has made in this home, by the paths that it returned. Folders of other names are not ours,
    nor is what a link leads to."""
    root, found = home.resolve(), []
    for folder in sorted((root / "checkpoints").glob("*/*")):
        if re.fullmatch(r"[0-9a-f]{32}", folder.name) and folder.is_dir() and folder.resolve() == folder:
            found.append(str(folder.relative_to(root)))
    return found


def _checked_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise StoreError(f"{folder} is not a folder: save the model there first")
    paths = sorted(path for path in folder.iterdir() if path.name != MARKER)
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise StoreError(f"{path} is a link or a folder: a checkpoint holds plain files only")
        if path.suffix in PICKLES:
            raise StoreError(f"{path} may hold a pickle, which runs code when loaded: save safetensors only")
        if path.suffix == CODE:
            raise StoreError(
                f"{path} is a program, which may run when the model is loaded: save the weights without it"
            )
    if not any(path.suffix == ".safetensors" for path in paths):
        raise StoreError(f"{folder} holds no *.safetensors file: save the model with safe serialization")
    return paths


def read_marker(folder: Path) -> dict[str, Any] | None:
    """{"fingerprint": hex, "files": {name: {"size": bytes, "sha256": hex}}}, or None where it is missing or damaged."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(marker, dict) or not {"fingerprint", "files"} <= marker.keys():
        return None
    files = marker["files"]
    known = isinstance(files, dict) and all(
        isinstance(one, dict) and {"size", "sha256"} <= one.keys() for one in files.values()
    )
    return marker if known else None


def marked_fingerprint(folder: Path) -> str | None:
    marker = read_marker(folder)
    return marker["fingerprint"] if marker else None


def require_language_model(folder: Path, name: str) -> None:
    """Raises StoreError unless its config names a causal language model: a reward model neither talks nor generates."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{name}: {folder / 'config.json'} cannot be read: {error}") from error
    architectures = config.get("architectures") or []
    if not any(one.endswith(("ForCausalLM", "LMHeadModel")) for one in architectures):
        raise StoreError(
            f"{name} is {' or '.join(architectures) or 'of no known architecture'}, not a causal language model: name "
            "a policy, such as ppo_policy or sl_cai_checkpoint"
        )


def is_complete(folder: Path) -> bool:
    """The marker is there and every file that it names has its size. Contents: see `folder_problems`."""
    marker = read_marker(folder)
    if marker is None:
        return False
    try:
        return all((folder / name).stat().st_size == entry["size"] for name, entry in marker["files"].items())
    except OSError:
        return False


def folder_problems(folder: Path) -> list[str]:
    """Re-hashes every file: what is missing, changed or was added, whatever it is: transformers would load a pickle, or
    run a module, that lies there. The marker too must be as it was written. Empty when the folder is as it was
    adopted."""
    marker = read_marker(folder)
    if marker is None:
        return [f"{folder.name}: {MARKER} is missing or damaged"]
    problems = []
    fingerprint = files_fingerprint({name: str(entry["sha256"]) for name, entry in marker["files"].items()})
    if marker["fingerprint"] != fingerprint:
        problems.append(f"{folder.name}/{MARKER} has changed: its fingerprint is not that of the files that it names")
    for name, entry in marker["files"].items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            problems.append(f"{folder.name}/{name} is missing")
        elif file_sha256(path) != entry["sha256"]:
            problems.append(f"{folder.name}/{name} has changed (sha256 differs from the one in {MARKER})")
        elif path.stat().st_size != entry["size"]:
            problems.append(f"{folder.name}/{MARKER} has changed: {name} has another size")
        elif path.suffix in (CODE, *PICKLES):
            problems.append(f"{folder.name}/{name} may run code when it is loaded, and was not adopted so")
    for path in sorted(folder.iterdir()):
        if path.name not in marker["files"] and path.name != MARKER:
            problems.append(f"{folder.name}/{path.name} was added later")
    return problems


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
