"""What came of it: the policies side by side on prompts that no step has seen. How belongs to `evaluation`."""

from typing import TYPE_CHECKING, Any

import dagster as dg

from rlaif_assets.assets.configuration import PolicyEvaluationConfig
from rlaif_assets.assets.judges import judge_of, judging_constitution_of, judging_settings_of
from rlaif_assets.assets.recording import Product, Stage
from rlaif_assets.assets.showing import table_metadata
from rlaif_assets.devices import POOL
from rlaif_assets.records import EvaluationAnswer, EvaluationRate, Label, Pair, Prompt, Rejection, Split
from rlaif_assets.resources import ON_GPU, Compute, Storage, Tracking
from rlaif_assets.settings import ResponsePairsSettings

if TYPE_CHECKING:
    from rlaif_assets.language_models.local import LocalModel
    from rlaif_assets.store.warehouse import SnapshotRecord

LINEAGE = {
    "split": "red_team_prompts.split helpful_prompts.split",
    "value": "red_team_prompts.messages red_team_prompts.kind helpful_prompts.messages helpful_prompts.kind"
    " base_model.fingerprint sl_cai_checkpoint.text ppo_policy.text",
}
PLOTTED = ("harmless_rate", "helpful_rate", "lookalike_refusal_rate", "evasive_rate", "kl", "mean_length")
HELD_OUT: tuple[Split, ...] = ("dev", "test")


