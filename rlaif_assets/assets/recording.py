"""One materialization, the same for every asset: inputs, key, reuse or work, publish, MLflow, metadata.

What the work is belongs to the assets and the packages they call. Heavy modules are imported by the work alone: where a
snapshot is reused neither torch nor MLflow is imported. https://docs.dagster.io/guides/build/assets/metadata-and-tags
"""

import dataclasses
import resource
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg
from pydantic import BaseModel

from rlaif_assets.assets.mlflow_run import InputRole, MlflowRun
from rlaif_assets.assets.progress import make_progress
from rlaif_assets.assets.showing import (
    COLUMN_LINEAGE,
    PREVIEW_ROWS,
    as_row,
    charted,
    numbers,
    picture,
    preview,
    spent,
    spread,
)
from rlaif_assets.devices import gpu_memory, gpu_name, reset_gpu_memory
from rlaif_assets.feedback.limits import ADVICE, refusal
from rlaif_assets.instance import tag_run
from rlaif_assets.records import PASSPORT, Judgement, Label, Prompt, Rejection
from rlaif_assets.resources import Compute, Storage, Tracking
from rlaif_assets.settings import AuditsSettings, SettingsError
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.pictures import keep_pictures, kept_pictures

if TYPE_CHECKING:
    from rlaif_assets.language_models.local import LocalModel
    from rlaif_assets.store.judgements import JudgementStore
    from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse

FORCE_TAG = "rlaif/force"
SKIPPED_TAG = "rlaif/skipped"  # on a run that left something out, with the reason
NO_OPTIONS: Mapping[str, Any] = {}

Row = TypeVar("Row")


