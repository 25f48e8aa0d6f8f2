"""Step 5: reinforcement learning from AI feedback. How belongs to `training.ppo`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from rlaif_assets.assets.configuration import PpoPolicyConfig
from rlaif_assets.assets.judges import judge_source_of
from rlaif_assets.assets.recording import Product, Stage
from rlaif_assets.assets.showing import table_metadata
from rlaif_assets.devices import POOL
from rlaif_assets.records import Rollout
from rlaif_assets.resources import ON_GPUS, Compute, Storage, Tracking
from rlaif_assets.settings import PpoPolicySettings, RewardModelSettings

if TYPE_CHECKING:
    from rlaif_assets.store.warehouse import SnapshotRecord
    from rlaif_assets.training.ppo import PpoResult
    from rlaif_assets.training.rewards import RewardSource

REGISTERED_NAME = "rlaif-policy"
SCORES = ("score", "heldout_score")
CURVES = (
    *("reward", *SCORES, "kl", "entropy", "clip_fraction", "explained_variance", "length", "no_eos_share"),
    *("clipped_score_share", "seconds_rollout", "seconds_score", "seconds_train", "tokens_per_second_update"),
)
HALVES = {"reward_model_half_a", "reward_model_half_b"}
PREFERENCE_MODELS = {"reward_model", *HALVES}
JUDGE = "judge"
LINEAGE = {
    "prompt_id": "red_team_prompts.prompt_id helpful_prompts.prompt_id",
    "text": "red_team_prompts.messages helpful_prompts.messages sl_cai_checkpoint.text",
    "score": "reward_model.row_id",
    "kl": "sl_cai_checkpoint.text",
}


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
    pool=POOL,
    op_tags=ON_GPUS,
    code_version="5",
    metadata=table_metadata("rollouts", Rollout, LINEAGE),
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
        def log(metrics: dict[str, float], update: int) -> None:
            stage.mlflow.log(metrics, update)
            stage.progress("updates", update + 1, config.updates)

        stage.progress("updates", 0, config.updates)
        folder = stage.work_folder()
        return policy_product(stage, train(stage, config, folder, log), folder)

    return stage.record(work, lambda: identity(config), registered=REGISTERED_NAME, role="train")


def policy_product(stage: Stage, result: "PpoResult", folder: Path) -> Product:
    from rlaif_assets.evaluation.pictures import curves_picture, score_by_kl_picture

    for finding in result.findings:
        stage.context.log.warning(f"guard {finding.guard} after update {finding.update + 1}: {finding.why}")
    guarded = {"findings": [vars(finding) for finding in result.findings], "updates_kept": result.kept}
    curves = {name: stage.mlflow.history[name] for name in CURVES if name in stage.mlflow.history}
    tokens = sum(row["tokens"] for row in result.rollouts)
    metrics = {**result.metrics, "guards": guarded}
    scores = {name: curves[name] for name in SCORES if name in curves}
    pictures = {"training": curves_picture(curves), "score_by_kl": score_by_kl_picture(curves["kl"], scores)}
    return Product({"rollouts": result.rollouts}, result.rejected, folder, metrics, tokens, pictures)


def train(
    stage: Stage, config: PpoPolicyConfig, folder: Path, log: Callable[[dict[str, float], int], None]
) -> "PpoResult":
    """In this process, or in those that `compute.processes` asks for."""
    from rlaif_assets.training.ppo import train_ppo
    from rlaif_assets.training.ppo_processes import PpoJob, train_in_processes
    from rlaif_assets.training.rewards import open_reward

    policy, compute = stage.folder("sl_cai_checkpoint"), stage.compute.settings()
    prompts = stage.prompts("red_team_prompts"), stage.prompts("helpful_prompts")
    source, heldout, resume = reward_of(stage, config), heldout_of(stage, config), stage.resume_file()
    if compute.processes > 1:
        settings = PpoPolicySettings(**{name: getattr(config, name) for name in PpoPolicySettings.model_fields})
        job = PpoJob(policy, source, *prompts, settings, folder, compute, resume, heldout, os.getpid())
        return train_in_processes(job, log)
    reward = open_reward(source, compute, lambda _: stage.model("feedback_model"), stage.compute.endpoint)
    others = [open_reward(other, compute) for other in heldout]
    return train_ppo(policy, reward, *prompts, config, folder, compute, log, resume, others)


def reward_of(stage: Stage, config: PpoPolicyConfig) -> "RewardSource":
    """What the policy is paid by. The reward model is made in any case, and with it the audits that it asks for."""
    if config.reward in PREFERENCE_MODELS:
        return stage.folder(config.reward)
    return judge_source_of(stage, config.seed) if config.reward == JUDGE else config.reward


def heldout_of(stage: Stage, config: PpoPolicyConfig) -> list[Path]:
    """The models on half of the data that did not pay the policy, if they learned as the reward model did."""
    made = {name: learned_from(stage.inputs[name]) for name in ("reward_model", *HALVES)}
    found = []
    for name in sorted(HALVES - {config.reward}):
        if made[name] == made["reward_model"]:
            found.append(stage.folder(name))
        else:
            stage.context.log.warning(
                f"{name} was made from other data or with other settings than reward_model: the policy is not measured "
                "by it; materialize it"
            )
    return found


def learned_from(record: "SnapshotRecord") -> tuple[dict[str, str], dict[str, Any]]:
    """The inputs of a reward model, and the settings that decide what it learns."""
    return record.inputs, {name: record.settings.get(name) for name in RewardModelSettings.model_fields}


def identity(config: PpoPolicyConfig) -> dict[str, Any]:
    """What decides the policy: the settings, and the source of a reward that is a Python function."""
    if config.reward in PREFERENCE_MODELS | {JUDGE}:
        return config.model_dump()
    from rlaif_assets.training.rewards import function_fingerprint

    return config.model_dump() | {"reward_source": function_fingerprint(config.reward)}
