"""What MLflow is told of one materialization: a record, not a result. The store's `tracking` knows how it is told."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, TypeVar

import dagster as dg

from rlaif_assets.assets.showing import charted, numbers, sample, spent
from rlaif_assets.instance import dagster_url
from rlaif_assets.store.errors import TrackingError

if TYPE_CHECKING:
    from rlaif_assets.assets.recording import Product
    from rlaif_assets.store.tracking import Tracker
    from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse

InputRole = Literal["input", "train", "eval"]  # what the inputs' rows are to a stage
Result = TypeVar("Result")


class MlflowRun:
    """The run of one asset. `inputs`: the snapshots that it is made from."""

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        tracker: "Tracker",
        warehouse: "Warehouse",
        inputs: "Mapping[str, SnapshotRecord]",
        code_version: int,
    ) -> None:
        self.context, self.tracker, self.warehouse, self.inputs = context, tracker, warehouse, inputs
        self.asset = context.asset_key.to_user_string()
        self.code_version = code_version
        self.run_id: str | None = None
        self.history: defaultdict[str, list[float]] = defaultdict(list)
        self.untold = ""  # why MLflow lacks something
        self.read: set[tuple[str, str]] = set()  # the inputs' tables that the work has read

    def tell(self, call: "Callable[[Tracker, str], Result]") -> "Result | None":
        """Tells MLflow about this asset's run. Where that fails, the work goes on and MLflow is not asked again."""
        if self.run_id is None or self.untold:
            return None
        try:
            return call(self.tracker, self.run_id)
        except TrackingError as error:
            self._give_up(error)
            return None

    def _give_up(self, error: TrackingError) -> None:
        self.untold = str(error)
        self.context.log.warning(f"{self.asset} goes on without MLflow: {error}")

    def start(self) -> None:
        from rlaif_assets.store.tracking import DESCRIPTION_TAG

        tags = {
            "dagster.run_id": self.context.run.run_id,
            "dagster.asset_key": self.asset,
            "dagster.code_version": str(self.code_version),
            DESCRIPTION_TAG: self._description(),
        }
        tags |= {f"rlaif.snapshot.{name}": record.snapshot_id for name, record in self.inputs.items()}
        try:
            self.run_id = self.tracker.start_run(f"{self.context.run.run_id[:8]}-{self.asset}", tags)
        except TrackingError as error:
            self._give_up(error)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of one training step: to MLflow, and into `history` by name."""
        for name, value in metrics.items():
            self.history[name].append(value)
        self.tell(lambda tracker, run_id: tracker.log_metrics(run_id, dict(metrics), step))

    def _description(self, snapshot_id: str | None = None) -> str:
        """What a person reads on the page of the MLflow run, with the ways back."""
        what = self.context.assets_def.descriptions_by_key[self.context.asset_key]
        run_id = self.context.run.run_id
        made = f"Snapshot `{snapshot_id}`: `rlaif trace {snapshot_id}` tells what made it.\n\n" if snapshot_id else ""
        return (
            f"**{self.asset}**: {' '.join(what.split())}\n\n{made}"
            f"Dagster: [asset {self.asset}]({dagster_url()}/assets/{self.asset}), "
            f"[run {run_id}]({dagster_url()}/runs/{run_id})"
        )

    def ids(self, path: str | None, is_model: bool, key: str) -> dict[str, str]:
        """What links a snapshot to MLflow without asking it again: the run's page and the model made by it."""
        tags = {"rlaif.asset": self.asset, "rlaif.key": key}
        model_id = (
            self.tell(lambda tracker, run_id: tracker.log_model(run_id, self.asset, path, tags)) if is_model else None
        )
        found = {"mlflow_url": self.tell(lambda tracker, run_id: tracker.url(run_id)), "mlflow_model_id": model_id}
        return {name: value for name, value in found.items() if value is not None}

    def track(
        self,
        record: "SnapshotRecord",
        product: "Product",
        registered: str | None,
        plotted: Mapping[str, float | None],
        role: InputRole,
    ) -> None:
        model_id = record.metrics.get("mlflow_model_id")

        def tell(tracker: "Tracker", run_id: str) -> None:
            tracker.log_params(run_id, record.settings)
            told = {**dict(charted(record)), **dict(numbers(plotted)), **spent(record)}
            tracker.log_metrics(run_id, {name: value for name, value in told.items() if name not in self.history})
            for name, png in product.pictures.items():
                tracker.log_figure(run_id, name, png)
            for name, document in product.documents.items():
                tracker.log_document(run_id, name, document)
            for name, rows in {**product.tables, **product.samples}.items():
                if rows:
                    tracker.log_table(run_id, name, sample(rows))
            tracker.describe(run_id, self._description(record.snapshot_id))
            for asset, table in sorted(self.read):
                upstream = self.inputs[asset]
                tracker.log_dataset_input(run_id, table, upstream.snapshot_id, upstream.row_counts.get(table, 0), role)
            for upstream in self.inputs.values():
                if "mlflow_model_id" in upstream.metrics:
                    tracker.log_model_input(run_id, upstream.metrics["mlflow_model_id"])

        self.tell(tell)
        if registered is not None:
            self.register(record, registered, model_id)

    def keep_pages(self, make: "Callable[[], Mapping[str, str]]") -> None:
        """HTML by name, made only where MLflow can be told."""

        def tell(tracker: "Tracker", run_id: str) -> None:
            for name, page in make().items():
                tracker.log_page(run_id, name, page)

        self.tell(tell)

    def end(self, status: Literal["FINISHED", "FAILED"]) -> None:
        self.tell(lambda tracker, run_id: tracker.end_run(run_id, status))

    def register(self, record: "SnapshotRecord", name: str, model_id: str | None) -> None:
        """Makes the snapshot a version of the registry's model, called the candidate: in MLflow where it can be told,
        and in the home's own record."""
        from rlaif_assets.store import registry

        number = None
        if model_id is not None:
            number = self.tell(
                lambda tracker, _: tracker.register(model_id, name, record.snapshot_id, registry.CANDIDATE)
            )
        version = registry.add_version(self.warehouse, name, record.snapshot_id, int(number) if number else None)
        registry.set_alias(
            self.warehouse, name, registry.CANDIDATE, version, self.asset, f"run {self.context.run.run_id}"
        )

    def register_again(self, record: "SnapshotRecord", registered: str | None) -> None:
        """Registers a reused policy that is not the current one, for it comes back, and one that MLflow does not have,
        since it was away, the run was killed before, or its database was made anew."""
        if registered is None:
            return
        from rlaif_assets.store import registry

        current = self.warehouse.current(self.asset)
        known = registry.versions(self.warehouse, registered)
        told = any(one.snapshot_id == record.snapshot_id and one.mlflow_version is not None for one in known)
        lost = self._lost(record, registered)
        if told and not lost and current is not None and current.snapshot_id == record.snapshot_id:
            return
        model_id, self.run_id = None if lost else record.metrics.get("mlflow_model_id"), record.mlflow_run_id
        if model_id is None:
            self.start()
            model_id = self.ids(record.path, True, record.key).get("mlflow_model_id")
        self.register(record, registered, model_id)
        self.end("FINISHED")

    def _lost(self, record: "SnapshotRecord", registered: str) -> bool:
        """Its run is not there any more, and it was not told again since. MLflow is asked where the run is missing."""
        from rlaif_assets.store.mlflow_links import missing_runs

        if record.snapshot_id not in missing_runs(self.tracker.home, [record]):
            return False
        try:
            return record.snapshot_id not in self.tracker.registered(registered).values()
        except TrackingError:
            return False

    def addresses(self, record: "SnapshotRecord", registered: str | None) -> dict[str, str]:
        """Addresses in the MLflow UI of today, wherever it was when the snapshot was made."""
        if "mlflow_url" not in record.metrics:
            return {}
        run = f"{self.tracker.ui_url}/#{record.metrics['mlflow_url'].partition('/#')[2]}"
        pages = {"mlflow": run}
        if "mlflow_model_id" in record.metrics:
            pages["mlflow_model"] = f"{run.partition('/runs/')[0]}/models/{record.metrics['mlflow_model_id']}"
        if registered is not None:
            from rlaif_assets.store import registry

            found = registry.versions(self.warehouse, registered)
            numbers_there = [one.mlflow_version for one in found if one.snapshot_id == record.snapshot_id]
            if numbers_there and numbers_there[0] is not None:
                pages["mlflow_version"] = f"{self.tracker.ui_url}/#/models/{registered}/versions/{numbers_there[0]}"
        return pages
