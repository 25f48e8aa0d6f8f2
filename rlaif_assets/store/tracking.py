"""What MLflow is told about a run. The only module that imports mlflow, and only when a method needs it.

MLflow is a record for people: no result is read from it, and weights are never copied into it (a logged model holds a
small pointer). Client API only: no active run, no global tracking URI, so several runs and threads do not mix.
"""

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar

from rlaif_assets.store.errors import TrackingError
from rlaif_assets.store.fingerprint import canonical_json, sha256_text
from rlaif_assets.store.moved_home import ARTIFACTS, DATABASE, follow_home

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

P = ParamSpec("P")
T = TypeVar("T")
LIMIT_PARAM, LIMIT_TAG, LIMIT_DIGEST, BATCH_PARAMS, BATCH_METRICS = 6000, 5000, 36, 100, 1000
SNAPSHOT_TAG = "rlaif.snapshot_id"
PRUNED_TAG = "rlaif.pruned"
DESCRIPTION_TAG = "mlflow.note.content"
MODEL_VERSIONS_TAG = "mlflow.modelVersions"
LOCK = "mlflow.lock"  # beside the home's database from its first day on, and left where that is deleted


def _told(method: "Callable[Concatenate[Tracker, P], T]") -> "Callable[Concatenate[Tracker, P], T]":
    """Whatever MLflow raises becomes a TrackingError that says which call failed and where."""

    @wraps(method)
    def call(self: "Tracker", *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except TrackingError:
            raise
        except Exception as error:
            first_line = _without_password(str(error).strip().partition("\n")[0])
            secret = _without_password(self.uri) != self.uri
            raise TrackingError(f"MLflow at {_without_password(self.uri)}, {method.__name__}: {first_line}") from (
                None if secret else error
            )  # a cause would print the password

    return call


def home_uri(home: Path) -> str:
    return f"sqlite:///{home / DATABASE}"


def make_database(home: Path) -> None:
    """Makes the home's database where it has none, aside and under a lock: MLflow makes its tables in many steps, and
    a kill, or a second process, between them would leave one that nothing can open."""
    if (home / DATABASE).exists():
        return
    from filelock import FileLock
    from mlflow import MlflowClient

    with FileLock(home / LOCK):
        if (home / DATABASE).exists():
            return
        for left in home.glob(f"{DATABASE}.*.new*"):
            left.unlink()
        temporary = home / f"{DATABASE}.{os.getpid()}.new"
        MlflowClient(tracking_uri=f"sqlite:///{temporary}").search_experiments(max_results=1)
        temporary.rename(home / DATABASE)


@dataclass(frozen=True)
class RunData:
    """`metrics` are the last values; `datasets` the digests of what the run read."""

    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    datasets: frozenset[str]


class Tracker:
    """One experiment on one MLflow server or SQLite file. Every method raises TrackingError alone.

    `uri`: None is `mlflow.db` in the home, with artifacts in `mlflow_artifacts` there. `ui_url`: base of `url`'s links.
    """

    def __init__(self, uri: str | None, home: Path, experiment: str, ui_url: str) -> None:
        self.home = home.absolute()
        self.uri = uri or home_uri(self.home)
        self.experiment = experiment
        self.ui_url = ui_url.rstrip("/")

    @property
    def lost(self) -> bool:
        """The home's own database is missing, and would be made anew by whoever asks it."""
        return self.uri == home_uri(self.home) and not (self.home / DATABASE).is_file()

    @cached_property
    def client(self) -> "MlflowClient":
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ["DO_NOT_TRACK"] = "true"
        os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        # The defaults (7 retries, 120 s each) block a training run for minutes while a server is away.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient

        self.home.mkdir(parents=True, exist_ok=True)
        if self.uri == home_uri(self.home):
            make_database(self.home)
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    @cached_property
    def experiment_id(self) -> str:
        """The experiment of this name, and one of its own where several homes share a database on this machine, so that
        artifacts lie in the home."""
        if not self.uri.startswith("sqlite:"):
            return self._experiment(self.experiment, None).experiment_id
        if self.uri == home_uri(self.home):
            follow_home(self.home)
        location = (self.home / ARTIFACTS).as_uri()
        found = self._experiment(self.experiment, location)
        if found.artifact_location != location:
            found = self._experiment(f"{self.experiment}-{sha256_text(location)[:8]}", location)
        return found.experiment_id

    def _experiment(self, name: str, location: str | None) -> "Experiment":
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                found = self.client.get_experiment(self.client.create_experiment(name, artifact_location=location))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.client.get_experiment_by_name(name)  # another process was faster
        if found is None or found.lifecycle_stage != "active":
            raise TrackingError(f"MLflow's experiment {name!r} was deleted: restore it, or set tracking.experiment")
        return found

    @_told
    def start_run(self, name: str, tags: Mapping[str, str] | None = None) -> str:
        """Returns the run id."""
        return self.client.create_run(self.experiment_id, run_name=name, tags=_tags(tags or {})).info.run_id

    @_told
    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Text as it is, all else as JSON; longer values are cut at MLflow's limit."""
        from mlflow.entities import Param

        entries = [Param(name, value) for name, value in param_texts(params).items()]
        for start in range(0, len(entries), BATCH_PARAMS):
            self.client.log_batch(run_id, params=entries[start : start + BATCH_PARAMS], synchronous=True)

    @_told
    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        for start in range(0, len(entries), BATCH_METRICS):
            self.client.log_batch(run_id, metrics=entries[start : start + BATCH_METRICS], synchronous=True)

    @_told
    def log_dataset_input(self, run_id: str, table: str, snapshot_id: str, rows: int, context: str = "train") -> None:
        """A data set named by its table with the snapshot id as digest: no row leaves the warehouse."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if len(snapshot_id) > LIMIT_DIGEST:
            raise TrackingError(f"{snapshot_id} is longer than the {LIMIT_DIGEST} characters of an MLflow digest")
        source = json.dumps({"uri": f"warehouse.duckdb/{table}?snapshot_id={snapshot_id}"})
        profile = json.dumps({"num_rows": rows})
        dataset = Dataset(name=table, digest=snapshot_id, source_type="code", source=source, profile=profile)
        self.client.log_inputs(run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    @_told
    def log_model(
        self, run_id: str, name: str, folder: str | None = None, tags: Mapping[str, str] | None = None, step: int = 0
    ) -> str:
        """A LoggedModel that is an output of the run; returns its id.

        Its only artifact is a pointer: `folder` is the weights' folder relative to the home, None for a model that is
        kept elsewhere.
        """
        from mlflow.entities import LoggedModelOutput

        model = self.client.create_logged_model(
            self.experiment_id, name=_model_name(name), source_run_id=run_id, tags=_tags(tags or {})
        )
        with tempfile.TemporaryDirectory() as temporary:
            pointer = {"folder": folder, "home": "relative", **(tags or {})}
            (Path(temporary) / "rlaif_pointer.json").write_text(json.dumps(pointer, indent=1, sort_keys=True))
            self.client.log_model_artifacts(model.model_id, temporary)
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        return model.model_id

    @_told
    def log_model_input(self, run_id: str, model_id: str) -> None:
        """The edge from a model to the run that started from it or was judged by it."""
        from mlflow.entities import LoggedModelInput

        self.client.log_inputs(run_id, models=[LoggedModelInput(model_id)])

    @_told
    def register(self, model_id: str, name: str, snapshot_id: str, alias: str = "candidate") -> str:
        """A registry version with this alias; one version per snapshot, however often it is called. Returns it."""
        from mlflow.exceptions import MlflowException

        found = list(self._versions(name, snapshot_id))
        if not found:
            try:
                self.client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            model = self.client.get_logged_model(model_id)
            created = self.client.create_model_version(
                name,
                source=model.artifact_location,
                run_id=model.source_run_id,
                model_id=model_id,
                tags={SNAPSHOT_TAG: snapshot_id},
            )
            found = [created.version]
            told = json.dumps([{"name": name, "version": str(created.version)}])
            self.client.set_logged_model_tags(model_id, {MODEL_VERSIONS_TAG: told})  # what the model's page shows
        version = str(min(found, key=int))
        self.client.set_registered_model_alias(name, alias, version)
        return version

    @_told
    def point(self, name: str, alias: str, snapshot_id: str) -> bool:
        """From now on the alias names the version of the registry's model that is this snapshot. Returns False where
        there is none: then the alias names no version."""
        if self.lost:
            raise TrackingError(f"{DATABASE} is missing")
        found = self._versions(name, snapshot_id)
        if found:
            self.client.set_registered_model_alias(name, alias, min(found, key=int))
        elif alias in self._aliases(name):
            self.client.delete_registered_model_alias(name, alias)
        return bool(found)

    def _versions(self, name: str, snapshot_id: str) -> list[str]:
        versions = self.client.search_model_versions(f"name = '{_model_name(name)}'")
        return [str(version.version) for version in versions if version.tags.get(SNAPSHOT_TAG) == snapshot_id]

    def _aliases(self, name: str) -> dict[str, str]:
        from mlflow.exceptions import MlflowException

        try:
            return dict(self.client.get_registered_model(_model_name(name)).aliases)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise

    @_told
    def log_figure(self, run_id: str, name: str, png: bytes) -> None:
        """A PNG among the run's artifacts, under `figures/NAME.png`."""
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / f"{_model_name(name)}.png"
            path.write_bytes(png)
            self.client.log_artifact(run_id, str(path), "figures")

    @_told
    def log_document(self, run_id: str, name: str, value: Any) -> None:
        """JSON among the run's artifacts, under `NAME.json`."""
        self.client.log_dict(run_id, value, f"{_model_name(name)}.json")

    @_told
    def log_table(self, run_id: str, name: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Rows among the run's artifacts, under `samples/NAME.json`, in the form that MLflow's UI shows as a table."""
        self.client.log_table(run_id, dict(columns), f"samples/{_model_name(name)}.json")

    @_told
    def describe(self, run_id: str, text: str) -> None:
        """Markdown that MLflow's UI shows on top of the run's page."""
        self.client.set_tag(run_id, DESCRIPTION_TAG, text[:LIMIT_TAG])

    @_told
    def log_page(self, run_id: str, name: str, page: str) -> None:
        """HTML among the run's artifacts, under `NAME.html`."""
        self.client.log_text(run_id, page, f"{_model_name(name)}.html")

    @_told
    def end_run(self, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        self.client.set_terminated(run_id, status)

    def run_tags(self, run_id: str) -> dict[str, str] | None:
        """What a run is tagged with; None where it is not there, or was deleted."""
        found = self.run_data(run_id)
        return found.tags if found else None

    @_told
    def run_data(self, run_id: str) -> "RunData | None":
        """What a run says; None where it is not there, or was deleted."""
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if run.info.lifecycle_stage != "active":
            return None
        digests = frozenset(one.dataset.digest for one in (run.inputs.dataset_inputs if run.inputs else ()))
        return RunData(dict(run.data.tags), dict(run.data.params), dict(run.data.metrics), digests)

    @_told
    def registered(self, name: str) -> dict[int, str]:
        """The snapshot that each version of a registered model is; none where there is no such model."""
        found = self.client.search_model_versions(f"name = '{_model_name(name)}'")
        return {int(one.version): one.tags[SNAPSHOT_TAG] for one in found if SNAPSHOT_TAG in one.tags}

    @_told
    def aliased(self, name: str) -> dict[str, str]:
        """The snapshot that each alias of a registered model names, those that a person gave in MLflow's UI among them;
        none where there is no such model."""
        versions = self._aliases(name)
        named = {alias: self.client.get_model_version(name, version).tags for alias, version in versions.items()}
        return {alias: tags[SNAPSHOT_TAG] for alias, tags in named.items() if SNAPSHOT_TAG in tags}

    @_told
    def mark_pruned(self, run_id: str, model_id: str | None, text: str) -> None:
        """Tags a run, and the model that it logged, whose artifacts were removed; nothing where the run was deleted."""
        if self.run_tags(run_id) is None:
            return
        self.client.set_tag(run_id, PRUNED_TAG, text)
        if model_id is not None:
            self.client.set_logged_model_tags(model_id, {PRUNED_TAG: text})

    @_told
    def url(self, run_id: str) -> str:
        """The run's page in MLflow's UI."""
        return f"{self.ui_url}/#/experiments/{self.experiment_id}/runs/{run_id}"


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def param_texts(params: Mapping[str, Any]) -> dict[str, str]:
    """Parameters as MLflow keeps them."""
    return {name: _text(value)[:LIMIT_PARAM] for name, value in params.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value)


def _tags(tags: Mapping[str, Any]) -> dict[str, str]:
    return {name: _text(value)[:LIMIT_TAG] for name, value in tags.items()}


def _model_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise TrackingError(f"{name!r} is no name for MLflow: use letters, digits, _ and -")
    return name
