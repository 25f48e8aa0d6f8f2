"""What the pipeline starts from: constitutions, prompts, people's preferences, and the two models.

Reading and splitting belong to `ingest`, the embedded default to `pocket`.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from rlaif_assets.assets.configuration import (
    BaseModelConfig,
    CommunityVotesConfig,
    ConstitutionConfig,
    FeedbackModelConfig,
    HelpfulnessPreferencesConfig,
    HelpfulPromptsConfig,
    HumanVerdictsConfig,
    RedTeamPromptsConfig,
)
from rlaif_assets.assets.recording import Product, Stage
from rlaif_assets.assets.showing import table_metadata
from rlaif_assets.records import (
    CommunityPair,
    Comparison,
    CritiquePrinciple,
    ExternalModel,
    HumanVerdict,
    JudgingPrinciple,
    Prompt,
)
from rlaif_assets.relabel_lock import RELABEL_TAGS, relabelling
from rlaif_assets.resources import Compute, Storage, Tracking
from rlaif_assets.settings import BaseModelSettings, ConstitutionSettings, FeedbackModelSettings

GROUP = "step_0_sources"
OWNERS = ["team:alignment"]
MODEL = table_metadata("external_models", ExternalModel)


@dg.asset(
    group_name=GROUP,
    owners=OWNERS,
    kinds={"yaml", "duckdb"},
    code_version="1",
    metadata=table_metadata("critique_principles", CritiquePrinciple),
)
def critique_constitution(
    context: dg.AssetExecutionContext,
    config: ConstitutionConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """The principles and worked examples by which step 1 critiques and revises; its own id, apart from the judge's."""
    stage = Stage(context, config, storage, compute, tracking)

    def read() -> Product:
        from rlaif_assets.ingest.constitution import read_constitution

        critique, _ = read_constitution(config.path)
        return Product({"critique_principles": critique.principles, "critique_examples": critique.examples})

    return stage.record_source(read)


