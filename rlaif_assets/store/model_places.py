"""Where models outside of the home lie on this machine: one small file per fingerprint in the home's `model_places`.

A place may change and is no part of any id or hash; what the model is belongs to its snapshot's row in the warehouse.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif_assets.store.errors import StoreError

LOCAL_FOLDER = "folder"  # the `source` of a model that came from a folder, wherever that was
PLACES = "model_places"


def remember_place(home: Path, fingerprint: str, folder: Path) -> None:
    """From now on the model of this fingerprint is loaded from this folder; one that lies in the home moves with it."""
    place = home / PLACES / fingerprint
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_suffix(f".{os.getpid()}")
    told, own = folder.absolute(), home.absolute()
    temporary.write_text(str(told.relative_to(own) if told.is_relative_to(own) else told), encoding="utf-8")
    temporary.replace(place)


def locate(home: Path, row: Mapping[str, Any]) -> tuple[str, str | None]:
    """(folder, None) or (hub id, commit) of a row of `external_models`; whoever loads it checks the fingerprint.

    Raises StoreError where the home was never told the folder.
    """
    place = home / PLACES / row["fingerprint"]
    if place.is_file():
        return str(home / place.read_text(encoding="utf-8")), None  # an absolute place stays what it is
    if row["source"] == LOCAL_FOLDER:
        raise StoreError(
            f"{home} does not know where the model with fingerprint {row['fingerprint'][:12]} lies: materialize "
            "base_model and feedback_model with its folder as their source"
        )
    return row["source"], row["revision"]