@dataclass(frozen=True)
class Product:
    """What a stage's work hands back. Rows are dataclasses of `records` or dicts, by table, the main table first.

    `folder` holds finished weights (a work folder, adopted on publishing). `metrics` are plain values; what is told in
    `documents` (JSON, by name) is one of them, and MLflow keeps it as a file. `samples` are further rows by name, for
    people alone: MLflow shows them, nothing stores them.
    """

    tables: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    rejected: Sequence[Rejection] = ()
    folder: Path | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    documents: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class Stage:
    """An asset being materialized. Its inputs' ids are read once, here; rows and weights are read by these ids."""

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        config: BaseModel,
        storage: Storage,
        compute: Compute,
        tracking: Tracking,
    ) -> None:
        tag_run(context.instance, context.run.run_id)
        self.context, self.config, self.compute = context, config, compute
        self.asset = context.asset_key.to_user_string()
        self.code_version = int(context.assets_def.code_versions_by_key[context.asset_key] or 1)
        self.home = storage.folder()
        self.warehouse = storage.warehouse()
        self.judgements = judgement_store(self.warehouse, context.log.warning)
        self.progress = make_progress(compute.progress, context.log.info, self.asset)
        self.inputs = self._upstream()
        self.mlflow = MlflowRun(context, tracking.tracker(self.home), self.warehouse, self.inputs, self.code_version)
        self.key = ""  # known when recording begins
        self._device: str | None = None
        self._work_folders: list[Path] = []

    # Reading

    def rows(self, record: type[Row], asset: str, table: str) -> list[Row]:
        """All rows of one table of an input, as records of this class."""
        self.mlflow.read.add((asset, table))
        return as_records(record, self.warehouse.rows(table, self.inputs[asset].snapshot_id))

    def judgements_of(self, labels: Iterable[Label]) -> dict[str, Judgement]:
        """The judgements that labels were made of, by id."""
        return self.judgements.fetch([one for label in labels for one in label.judgement_ids])

    def prompts(self, *assets: str, splits: Sequence[str] = ("train",)) -> list[Prompt]:
        """The prompts of these inputs that belong to these splits."""
        found = [prompt for asset in assets for prompt in self.rows(Prompt, asset, "prompts")]
        return [prompt for prompt in found if prompt.split in splits]

    def folder(self, asset: str) -> Path:
        """The weights of an input: a checkpoint of the home, or an external model's folder, checked by fingerprint."""
        record = self.inputs[asset]
        if record.path is not None:
            return self.warehouse.weights(record)
        from rlaif_assets.language_models.local import local_folder

        external = self._external(asset)
        self.compute.load(**external)  # checks that the weights are still those that were recorded
        return local_folder(external["folder_or_hub"], external["revision"])

    def model(self, asset: str) -> "LocalModel":
        record = self.inputs[asset]
        if record.path is not None:
            from rlaif_assets.store.checkpoint_files import marked_fingerprint

            folder = self.warehouse.weights(record)
            model = self.compute.load(folder, fingerprint=marked_fingerprint(folder))
        else:
            model = self.compute.load(**self._external(asset))
        self._device = str(model.device)
        return model

    def external(self, asset: str) -> dict[str, Any]:
        """The row of `external_models` that says what a model outside of the home is."""
        return self.warehouse.rows("external_models", self.inputs[asset].snapshot_id)[0]

    def require_made_from(self, asset: str, *others: str) -> None:
        """Raises StoreError unless this input was made from what this stage reads of these others: rows name rows."""
        record = self.inputs[asset]
        for other in others:
            if record.inputs[other] != self.inputs[other].snapshot_id:
                raise StoreError(
                    f"{self.asset}: {asset} {record.snapshot_id} was made from {other} {record.inputs[other]}, and the "
                    f"current one is {self.inputs[other].snapshot_id}: materialize {asset} first"
                )

    def require_passed_audits(self, asset: str, audits: AuditsSettings) -> None:
        """The gate that holds across runs: raises Failure unless every verdict on this input is there and passes under
        these limits, whichever it was audited under."""
        record = self.inputs[asset]
        with user_errors():
            stored = self.warehouse.rows("verdicts", record.snapshot_id)
        why = refusal(stored, record.code_version, audits)
        if audits.enforce and why:
            raise dg.Failure(f"{self.asset} refuses {asset} {record.snapshot_id}: {why}. {ADVICE}", allow_retries=False)

    def passport_id(self, asset: str) -> str | None:
        """The passport that this input's labels carry."""
        return self.inputs[asset].metrics.get(PASSPORT, {}).get("passport_id")

    # Working

    def work_folder(self) -> Path:
        """A new empty folder for weights being made; removed when the work fails."""
        from rlaif_assets.language_models.local import choose_device
        from rlaif_assets.store.checkpoint_files import new_work_folder

        self._device = str(choose_device(self.compute.settings()))
        if self._device != "cpu":
            self.compute.free()  # a training needs what is there
        self._work_folders.append(new_work_folder(self.home))
        return self._work_folders[-1]

    def resume_file(self) -> Path:
        """Where a long training keeps its state, for a later run of the same key that a kill made necessary."""
        from rlaif_assets.store.checkpoint_files import RESUME_FOLDER

        return self.home / RESUME_FOLDER / f"{self.asset}-{self.key[:32]}.pt"

    # Recording

    def record(
        self,
        work: Callable[[], Product],
        identity: Callable[[], Mapping[str, Any]] | None = None,
        registered: str | None = None,
        shown: Callable[["SnapshotRecord"], Mapping[str, Any]] = lambda record: {},
        plotted: Callable[["SnapshotRecord"], Mapping[str, float | None]] = lambda record: {},
        guard: AbstractContextManager[None] | None = None,
        pages: Callable[["SnapshotRecord"], Mapping[str, str]] = lambda record: {},
        role: InputRole = "input",
    ) -> dg.MaterializeResult:
        """Reuses the newest snapshot of this stage's key, unless forced, or works and records under an MLflow run.

        `identity` gives what decides the result, by default the config. `registered` names the MLflow registry's model
        that the weights become a version of. `shown` gives markdown and other values by name, and `plotted` numbers by
        a short name that stays, for people to follow over time; both are made of the stored snapshot. `guard` is
        entered before the work, not where a snapshot is reused, and left when the new one is stored; what it raises
        comes out as it is. `pages` gives HTML by name, made of a new snapshot for MLflow to keep. `role` is what the
        inputs' rows are to this stage, for MLflow. Raises Failure, without retries, for the user's errors.
        """
        with user_errors():
            self.key = key = self._key(identity() if identity else self.config.model_dump())
            found = None if self.forced else self.warehouse.find(self.asset, key)
            if found is not None:
                self.mlflow.register_again(found, registered)
                return self._result(found, True, shown(found), plotted(found), registered)
            with guard or nullcontext():
                record = self._make(key, work, registered, plotted, pages, role)
                return self._result(record, False, shown(record), plotted(record), registered)

    def _make(
        self,
        key: str,
        work: Callable[[], Product],
        registered: str | None,
        plotted: Callable[["SnapshotRecord"], Mapping[str, float | None]],
        pages: Callable[["SnapshotRecord"], Mapping[str, str]],
        role: InputRole,
    ) -> "SnapshotRecord":
        self.mlflow.start()
        self.progress.start()
        try:
            reset_gpu_memory()
            started = time.monotonic()
            product = work()
            record, _ = self._publish(key, product, time.monotonic() - started)
            keep_pictures(self.home, record.snapshot_id, product.pictures)
            self.resume_file().unlink(missing_ok=True)
            self.mlflow.track(record, product, registered, plotted(record), role)
            self.mlflow.keep_pages(lambda: pages(record))
        except BaseException:
            self.mlflow.end("FAILED")
            for folder in self._work_folders:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            self.progress.close()
        self.mlflow.end("FINISHED")
        return record

    def skip(self, why: str) -> None:
        """Says in the log and on the run why this asset is left out. Its body then yields nothing, and Dagster skips
        what is made of it."""
        self.context.log.warning(f"{self.asset} is skipped: {why}")
        self.context.instance.add_run_tags(self.context.run.run_id, {SKIPPED_TAG: f"{self.asset}: {why}"})

    def record_source(self, read: Callable[[], Product]) -> dg.MaterializeResult:
        """Reads a source, always; equal content under equal settings is the snapshot that is there already.

        Where the source lies (`path`) is no part of the key, its content is part of the id: the rows kept, and what
        was refused and why. Has no MLflow run: stages that use the rows log them as their inputs.
        """
        with user_errors():
            started = time.monotonic()
            self.progress.start()
            try:
                product = read()
            finally:
                self.progress.close()
            key = self._key(source_identity(self.config, product))
            record, reused = self._publish(key, product, time.monotonic() - started)
            return self._result(record, reused)

    @property
    def forced(self) -> bool:
        names = self.context.run.tags.get(FORCE_TAG, "").split(",")
        return "*" in names or self.asset in (name.strip() for name in names)

    def _key(self, settings: Mapping[str, Any]) -> str:
        from rlaif_assets.store.warehouse import snapshot_key

        inputs = {name: record.snapshot_id for name, record in self.inputs.items()}
        return snapshot_key(self.asset, inputs, settings, self.code_version)

    def _upstream_names(self) -> list[str]:
        return sorted(key.to_user_string() for key in self.context.assets_def.asset_deps[self.context.asset_key])

    def _upstream(self) -> "dict[str, SnapshotRecord]":
        names = self._upstream_names()
        with user_errors():
            found = self.warehouse.currents(names) if names else {}
        for name in names:
            if name not in found:
                told = f"{self.asset} needs {name}, which this home does not have: materialize it first"
                raise dg.Failure(told, allow_retries=False)
        return {name: found[name] for name in names}

    def _external(self, asset: str) -> dict[str, Any]:
        from rlaif_assets.store.model_places import locate

        row = self.external(asset)
        place, revision = locate(self.home, row)
        return {"folder_or_hub": place, "revision": revision, "fingerprint": row["fingerprint"]}

    def _publish(self, key: str, product: Product, seconds: float) -> "tuple[SnapshotRecord, bool]":
        """The stored snapshot, and whether it was there before."""
        from rlaif_assets.store.checkpoint_files import adopt_folder
        from rlaif_assets.store.warehouse import SnapshotRecord

        path = adopt_folder(product.folder, self.home, self.asset) if product.folder else None
        commit, dirty = code_state()
        record = SnapshotRecord(
            asset=self.asset,
            key=key,
            settings=self.config.model_dump(),
            inputs={name: upstream.snapshot_id for name, upstream in self.inputs.items()},
            code_version=self.code_version,
            path=path,
            metrics={
                **product.metrics,
                **product.documents,
                **self.mlflow.ids(path, path is not None or "external_models" in product.tables, key),
                "peak_memory_mb": peak_memory_mb(),
                **gpu_memory(self._device),
            },
            mlflow_run_id=self.mlflow.run_id,
            dagster_run_id=self.context.run.run_id,
            git_commit=commit,
            git_dirty=dirty,
            device=gpu_name(self._device),
            seconds=seconds,
            tokens=product.tokens,
            attempt=self.context.retry_number,
        )
        stored = self.warehouse.publish(record, product_rows(product), list(product.rejected))
        ours = (stored.dagster_run_id, stored.attempt) == (record.dagster_run_id, record.attempt)
        return stored, not ours

    def _result(
        self,
        record: "SnapshotRecord",
        reused: bool,
        markdown: Mapping[str, Any] = NO_OPTIONS,
        plotted: Mapping[str, float | None] = NO_OPTIONS,
        registered: str | None = None,
    ) -> dg.MaterializeResult:
        self.warehouse.record_materialization(record.snapshot_id, self.context.run.run_id, reused)
        metadata: dict[str, Any] = {  # in the order in which the page shows it
            "reused": reused,
            "snapshot_id": record.snapshot_id,
            **{name: float(value) for name, value in numbers(plotted)},
            **{name: picture(name, png) for name, png in kept_pictures(self.home, record.snapshot_id).items()},
            **{n: dg.MetadataValue.md(v) if isinstance(v, str) else v for n, v in markdown.items()},
            **{name: dg.MetadataValue.url(url) for name, url in self.mlflow.addresses(record, registered).items()},
            **self._table(record),
            "settings": dg.MetadataValue.json(record.settings),
            "inputs": dg.MetadataValue.json(record.inputs),
            "rows": dg.MetadataValue.json(record.row_counts),
            "rejected": record.row_counts.get("rejected_rows", 0),
            "tokens": record.tokens,
            **spent(record),
            "device": record.device or "none",
            **{f"metrics/{name}": value for name, value in charted(record)},
        }
        if record.path is not None:
            metadata["checkpoint"] = record.path
        if record.metrics.get(PASSPORT):
            told = record.metrics[PASSPORT]
            metadata[PASSPORT] = told if isinstance(told, str) else dg.MetadataValue.json(told)
        if self.mlflow.untold:
            metadata["mlflow_pending"] = self.mlflow.untold
        return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(record.snapshot_id))

    def _table(self, record: "SnapshotRecord") -> dict[str, Any]:
        """The main table: where its columns come from, its rows' number, and ten of them, at equal distances."""
        definition = self.context.assets_def.metadata_by_key[self.context.asset_key]
        table = definition.get("dagster/table_name")
        if table is None:
            return {}
        # Dagster reads the columns' lineage of materializations.
        lineage = {COLUMN_LINEAGE: definition[COLUMN_LINEAGE]} if COLUMN_LINEAGE in definition else {}
        count = record.row_counts.get(table, 0)
        rows = self.warehouse.at(table, record.snapshot_id, spread(count, PREVIEW_ROWS))
        return {"preview": preview(rows), "dagster/row_count": count, **lineage}


