"""Step 5: reinforcement learning from AI feedback. How belongs to `training.ppo`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from rlaif_assets.assets.configuration import PpoPolicyConfig
from rlaif_assets.assets.judges import judging_constitution_of, rater_of
from rlaif_assets.assets.recording import Product, Stage
from rlaif_assets.resources import Compute, Storage, Tracking

if TYPE_CHECKING:
    from rlaif_assets.training.ppo import PpoResult
    from rlaif_assets.training.rewards import Reward

REGISTERED_NAME = "rlaif-policy"
CURVES = ("score", "heldout_score", "kl", "length")
HALVES = {"reward_model_half_a", "reward_model_half_b"}
PREFERENCE_MODELS = {"reward_model", *HALVES}


@dg.asset(
    deps=[
        "sl_cai_checkpoint",
        "reward_model",
        "reward_model_half_a",
        "reward_model_half_b",
        "red_team_prompts",
        "helpful_prompts",
        "judging_constitution",
        "feedback_model",
    ],
    group_name="step_5_ppo",
    owners=["team:alignment"],
    kinds={"pytorch", "huggingface", "mlflow"},
    pool="gpu",
    code_version="4",
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
            heldout_of(stage, config),
        )
        return policy_product(stage, result, folder)

    return stage.record(work, lambda: identity(config), registered=REGISTERED_NAME)


def policy_product(stage: Stage, result: "PpoResult", folder: Path) -> Product:
    from rlaif_assets.evaluation.pictures import curves_picture

    for finding in result.findings:
        stage.context.log.warning(f"guard {finding.guard} after update {finding.update + 1}: {finding.why}")
    guarded = {"findings": [vars(finding) for finding in result.findings], "updates_kept": result.kept}
    curves = {name: stage.history[name] for name in CURVES if name in stage.history}
    tokens = sum(row["tokens"] for row in result.rollouts)
    metrics = {**result.metrics, "guards": guarded}
    pictures = {"training": curves_picture(curves)}
    return Product({"rollouts": result.rollouts}, result.rejected, folder, metrics, tokens, pictures)


def reward_of(stage: Stage, config: PpoPolicyConfig) -> "Reward":
    """What the policy is paid by. The reward model is made in any case, and with it the audits that it asks for."""
    from rlaif_assets.training import rewards

    if config.reward in PREFERENCE_MODELS:
        return rewards.preference_reward(stage.folder(config.reward), stage.compute.settings())
    if config.reward == rewards.JUDGE:
        principles = judging_constitution_of(stage).principles
        return rewards.judge_reward(rater_of(stage), principles, config.seed)
    return rewards.function_reward(config.reward)


def heldout_of(stage: Stage, config: PpoPolicyConfig) -> "list[Reward]":
    """The models on half of the labels that did not pay the policy, if they learned from the reward model's labels."""
    from rlaif_assets.training.rewards import preference_reward

    labels = stage.inputs["reward_model"].inputs["harmlessness_preferences"]
    found = []
    for name in sorted(HALVES - {config.reward}):
        if stage.inputs[name].inputs["harmlessness_preferences"] == labels:
            found.append(preference_reward(stage.folder(name), stage.compute.settings()))
        else:
            stage.context.log.warning(
                f"{name} learned from other labels than reward_model: the policy is not measured by it; materialize it"
            )
    return found


def identity(config: PpoPolicyConfig) -> dict[str, Any]:
    """What decides the policy: the settings, and the source of a reward that is a Python function."""
    if config.reward in PREFERENCE_MODELS | {"judge"}:
        return config.model_dump()
    from rlaif_assets.training.rewards import function_fingerprint

    return config.model_dump() | {"reward_source": function_fingerprint(config.reward)}
