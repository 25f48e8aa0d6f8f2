"""The feedback model as a judge, for the assets that ask one. How judges answer belongs to `feedback`."""

from typing import TYPE_CHECKING, Any

from rlaif_assets.assets.recording import Stage
from rlaif_assets.records import JudgingConstitution, JudgingExample, JudgingPrinciple
from rlaif_assets.settings import FeedbackModelSettings, HarmlessnessPreferencesSettings

if TYPE_CHECKING:
    from rlaif_assets.feedback.judge import Judge
    from rlaif_assets.training.rewards import JudgeSource


def judge_of(stage: Stage) -> "Judge":
    """The feedback model as a judge under the stage's own judging settings, or those that its labels were made under.

    An endpoint is asked as it was recorded; its key, limits and budgets are those of `compute`.
    """
    from rlaif_assets.feedback.opening import endpoint_judge, local_judge, prove

    judging, row = judging_settings_of(stage), stage.external("feedback_model")
    if row["verdicts"] is None:
        return local_judge(stage.model("feedback_model"), judging)
    asked = FeedbackModelSettings(**stage.inputs["feedback_model"].settings)
    judge = endpoint_judge(row, asked, judging, stage.compute.endpoint)
    prove(judge, stage.judgements)
    return judge


def judge_source_of(stage: Stage, seed: int) -> "JudgeSource":
    """The feedback model as one that rates single answers under the constitution; an endpoint as it was recorded."""
    from rlaif_assets.training.rewards import JudgeSource

    row, principles = stage.external("feedback_model"), judging_constitution_of(stage).principles
    asked = FeedbackModelSettings(**stage.inputs["feedback_model"].settings)
    if row["verdicts"] is None:
        return JudgeSource(principles, seed, asked, folder=stage.folder("feedback_model"))
    place = (row["source"], row["model"], row["revision"])
    return JudgeSource(principles, seed, asked, endpoint=place, method=row["verdicts"])


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