@dg.asset(
    group_name=GROUP,
    owners=OWNERS,
    kinds={"yaml", "duckdb"},
    code_version="3",
    metadata=table_metadata("judging_principles", JudgingPrinciple),
    output_required=False,
)
def judging_constitution(
    context: dg.AssetExecutionContext,
    config: ConstitutionConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> Iterator[dg.MaterializeResult]:
    """The principles and examples by which the feedback model chooses; changing one does not touch step 1."""
    stage = Stage(context, config, storage, compute, tracking)
    # A relabel that finds another one at work ends here: `harmlessness_preferences` would wait for it in the pool.
    busy = relabelling(stage.home) if RELABEL_TAGS.items() <= context.run.tags.items() else None
    if busy:
        stage.skip(busy)
    else:
        yield stage.record_source(lambda: read_judging_constitution(config))


def read_judging_constitution(config: ConstitutionSettings) -> Product:
    from rlaif_assets.ingest.constitution import read_constitution

    _, judging = read_constitution(config.path)
    return Product({"judging_principles": judging.principles, "judging_examples": judging.examples})


@dg.asset(
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "duckdb"},
    code_version="2",
    metadata=table_metadata("prompts", Prompt),
)
def red_team_prompts(
    context: dg.AssetExecutionContext,
    config: RedTeamPromptsConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """Prompts that try to elicit harm, split into train, dev and test. Steps 1 to 5 read train alone."""
    stage = Stage(context, config, storage, compute, tracking)

    def read() -> Product:
        from rlaif_assets.ingest.prompts import read_prompts

        prompts, rejected = read_prompts(config, "red_team")
        return Product({"prompts": prompts}, rejected)

    return stage.record_source(read)


@dg.asset(
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "duckdb"},
    code_version="2",
    metadata=table_metadata("prompts", Prompt),
)
def helpful_prompts(
    context: dg.AssetExecutionContext,
    config: HelpfulPromptsConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """Prompts that deserve help, look-alikes of harmful ones among them; split like the red-team prompts."""
    stage = Stage(context, config, storage, compute, tracking)

    def read() -> Product:
        from rlaif_assets.ingest.prompts import read_prompts

        prompts, rejected = read_prompts(config, "helpful")
        return Product({"prompts": prompts}, rejected)

    return stage.record_source(read)


@dg.asset(
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "duckdb"},
    code_version="4",
    metadata=table_metadata("comparisons", Comparison),
)
def helpfulness_preferences(
    context: dg.AssetExecutionContext,
    config: HelpfulnessPreferencesConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """Which of two responses people find more helpful; the pocket world simulates annotators, who disagree at times."""
    stage = Stage(context, config, storage, compute, tracking)

    def read() -> Product:
        from rlaif_assets.ingest.comparisons import read_comparisons

        comparisons, rejected = read_comparisons(config)
        return Product({"comparisons": comparisons}, rejected)

    return stage.record_source(read)


@dg.asset(
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "duckdb"},
    code_version="4",
    metadata=table_metadata("community_pairs", CommunityPair),
)
def community_votes(
    context: dg.AssetExecutionContext,
    config: CommunityVotesConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """Voted answers of a question-and-answer site, and the pairs of unequal score that the PM is pre-trained on."""
    stage = Stage(context, config, storage, compute, tracking)

    def read() -> Product:
        from rlaif_assets.ingest.community import read_community

        answers, pairs, rejected = read_community(config)
        return Product({"community_pairs": pairs, "community_answers": answers}, rejected)

    return stage.record_source(read)


@dg.asset(
    group_name=GROUP,
    owners=OWNERS,
    kinds={"python", "duckdb"},
    code_version="2",
    metadata=table_metadata("human_verdicts", HumanVerdict),
)
def human_verdicts(
    context: dg.AssetExecutionContext,
    config: HumanVerdictsConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """People's verdicts on response pairs: they take the place of the judge's labels. Empty unless a file is given."""
    stage = Stage(context, config, storage, compute, tracking)

    def read() -> Product:
        from rlaif_assets.ingest.human_verdicts import read_human_verdicts

        verdicts, rejected = read_human_verdicts(config)
        return Product({"human_verdicts": verdicts}, rejected)

    return stage.record_source(read)


@dg.asset(group_name=GROUP, owners=OWNERS, kinds={"huggingface", "mlflow"}, code_version="1", metadata=MODEL)
def base_model(
    context: dg.AssetExecutionContext,
    config: BaseModelConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """The helpful-only model that everything begins with, pinned by the fingerprint of its weights."""
    stage = Stage(context, config, storage, compute, tracking)
    return stage.record(lambda: _model(stage, config), lambda: _model_identity(stage, config))


@dg.asset(group_name=GROUP, owners=OWNERS, kinds={"huggingface", "mlflow"}, code_version="1", metadata=MODEL)
def feedback_model(
    context: dg.AssetExecutionContext,
    config: FeedbackModelConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """The model that judges response pairs under the constitution, pinned by the fingerprint of its weights; or an
    endpoint, of which its URL and name are all that is known."""
    from rlaif_assets.language_models.endpoint import is_endpoint

    stage = Stage(context, config, storage, compute, tracking)
    if is_endpoint(config.source):
        return stage.record(lambda: _endpoint(stage, config), lambda: feedback_identity(config))
    return stage.record(lambda: _model(stage, config), lambda: _model_identity(stage, config))


def feedback_identity(config: FeedbackModelSettings) -> dict[str, Any]:
    """`model_identity`, or all settings of an endpoint: of it nothing is asked, since every reply is checked for what
    it was recorded as. Raises ModelError."""
    from rlaif_assets.language_models.endpoint import checked_url, is_endpoint

    if not is_endpoint(config.source):
        return model_identity(config)
    named = {name: getattr(config, name) for name in FeedbackModelSettings.model_fields if name != "revision"}
    return {**named, "source": checked_url(config.source)}


def _model_identity(stage: Stage, config: BaseModelSettings) -> dict[str, Any]:
    """Where a folder lies is told to the home here, so that a moved one that is reused is found at its new place."""
    from rlaif_assets.store.model_places import remember_place

    identity = model_identity(config)
    if config.source != "pocket" and "fingerprint" in identity:
        remember_place(stage.home, identity["fingerprint"], Path(config.source).expanduser())
    return identity


def model_identity(config: BaseModelSettings) -> dict[str, Any]:
    """What decides which weights these are: a folder's fingerprint, or a hub id at its commit. Nothing is loaded.

    Raises ModelError.
    """
    from rlaif_assets.language_models.endpoint import is_endpoint
    from rlaif_assets.language_models.errors import ModelError
    from rlaif_assets.pocket.world import model_folder
    from rlaif_assets.store.fingerprint import folder_fingerprint

    if is_endpoint(config.source):
        raise ModelError(
            f"{config.source} is an endpoint, and a policy starts from weights: name a folder, or a hub id and its "
            "revision (feedback_model.source alone may be an endpoint)"
        )
    folder = model_folder() if config.source == "pocket" else Path(config.source).expanduser()
    if not folder.is_dir():
        return {"source": config.source, "revision": config.revision}
    try:
        return {"fingerprint": folder_fingerprint(folder)}
    except FileNotFoundError as error:
        raise ModelError(str(error)) from error


def _model(stage: Stage, config: BaseModelSettings) -> Product:
    """The pocket model is copied into the home; any other is recorded where it is. Both are loaded once, as a test."""
    from rlaif_assets.pocket.world import model_folder
    from rlaif_assets.store.fingerprint import is_model_file
    from rlaif_assets.store.model_places import LOCAL_FOLDER

    source = model_folder() if config.source == "pocket" else config.source
    model = stage.compute.load(source, config.revision)
    local = config.source != "pocket" and Path(config.source).expanduser().is_dir()
    row = {
        "fingerprint": model.fingerprint,
        "source": LOCAL_FOLDER if local else config.source,
        "revision": None if local else config.revision,
        "architecture": type(model.model).__name__,
        "parameters": model.model.num_parameters(),
    }
    folder = None
    if isinstance(source, Path):
        folder = stage.work_folder()
        for path in filter(lambda path: is_model_file(path.name), source.iterdir()):
            shutil.copyfile(path, folder / path.name)
    return Product({"external_models": [row]}, folder=folder, metrics={"parameters": row["parameters"]})


def _endpoint(stage: Stage, config: FeedbackModelSettings) -> Product:
    from rlaif_assets.feedback.opening import ask_endpoint

    row, how, tokens = ask_endpoint(config, stage.compute.endpoint)
    stage.context.log.info(how)
    return Product({"external_models": [row]}, tokens=tokens)
