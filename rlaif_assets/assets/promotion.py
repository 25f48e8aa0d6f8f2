"""Which policy is the champion. What it must show belongs to `evaluation.promotion`; who it is, to the registry."""

import dataclasses
from typing import TYPE_CHECKING, Any

import dagster as dg

from rlaif_assets.assets.configuration import ChampionPolicyConfig
from rlaif_assets.assets.judges import judge_of, judging_constitution_of, judging_settings_of
from rlaif_assets.assets.recording import Product, Stage, as_records
from rlaif_assets.assets.showing import table_metadata
from rlaif_assets.assets.step5_ppo import REGISTERED_NAME
from rlaif_assets.devices import POOL
from rlaif_assets.records import EvaluationAnswer, EvaluationRate, Label, PromotionRule, Rejection
from rlaif_assets.resources import ON_GPU, Compute, Storage, Tracking

if TYPE_CHECKING:
    from rlaif_assets.store.registry import Version
    from rlaif_assets.store.warehouse import SnapshotRecord

CHAMPION = "champion"
LINEAGE = {name: f"policy_evaluation.{name}" for name in ("value", "low", "high")}
ANSWERED_AS = ("samples", "temperature", "max_new_tokens")  # evaluation settings that two policies must share


@dg.asset(
    deps=[
        "ppo_policy",
        "policy_evaluation",
        "red_team_prompts",
        "feedback_model",
        "judging_constitution",
        "harmlessness_preferences",
    ],
    group_name="step_7_promotion",
    owners=["team:alignment"],
    kinds={"duckdb", "mlflow"},
    pool=POOL,
    op_tags=ON_GPU,
    code_version="1",
    metadata=table_metadata("promotion_rules", PromotionRule, LINEAGE),
)
def champion_policy(
    context: dg.AssetExecutionContext,
    config: ChampionPolicyConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """The candidate becomes the registry's champion if it is better than the one that is, or than SL-CAI where there is
    none, and no worse in anything else. A candidate is looked at once per evaluation; a refusal is a warning."""
    stage = Stage(context, config, storage, compute, tracking)

    def work() -> Product:
        from rlaif_assets.evaluation.promotion import reasons
        from rlaif_assets.store import registry

        stage.require_made_from("policy_evaluation", "ppo_policy")
        before = champion_before(stage)
        rules, unread = measured_rules(stage, config, before)
        refused = reasons(rules)
        if refused:
            context.log.warning(f"not promoted, compared with {named(before)}: {'; '.join(refused)}")
        else:
            promote(stage, rules)
        now = registry.named(stage.warehouse, REGISTERED_NAME, CHAMPION)
        told = {"compared_with": named(before), "opponent": before and before.snapshot_id, "reasons": refused}
        metrics = {"promoted": not refused, "champion": now and named(now), **told}
        return Product({"promotion_rules": rules}, unread, metrics=metrics)

    return stage.record(work, shown=lambda record: decision(stage, record))


def champion_before(stage: Stage) -> "Version | None":
    """The champion that this candidate has to replace; where the candidate is champion already (forced again, or killed
    after it was promoted), the one before it."""
    from rlaif_assets.store import registry

    candidate = stage.inputs["ppo_policy"].snapshot_id
    known = {one.version: one for one in registry.versions(stage.warehouse, REGISTERED_NAME)}
    past = [move.version for move in registry.moves(stage.warehouse, REGISTERED_NAME) if move.alias == CHAMPION]
    return next((known[one] for one in reversed(past) if known[one].snapshot_id != candidate), None)


def measured_rules(
    stage: Stage, config: ChampionPolicyConfig, before: "Version | None"
) -> tuple[list[PromotionRule], list[Rejection]]:
    """The rules, and the duels that the judge could not read."""
    from rlaif_assets.evaluation.promotion import promotion_rules

    evaluations = [stage.inputs["policy_evaluation"]]
    answers, name, unread = answers_of(stage, evaluations[0], config.split), named(before), []
    candidate = [row for row in answers if row.policy == "ppo"]
    if before is None:
        opponent = [row for row in answers if row.policy == "sl_cai"]
        rates = stage.rows(EvaluationRate, "policy_evaluation", "evaluation_rates")
        duels = [rate for rate in rates if (rate.split, rate.subject) == (config.split, "ppo_vs_sl_cai")]
    elif (other := comparable(stage, before)) is None:
        opponent, duels = [], []
        name += f" (never evaluated with {answered_as(stage)}: evaluate it so, and force champion_policy)"
    else:
        evaluations.append(other)
        opponent = [row for row in answers_of(stage, other, config.split) if row.policy == "ppo"]
        duels, unread = duels_with(stage, config, candidate, opponent)
    return promotion_rules(candidate, opponent, duels, damage_in(stage, evaluations), name, config), unread


def comparable(stage: Stage, before: "Version") -> "SnapshotRecord | None":
    """The champion's newest evaluation with answers drawn as the candidate's were."""
    own = stage.inputs["policy_evaluation"].settings
    return next(
        (
            one
            for one in reversed(stage.warehouse.list("policy_evaluation"))
            if one.inputs["ppo_policy"] == before.snapshot_id
            and all(one.settings[name] == own[name] for name in ANSWERED_AS)
        ),
        None,
    )


def answered_as(stage: Stage) -> str:
    own = stage.inputs["policy_evaluation"].settings
    return ", ".join(f"{name}={own[name]}" for name in ANSWERED_AS)


def damage_in(stage: Stage, evaluations: list["SnapshotRecord"]) -> list[str]:
    """What is not as it was published in all that was made for these evaluations, the policies among it."""
    from rlaif_assets.evaluation.as_published import record_problems
    from rlaif_assets.language_models.external import external_problems

    wanted: dict[str, SnapshotRecord] = {}
    for evaluation in evaluations:
        wanted |= stage.warehouse.with_inputs(evaluation.snapshot_id)
    records = [wanted[one] for one in sorted(wanted)]
    found = [
        f"{record.asset} {record.snapshot_id}: the record of its {asset} {upstream} is missing"
        for record in records
        for asset, upstream in record.inputs.items()
        if upstream not in wanted
    ]
    for record in records:
        found += record_problems(stage.warehouse, record)
        outside = external_problems(stage.warehouse, record)
        found += [f"{record.asset} {record.snapshot_id}: {problem}" for problem in outside]
    return found


def answers_of(stage: Stage, evaluation: "SnapshotRecord", split: str) -> list[EvaluationAnswer]:
    stage.mlflow.read.add(("policy_evaluation", "evaluation_answers"))
    rows = stage.warehouse.rows("evaluation_answers", evaluation.snapshot_id)
    return [row for row in as_records(EvaluationAnswer, rows) if row.split == split]


def duels_with(
    stage: Stage, config: ChampionPolicyConfig, candidate: list[EvaluationAnswer], opponent: list[EvaluationAnswer]
) -> tuple[list[EvaluationRate], list[Rejection]]:
    """The candidate's win rate over the champion, and ties: by the gold annotator, else by the feedback model anew; and
    the duels that it could not read."""
    from rlaif_assets.evaluation.duels import judge_duels
    from rlaif_assets.evaluation.rates import win_rates
    from rlaif_assets.training.examples import prompts_by_id

    stage.require_made_from("policy_evaluation", "red_team_prompts", "harmlessness_preferences")
    answers = [*candidate, *(dataclasses.replace(row, policy="sl_cai") for row in opponent)]
    prompts = [p for p in stage.prompts("red_team_prompts", splits=(config.split,)) if p.kind == "unknown"]
    judged, unread, self_judged = None, [], False
    if prompts:
        judge, settings = judge_of(stage), judging_settings_of(stage)
        constitution = judging_constitution_of(stage)
        judged, unread = judge_duels(judge, constitution, prompts_by_id(prompts), answers, settings, stage.progress)
        labels = stage.rows(Label, "harmlessness_preferences", "labels")
        self_judged = any(label.annotator == judge.fingerprint for label in labels)
    return win_rates(answers, config.split, config.bootstrap, config.seed, judged, self_judged), unread


def promote(stage: Stage, rules: list[PromotionRule]) -> None:
    """In the home's record first, which decides; MLflow is told, if it is there."""
    from rlaif_assets.store import registry

    version = next(
        one
        for one in registry.versions(stage.warehouse, REGISTERED_NAME)
        if one.snapshot_id == stage.inputs["ppo_policy"].snapshot_id
    )
    why = f"run {stage.context.run.run_id}: better {next(rule.note for rule in rules if rule.rule == 'better')}"
    registry.set_alias(stage.warehouse, REGISTERED_NAME, CHAMPION, version.version, stage.asset, why)
    if stage.mlflow.tell(lambda tracker, _: tracker.point(REGISTERED_NAME, CHAMPION, version.snapshot_id)) is False:
        stage.context.log.warning(registry.unknown_in_mlflow(version))


def named(version: "Version | None") -> str:
    return f"{version.name}/{version.version}" if version else "SL-CAI"


def decision(stage: Stage, record: "SnapshotRecord") -> dict[str, Any]:
    """What the asset's page says of the decision, and who is champion now: a person may have moved the alias since."""
    from rlaif_assets.store import registry

    told, now = record.metrics, registry.named(stage.warehouse, REGISTERED_NAME, CHAMPION)
    head = "promoted" if told["promoted"] else "not promoted"
    lines = [f"- {reason}" for reason in told["reasons"]] or ["- every rule was kept"]
    lines = [
        f"{head} on {record.created_at[:10]}, compared with {told['compared_with']}", "", *lines, "",
        f"Champion now: {named(now) if now else 'none'}",
    ]  # fmt: skip
    return {"promoted": told["promoted"], "decision": "\n".join(lines)}
