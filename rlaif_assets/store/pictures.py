"""The pictures of a snapshot, as files of the home: they are shown again where the snapshot is reused.

Drawing belongs to `evaluation.pictures`. They are for people: no result is read from them, and they are in no hash.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

PICTURES = "pictures"


def keep_pictures(home: Path, snapshot_id: str, pictures: Mapping[str, bytes]) -> None:
    """Writes `pictures/SNAPSHOT_ID/NAME.png`, all or none, in the place of those that a forced run made before."""
    if not pictures:
        return
    from rlaif_assets.store.checkpoint_files import new_work_folder  # not where pictures are only read

    work, target = new_work_folder(home), home / PICTURES / snapshot_id
    made = work / "made"
    made.mkdir()
    for name, png in pictures.items():
        (made / f"{name}.png").write_bytes(png)
    target.parent.mkdir(exist_ok=True)
    if target.exists():
        target.rename(work / "replaced")
    made.rename(target)
    shutil.rmtree(work)


def kept_pictures(home: Path, snapshot_id: str) -> dict[str, bytes]:
    """PNG bytes by name; none for a snapshot that was made before pictures were kept."""
    return {path.stem: path.read_bytes() for path in sorted((home / PICTURES / snapshot_id).glob("*.png"))}