@contextmanager
def user_errors() -> Iterator[None]:
    """Errors that a person can mend become a Failure with their message and without retries."""
    from rlaif_assets.feedback.errors import JudgeStoppedError
    from rlaif_assets.ingest.errors import IngestError
    from rlaif_assets.language_models.errors import ModelError
    from rlaif_assets.training.errors import TrainingError

    try:
        yield
    except (IngestError, JudgeStoppedError, ModelError, SettingsError, StoreError, TrainingError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def judgement_store(warehouse: "Warehouse", log: Callable[[str], None]) -> "JudgementStore":
    from rlaif_assets.store.judgements import JudgementStore

    return JudgementStore(warehouse, log)


@cache
def code_state() -> tuple[str | None, bool | None]:
    """Commit and dirty flag when this process first asked: the code that it has loaded, more or less."""
    from rlaif_assets.store.lineage import git_state

    return git_state()


def peak_memory_mb() -> float:
    """The most memory that this process has had, in MiB (kernel's figure in KiB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def as_records(record: type[Row], rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Stored rows as dataclasses; JSON lists become tuples, columns that the class does not have are left out."""
    names = [part.name for part in dataclasses.fields(record)]  # type: ignore[arg-type]
    return [
        record(**{name: tuple(row[name]) if isinstance(row[name], list) else row[name] for name in names})
        for row in rows
    ]


def product_rows(product: Product) -> dict[str, list[dict[str, Any]]]:
    return {name: [as_row(row) for row in rows] for name, rows in product.tables.items()}


def source_identity(config: BaseModel, product: Product) -> dict[str, Any]:
    """What is in a source's key: its settings but where it lies, and what was refused."""
    settings = {name: value for name, value in config.model_dump().items() if name != "path"}
    return {**settings, "refused": [[row.reason, row.text] for row in product.rejected]}


def code_version(asset: dg.AssetsDefinition) -> int:
    return int(asset.code_versions_by_key[asset.key] or 1)
