"""Step 5: reinforcement learning from AI feedback. How belongs to `training.ppo`."""

import dagster as dg

from rlaif_assets.assets.configuration import PpoPolicyConfig
from rlaif_assets.assets.recording import Product, Stage
from rlaif_assets.resources import Compute, Storage, Tracking

REGISTERED_NAME = "rlaif-policy"
CURVES = ("score", "kl", "length")


@dg.asset(
    deps=["sl_cai_checkpoint", "reward_model", "red_team_prompts", "helpful_prompts"],
    group_name="step_5_ppo",
    owners=["team:alignment"],
    kinds={"pytorch", "huggingface", "mlflow"},
    pool="gpu",
    code_version="3",
)
def ppo_policy(
    context: dg.AssetExecutionContext,
    config: PpoPolicyConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """The SL-CAI model trained by PPO against the reward model, held near SL-CAI by a KL penalty."""
    stage = Stage(context, config, storage, compute, tracking)

    def work() -> Product:
        from rlaif_assets.evaluation.pictures import curves_picture
        from rlaif_assets.training.ppo import train_ppo

        def log(metrics: dict[str, float], update: int) -> None:
            stage.log(metrics, update)
            stage.progress("updates", update + 1, config.updates)

        stage.progress("updates", 0, config.updates)
        result = train_ppo(
            stage.folder("sl_cai_checkpoint"),
            stage.folder("reward_model"),
            stage.prompts("red_team_prompts"),
            stage.prompts("helpful_prompts"),
            config,
            folder := stage.work_folder(),
            compute.settings(),
            log,
        )
        pictures = {"training": curves_picture({name: stage.history[name] for name in CURVES})}
        tokens = sum(row["tokens"] for row in result.rollouts)
        return Product({"rollouts": result.rollouts}, result.rejected, folder, result.metrics, tokens, pictures)

    return stage.record(work, registered=REGISTERED_NAME)
