"""Step 3: response pairs from SL-CAI, and the feedback model's soft labels on them. How belongs to `feedback`."""

from typing import TYPE_CHECKING

import dagster as dg

from rlaif_assets.assets.configuration import HarmlessnessPreferencesConfig, ResponsePairsConfig, without_limits
from rlaif_assets.assets.recording import Product, Stage, table_metadata
from rlaif_assets.records import JudgingConstitution, JudgingExample, JudgingPrinciple, Label, Pair
from rlaif_assets.resources import Compute, Storage, Tracking

if TYPE_CHECKING:
    from rlaif_assets.feedback.judge import Judge

GROUP = "step_3_preferences"


@dg.asset(
    deps=["sl_cai_checkpoint", "red_team_prompts"],
    group_name=GROUP,
    owners=["team:alignment"],
    kinds={"duckdb", "huggingface"},
    pool="gpu",
    code_version="2",
    metadata=table_metadata("pairs", Pair),
)
def response_pairs(
    context: dg.AssetExecutionContext,
    config: ResponsePairsConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """Two sampled SL-CAI responses to each red-team prompt of the train split; identical ones are rejected."""
    stage = Stage(context, config, storage, compute, tracking)

    def work() -> Product:
        from rlaif_assets.feedback.pairs import sample_pairs

        prompts = stage.prompts("red_team_prompts")
        pairs, rejected = sample_pairs(stage.model("sl_cai_checkpoint"), prompts, config, stage.progress)
        return Product({"pairs": pairs}, rejected, tokens=sum(pair.tokens_out for pair in pairs))

    return stage.record(work)


@dg.asset(
    deps=["response_pairs", "red_team_prompts", "judging_constitution", "feedback_model"],
    group_name=GROUP,
    owners=["team:alignment"],
    kinds={"duckdb", "huggingface"},
    pool="gpu",
    code_version="3",
    metadata=table_metadata("labels", Label),
)
def harmlessness_preferences(
    context: dg.AssetExecutionContext,
    config: HarmlessnessPreferencesConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """Soft labels: the probability that the feedback model prefers response A, over both orders; and their audits."""
    stage = Stage(context, config, storage, compute, tracking)

    def work() -> Product:
        from rlaif_assets.feedback.audits import audit
        from rlaif_assets.feedback.judging import judge_pairs
        from rlaif_assets.feedback.labels import make_labels
        from rlaif_assets.training.examples import prompts_by_id

        constitution = judging_constitution_of(stage)
        prompts = prompts_by_id(stage.prompts("red_team_prompts"))
        stage.require_made_from("response_pairs", "red_team_prompts")
        pairs, judge = stage.rows(Pair, "response_pairs", "pairs"), judge_of(stage)
        judgements, rejected = judge_pairs(judge, constitution, prompts, pairs, config, stage.progress)
        labels = make_labels(judgements)
        verdicts = audit(labels, judgements, config.audits())
        tables = {"labels": labels, "judgements": judgements, "verdicts": verdicts}
        return Product(tables, rejected, tokens=sum(row.tokens_in for row in judgements))

    return stage.record(work, lambda: without_limits(config))


def judge_of(stage: Stage) -> "Judge":
    from rlaif_assets.feedback.judge import LocalJudge

    return LocalJudge(stage.model("feedback_model"))


def judging_constitution_of(stage: Stage) -> JudgingConstitution:
    return JudgingConstitution(
        tuple(stage.rows(JudgingPrinciple, "judging_constitution", "judging_principles")),
        tuple(stage.rows(JudgingExample, "judging_constitution", "judging_examples")),
    )
