"""Step 4: preference-model pre-training, then the reward model. How belongs to `training.preference_model`."""

from typing import TYPE_CHECKING, Literal

import dagster as dg

from rlaif_assets.assets.configuration import PmpCheckpointConfig, RewardModelConfig, without_limits
from rlaif_assets.assets.recording import Product, Stage
from rlaif_assets.assets.showing import table_metadata
from rlaif_assets.devices import POOL
from rlaif_assets.records import PASSPORT, CommunityPair, Comparison, Label, Pair, TrainingRow
from rlaif_assets.resources import ON_GPU, Compute, Storage, Tracking

if TYPE_CHECKING:
    from rlaif_assets.store.warehouse import SnapshotRecord

GROUP = "step_4_reward_model"


@dg.asset(
    deps=["base_model", "community_votes"],
    group_name=GROUP,
    owners=["team:alignment"],
    kinds={"pytorch", "huggingface", "mlflow"},
    pool=POOL,
    op_tags=ON_GPU,
    code_version="2",
    metadata=table_metadata("training_rows", TrainingRow, {"row_id": "community_votes.pair_id"}),
)
def pmp_checkpoint(
    context: dg.AssetExecutionContext,
    config: PmpCheckpointConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """The base model with a score head, pre-trained to tell good answers from bad ones by a community's votes."""
    stage = Stage(context, config, storage, compute, tracking)

    def work() -> Product:
        from rlaif_assets.training import examples
        from rlaif_assets.training.pmp import pmp_examples
        from rlaif_assets.training.preference_model import train_preference_model

        pairs = stage.rows(CommunityPair, "community_votes", "community_pairs")
        train, heldout = examples.split_heldout(pairs, lambda row: row.question_id, config.heldout_share, config.seed)
        rows = pmp_examples(train), pmp_examples(heldout)
        start, folder = stage.folder("base_model"), stage.work_folder()
        options = {**examples.training_options(config), "center_coefficient": 0.0}
        places = {"output": folder, "compute": compute.settings(), "log": stage.mlflow.log, "progress": stage.progress}
        metrics = train_preference_model(start, *rows, **options, **places)
        used = examples.training_rows(*rows, metrics["dropped_row_ids"])
        rejected = examples.dropped_rows(metrics, config.max_length)
        return Product({"training_rows": used}, rejected, folder, metrics, metrics["tokens"])

    return stage.record(work, plotted=accuracies, role="train")


LEARNS_FROM = [
    "pmp_checkpoint",
    "base_model",
    "harmlessness_preferences",
    "response_pairs",
    "red_team_prompts",
    "helpfulness_preferences",
]
LINEAGE = {
    "row_id": "harmlessness_preferences.label_id helpfulness_preferences.comparison_id",
    "source": "harmlessness_preferences.source",
}


@dg.asset(
    deps=LEARNS_FROM,
    group_name=GROUP,
    owners=["team:alignment"],
    kinds={"pytorch", "huggingface", "mlflow"},
    pool=POOL,
    op_tags=ON_GPU,
    code_version="2",
    metadata=table_metadata("training_rows", TrainingRow, LINEAGE),
)
def reward_model(
    context: dg.AssetExecutionContext,
    config: RewardModelConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """The preference model on harmlessness labels and helpfulness comparisons; refuses labels that failed audits."""
    return trained(Stage(context, config, storage, compute, tracking), config)


def half_reward_model(half: Literal["a", "b"]) -> dg.AssetsDefinition:
    @dg.asset(
        name=f"reward_model_half_{half}",
        deps=LEARNS_FROM,
        group_name=GROUP,
        owners=["team:alignment"],
        kinds={"pytorch", "huggingface", "mlflow"},
        pool=POOL,
        op_tags=ON_GPU,
        code_version="1",
        metadata=table_metadata("training_rows", TrainingRow, LINEAGE),
        description="The reward model on half of the conversations alone, with its settings. PPO is measured by both "
        "halves: a policy whose score rises while theirs fall is over-optimised.",
    )
    def model(
        context: dg.AssetExecutionContext,
        config: RewardModelConfig,
        storage: Storage,
        compute: Compute,
        tracking: Tracking,
    ) -> dg.MaterializeResult:
        return trained(Stage(context, config, storage, compute, tracking), config, half)

    return model


reward_model_half_a, reward_model_half_b = half_reward_model("a"), half_reward_model("b")


def trained(stage: Stage, config: RewardModelConfig, half: Literal["a", "b"] | None = None) -> dg.MaterializeResult:
    stage.require_passed_audits("harmlessness_preferences", config.audits())

    def work() -> Product:
        from rlaif_assets.evaluation.pictures import reliability_picture
        from rlaif_assets.training.examples import dropped_rows
        from rlaif_assets.training.reward_model import train_reward_model

        stage.require_made_from("harmlessness_preferences", "response_pairs")
        stage.require_made_from("response_pairs", "red_team_prompts")
        metrics, used = train_reward_model(
            stage.folder("pmp_checkpoint" if config.pretrain else "base_model"),
            stage.rows(Label, "harmlessness_preferences", "labels"),
            stage.rows(Pair, "response_pairs", "pairs"),
            stage.prompts("red_team_prompts"),
            stage.rows(Comparison, "helpfulness_preferences", "comparisons"),
            config,
            folder := stage.work_folder(),
            stage.compute.settings(),
            stage.mlflow.log,
            stage.progress,
            half,
        )
        bins = {source: found["reliability"] for source, found in metrics["heldout"].items()}
        pictures = {"reliability": reliability_picture(bins)}
        rejected = dropped_rows(metrics, config.max_length)
        metrics |= {PASSPORT: stage.passport_id("harmlessness_preferences")}
        return Product({"training_rows": used}, rejected, folder, metrics, metrics["tokens"], pictures)

    return stage.record(work, lambda: without_limits(config), plotted=accuracies, role="train")


def accuracies(record: "SnapshotRecord") -> dict[str, float | None]:
    """On held-out comparisons, by the source of their labels."""
    return {f"accuracy_{source}": found.get("accuracy") for source, found in record.metrics["heldout"].items()}
