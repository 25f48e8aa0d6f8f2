"""Step 3: response pairs from SL-CAI, and the feedback model's soft labels on them. How belongs to `feedback`."""

from typing import TYPE_CHECKING, Any

import dagster as dg

from rlaif_assets.assets.configuration import HarmlessnessPreferencesConfig, ResponsePairsConfig, without_limits
from rlaif_assets.assets.recording import Product, Stage, table_metadata
from rlaif_assets.records import JudgingConstitution, JudgingExample, JudgingPrinciple, Label, Pair
from rlaif_assets.resources import Compute, Storage, Tracking
from rlaif_assets.settings import FeedbackModelSettings, HarmlessnessPreferencesSettings

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
    code_version="2",
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
        tokens = sum(row.tokens_in + row.tokens_out for row in judgements)
        return Product(tables, rejected, metrics=judge_metrics(judge), tokens=tokens)

    return stage.record(work, lambda: without_limits(config))


def judge_of(stage: Stage) -> "Judge":
    """The feedback model as a judge under the stage's own judging settings, or those that its labels were made under.

    An endpoint is asked as it was recorded; its key, limits and budgets are those of `compute`.
    """
    from rlaif_assets.feedback.cot_judge import EndpointCotJudge, LocalCotJudge
    from rlaif_assets.feedback.endpoint_judge import EndpointJudge
    from rlaif_assets.feedback.judge import LocalJudge

    settings, row = judging_settings_of(stage), stage.external("feedback_model")
    if row["verdicts"] is None:
        judge = LocalJudge(stage.model("feedback_model"))
        return LocalCotJudge(judge, settings) if settings.chain_of_thought else judge
    endpoint = stage.compute.endpoint(row["source"], row["model"], row["revision"])
    asked = FeedbackModelSettings(**stage.inputs["feedback_model"].settings)
    hosted = EndpointJudge(endpoint, row["verdicts"], asked)
    return EndpointCotJudge(hosted, settings) if settings.chain_of_thought else hosted


def judging_settings_of(stage: Stage) -> HarmlessnessPreferencesSettings:
    """The settings of the labelling stage itself; in another stage, those under which the labels it reads were made."""
    found = stage.config
    values = (
        found.model_dump()
        if isinstance(found, HarmlessnessPreferencesSettings)
        else stage.inputs["harmlessness_preferences"].settings
    )
    return HarmlessnessPreferencesSettings(
        **{name: values[name] for name in HarmlessnessPreferencesSettings.model_fields}
    )


def judge_metrics(judge: "Judge") -> dict[str, Any]:
    """What an endpoint was asked so far in this run, and how often a letter's probability is a bound."""
    from rlaif_assets.feedback.cot_judge import EndpointCotJudge
    from rlaif_assets.feedback.endpoint_judge import EndpointJudge

    hosted = judge.judge if isinstance(judge, EndpointCotJudge) else judge
    if not isinstance(hosted, EndpointJudge):
        return {}
    spent = {"calls": hosted.endpoint.calls, "tokens": hosted.endpoint.tokens, "bounded": len(hosted.bounded)}
    return {"endpoint": spent}


def judging_constitution_of(stage: Stage) -> JudgingConstitution:
    return JudgingConstitution(
        tuple(stage.rows(JudgingPrinciple, "judging_constitution", "judging_principles")),
        tuple(stage.rows(JudgingExample, "judging_constitution", "judging_examples")),
    )