@dg.asset(
    deps=[
        "base_model",
        "sl_cai_checkpoint",
        "ppo_policy",
        "red_team_prompts",
        "helpful_prompts",
        "feedback_model",
        "judging_constitution",
        "response_pairs",
        "harmlessness_preferences",
    ],
    group_name="step_6_evaluation",
    owners=["team:alignment"],
    kinds={"duckdb", "mlflow", "huggingface"},
    pool=POOL,
    op_tags=ON_GPU,
    code_version="6",
    metadata=table_metadata("evaluation_rates", EvaluationRate, LINEAGE),
)
def policy_evaluation(
    context: dg.AssetExecutionContext,
    config: PolicyEvaluationConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """Base, SL-CAI and PPO on dev and test prompts: harm, help, refusals, win rates; and the labels' own accuracy."""
    stage = Stage(context, config, storage, compute, tracking)

    def work() -> Product:
        from rlaif_assets.evaluation.policies import evaluate
        from rlaif_assets.pocket.annotator import classify

        stage.require_made_from("harmlessness_preferences", "response_pairs", "judging_constitution")
        stage.require_made_from("response_pairs", "red_team_prompts", "sl_cai_checkpoint")
        stage.require_made_from("ppo_policy", "sl_cai_checkpoint")
        stage.require_made_from("sl_cai_checkpoint", "base_model")
        names = {"base": "base_model", "sl_cai": "sl_cai_checkpoint", "ppo": "ppo_policy"}
        policies = {name: stage.model(asset) for name, asset in names.items()}
        prompts = stage.prompts("red_team_prompts", "helpful_prompts", splits=HELD_OUT)
        stage.progress.expect(len(prompts) * (len(policies) * config.samples + 2 * config.label_pairs_per_prompt))
        answers, rejected = evaluate(policies, prompts, config, classify, stage.progress)
        judged, self_judged, unjudged = _judged_duels(stage, answers)
        rates = _rates(answers, config, judged, self_judged)
        tables = {"evaluation_rates": rates, "evaluation_answers": answers}
        metrics = {"labels": _label_metrics(stage, policies["sl_cai"], config)}
        tokens = sum(row.tokens for row in answers)
        shown = {"pictures": _pictures(answers, rates), "samples": {"side_by_side": side_by_side(prompts, answers)}}
        return Product(tables, rejected + unjudged, None, metrics, tokens, **shown)

    return stage.record(
        work,
        plotted=lambda record: _plotted(stage, record),
        pages=lambda record: _pages(stage, record),
        role="eval",
    )


def _plotted(stage: Stage, record: "SnapshotRecord") -> dict[str, float | None]:
    """The policy's rates on test prompts, and how often it wins over SL-CAI."""
    rows = stage.warehouse.rows("evaluation_rates", record.snapshot_id)
    shown = {("ppo", measure): measure for measure in PLOTTED} | {("ppo_vs_sl_cai", "win_rate"): "win_rate"}
    tested = [row for row in rows if row["split"] == "test" and (row["subject"], row["measure"]) in shown]
    return {shown[row["subject"], row["measure"]]: row["value"] for row in tested}


def side_by_side(prompts: list[Prompt], answers: list[EvaluationAnswer]) -> list[dict[str, str]]:
    """The policies' first answers to each test prompt, in one row."""
    texts = {prompt.prompt_id: prompt.text for prompt in prompts}
    rows: dict[str, dict[str, str]] = {}
    for one in answers:
        if one.split == "test" and one.sample == 0:
            row = rows.setdefault(one.prompt_id, {"kind": one.kind, "prompt": texts[one.prompt_id]})
            row |= {one.policy: one.text, f"{one.policy} verdict": one.verdict or ""}
    whole = max((len(row) for row in rows.values()), default=0)
    return [row for row in rows.values() if len(row) == whole]


def _pictures(answers: list[EvaluationAnswer], rates: list[EvaluationRate]) -> dict[str, bytes]:
    from rlaif_assets.evaluation.pictures import lengths_picture, rates_picture

    tested = [row for row in answers if row.split == "test"]
    names = dict.fromkeys(row.policy for row in tested)
    lengths = {name: [row.tokens for row in tested if row.policy == name] for name in names}
    return {
        "rates": rates_picture([rate for rate in rates if rate.split == "test"]),
        "lengths": lengths_picture(lengths),
    }


def _pages(stage: Stage, record: "SnapshotRecord") -> dict[str, str]:
    from rlaif_assets.evaluation.policy_report import policy_page

    return {"report": policy_page(stage.warehouse, stage.inputs["ppo_policy"], record)}


def _rates(
    answers: list[EvaluationAnswer],
    config: PolicyEvaluationConfig,
    judged: dict[tuple[str, str], int] | None,
    self_judged: bool,
) -> list[EvaluationRate]:
    from rlaif_assets.evaluation.rates import policy_rates, win_rates

    rates: list[EvaluationRate] = []
    for split in HELD_OUT:
        rates += policy_rates(answers, split, config.bootstrap, config.seed)
        rates += win_rates(answers, split, config.bootstrap, config.seed, judged, self_judged)
    return rates


def _judged_duels(
    stage: Stage, answers: list[EvaluationAnswer]
) -> tuple[dict[tuple[str, str], int] | None, bool, list[Rejection]]:
    """Duels decided by the feedback model where no gold annotator knows the red-team prompts (None where one does);
    whether it made the labels; and the duels that it could not read."""
    from rlaif_assets.evaluation.duels import judge_duels
    from rlaif_assets.training.examples import prompts_by_id

    if not _has_unknown_prompts(stage):
        return None, False, []
    unknown = prompts_by_id(p for p in stage.prompts("red_team_prompts", splits=HELD_OUT) if p.kind == "unknown")
    judge, constitution = judge_of(stage), judging_constitution_of(stage)
    judged, unjudged = judge_duels(judge, constitution, unknown, answers, judging_settings_of(stage), stage.progress)
    labels = stage.rows(Label, "harmlessness_preferences", "labels")
    return judged, any(label.annotator == judge.fingerprint for label in labels), unjudged


def _has_unknown_prompts(stage: Stage) -> bool:
    """Whether there are red-team prompts that no gold annotator knows: gold then tells nothing about these policies."""
    return any(prompt.kind == "unknown" for prompt in stage.prompts("red_team_prompts", splits=("train", *HELD_OUT)))


def _label_metrics(stage: Stage, policy: "LocalModel", config: PolicyEvaluationConfig) -> dict[str, Any]:
    """By split: the labels that were trained on, and labels of new pairs on held-out prompts."""
    from rlaif_assets.evaluation.labels import new_label_metrics, stored_label_metrics

    constitution = judging_constitution_of(stage)
    labels = stage.rows(Label, "harmlessness_preferences", "labels")
    sampling = ResponsePairsSettings(**stage.inputs["response_pairs"].settings)
    sampling = sampling.model_copy(update={"pairs_per_prompt": config.label_pairs_per_prompt})
    sources = ("red_team_prompts",) if _has_unknown_prompts(stage) else ("red_team_prompts", "helpful_prompts")
    held_out: dict[Split, list[Prompt]] = {s: stage.prompts(*sources, splits=(s,)) for s in HELD_OUT}
    found = {
        "train": stored_label_metrics(
            constitution,
            stage.prompts("red_team_prompts"),
            stage.rows(Pair, "response_pairs", "pairs"),
            labels,
            list(stage.judgements_of(labels).values()),
        )
    }
    judge, judging = judge_of(stage), judging_settings_of(stage)
    return found | {
        split: new_label_metrics(policy, judge, constitution, prompts, sampling, judging, stage.progress)
        for split, prompts in held_out.items()
        if any(prompt.kind != "unknown" for prompt in prompts)
    }
