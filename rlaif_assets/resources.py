"""The only wiring to the outside: Dagster resources that hand plain objects (warehouse, tracker, models) to the assets.

What these objects do belongs to `store` and `language_models`; both are imported when first used.
"""

import gc
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg
from pydantic import BaseModel, Field, PrivateAttr

from rlaif_assets.devices import gpu_tags, take_gpu
from rlaif_assets.instance import home_folder
from rlaif_assets.settings import ComputeSettings, SettingsError, TrackingSettings, load_profile

if TYPE_CHECKING:
    from rlaif_assets.language_models.endpoint import Endpoint
    from rlaif_assets.language_models.local import LocalModel
    from rlaif_assets.store.tracking import Tracker
    from rlaif_assets.store.warehouse import Warehouse

PROFILE = load_profile()
ON_GPU = gpu_tags(PROFILE.compute.device, 1)
ON_GPUS = gpu_tags(PROFILE.compute.device, PROFILE.compute.processes)
GPU_PATIENCE = 3600.0  # seconds that an asset waits for a GPU that another run's models are on
MODELS_KEPT = 3  # an evaluation asks for the base model, SL-CAI and the policy together

ModelClass = TypeVar("ModelClass", bound=type[BaseModel])


def with_defaults(values: Mapping[str, Any]) -> Callable[[ModelClass], ModelClass]:
    """Class decorator for pydantic classes: these values become the defaults of the fields of the same names."""

    def apply(cls: ModelClass) -> ModelClass:
        for name in values.keys() & cls.model_fields.keys():
            cls.model_fields[name].default = values[name]
        cls.model_rebuild(force=True)
        return cls

    return apply


class Storage(dg.ConfigurableResource):
    """The home: one folder that holds rows, weights, MLflow's records and Dagster's own."""

    home: str = Field(default="", description="folder; empty is DAGSTER_HOME, else dagster_home")

    def folder(self) -> Path:
        return home_folder(self.home)

    def warehouse(self) -> "Warehouse":
        from rlaif_assets.store.warehouse import Warehouse

        return Warehouse(self.folder())


@with_defaults(PROFILE.tracking.model_dump())
class Tracking(TrackingSettings, dg.ConfigurableResource):
    """Where runs and models are recorded. MLflow is imported at the first call that needs it."""

    def tracker(self, home: Path) -> "Tracker":
        from rlaif_assets.store.tracking import Tracker

        return Tracker(self.uri, home, self.experiment, self.ui_url)


@with_defaults(PROFILE.compute.model_dump())
class Compute(ComputeSettings, dg.ConfigurableResource):
    """Where models run, and the models themselves: they stay loaded from asset to asset of one run in one process."""

    _models: "OrderedDict[str, LocalModel]" = PrivateAttr(default_factory=OrderedDict)
    _endpoints: "dict[tuple[str, str, str | None], Endpoint]" = PrivateAttr(default_factory=dict)

    def settings(self) -> ComputeSettings:
        """Where there are GPUs, `auto` takes one for this process first, and waits for one; several processes take all
        that are visible.

        Raises SettingsError where other processes of the home hold all for an hour.
        """
        if self.device == "auto" and self.processes == 1:
            try:
                take_gpu(home_folder(), GPU_PATIENCE)
            except BlockingIOError as error:
                raise SettingsError(f"compute.device=auto: {error}; wait, or name one") from None
        return ComputeSettings(**{name: getattr(self, name) for name in ComputeSettings.model_fields})

    def load(
        self, folder_or_hub: str | Path, revision: str | None = None, fingerprint: str | None = None
    ) -> "LocalModel":
        """The model in a folder, or of a hub id at a commit; with `fingerprint`, one that is loaded already will do.

        Raises ModelError, also where the weights are no longer those of the fingerprint.
        """
        from rlaif_assets.language_models.errors import ModelError
        from rlaif_assets.language_models.local import load_model

        model = self._models.get(fingerprint or "")
        if model is None:
            model = self._with_room(lambda: load_model(folder_or_hub, self.settings(), revision))
            if fingerprint and model.fingerprint != fingerprint:
                raise ModelError(
                    f"the model at {folder_or_hub} has changed since it was recorded (fingerprint "
                    f"{model.fingerprint[:12]}, recorded {fingerprint[:12]}): restore it, or materialize its asset anew"
                )
        self._models[model.fingerprint] = model
        self._models.move_to_end(model.fingerprint)
        while len(self._models) > MODELS_KEPT:
            self._models.popitem(last=False)
        return model

    def free(self) -> None:
        """Gives back the memory of the models that are loaded."""
        self._models.clear()
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _with_room(self, load: "Callable[[], LocalModel]") -> "LocalModel":
        """`load`, once more without the models that are loaded where memory does not suffice beside them."""
        import torch

        try:
            return load()
        except torch.OutOfMemoryError:
            if not self._models:
                raise
        self.free()
        return load()

    def endpoint(self, url: str, model: str, version: str | None = None) -> "Endpoint":
        """The model of this name behind a base URL; one per run and process, so that its budgets are the run's."""
        from rlaif_assets.language_models.endpoint import Endpoint

        asked = (url, model, version)
        if asked not in self._endpoints:
            self._endpoints[asked] = Endpoint(url, model, self.settings(), version)
        return self._endpoints[asked]
