"""Models outside of the home: are they still what was used?"""

from collections.abc import Iterator

from rlaif_assets.language_models.errors import ModelError
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.fingerprint import folder_fingerprint
from rlaif_assets.store.model_places import locate
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse


def external_problems(warehouse: Warehouse, record: SnapshotRecord) -> Iterator[str]:
    """What is wrong with the models of a snapshot's `external_models`: their weights are hashed where they lie. An
    endpoint has none; those that were copied into the home are the snapshot's own, see `store.lineage.verify`."""
    if record.path is not None:
        return
    for row in warehouse.rows("external_models", record.snapshot_id):
        if row["model"] is not None:
            continue
        from rlaif_assets.language_models.local import local_folder

        try:
            folder = local_folder(*locate(warehouse.home, row))
            if folder_fingerprint(folder) != row["fingerprint"]:
                yield f"the model in {folder} is not the one that was used"
        except (ModelError, StoreError, OSError) as error:
            yield f"its weights cannot be read: {error}"
