"""Step 5: reinforcement learning from AI feedback. How belongs to `training.ppo`."""

from typing import TYPE_CHECKING, Any

import dagster as dg

from rlaif_assets.assets.configuration import PpoPolicyConfig
from rlaif_assets.assets.judges import judging_constitution_of, rater_of
from rlaif_assets.assets.recording import Product, Stage
from rlaif_assets.resources import Compute, Storage, Tracking

if TYPE_CHECKING:
    from rlaif_assets.training.rewards import Reward

REGISTERED_NAME = "rlaif-policy"
CURVES = ("score", "kl", "length")


@dg.asset(
    deps=[
        "sl_cai_checkpoint",
        "reward_model",
        "red_team_prompts",
        "helpful_prompts",
        "judging_constitution",
        "feedback_model",
    ],
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
    """The SL-CAI model trained by PPO against a reward (by default the reward model), held near SL-CAI by the KL."""
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
            reward_of(stage, config),
            stage.prompts("red_team_prompts"),
            stage.prompts("helpful_prompts"),
            config,
            folder := stage.work_folder(),
            compute.settings(),
            log,
            stage.resume_file(),
        )
        for finding in result.findings:
            context.log.warning(f"guard {finding.guard} after update {finding.update + 1}: {finding.why}")
        guarded = {"findings": [vars(finding) for finding in result.findings], "updates_kept": result.kept}
        pictures = {"training": curves_picture({name: stage.history[name] for name in CURVES})}
        tokens = sum(row["tokens"] for row in result.rollouts)
        metrics = {**result.metrics, "guards": guarded}
        return Product({"rollouts": result.rollouts}, result.rejected, folder, metrics, tokens, pictures)

    return stage.record(work, lambda: identity(config), registered=REGISTERED_NAME)


def reward_of(stage: Stage, config: PpoPolicyConfig) -> "Reward":
    """What the policy is paid by. The reward model is made in any case, and with it the audits that it asks for."""
    from rlaif_assets.training import rewards

    if config.reward == rewards.REWARD_MODEL:
        return rewards.preference_reward(stage.folder("reward_model"), stage.compute.settings())
    if config.reward == rewards.JUDGE:
        principles = judging_constitution_of(stage).principles
        return rewards.judge_reward(rater_of(stage), principles, config.seed)
    return rewards.function_reward(config.reward)


def identity(config: PpoPolicyConfig) -> dict[str, Any]:
    """What decides the policy: the settings, and the source of a reward that is a Python function."""
    if config.reward in ("reward_model", "judge"):
        return config.model_dump()
    from rlaif_assets.training.rewards import function_fingerprint

    return config.model_dump() | {"reward_source": function_fingerprint(config.reward)}
