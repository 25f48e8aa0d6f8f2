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
from rlaif_assets.records import EvaluationAnswer, EvaluationRate, Label, PromotionRule
from rlaif_assets.resources import ON_GPU, Compute, Storage, Tracking
from rlaif_assets.settings import PolicyEvaluationSettings

if TYPE_CHECKING:
    from rlaif_assets.store.registry import Version
    from rlaif_assets.store.warehouse import SnapshotRecord

CHAMPION = "champion"
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
    group_name="promotion",
    owners=["team:alignment"],
    kinds={"duckdb", "mlflow"},
    pool=POOL,
    op_tags=ON_GPU,
    code_version="1",
    metadata=table_metadata("promotion_rules", PromotionRule),
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
        rules = measured_rules(stage, config, before)
        refused = reasons(rules)
        if refused:
            context.log.warning(f"not promoted, compared with {named(before)}: {'; '.join(refused)}")
        else:
            promote(stage, rules)
        now = registry.named(stage.warehouse, REGISTERED_NAME, CHAMPION)
        told = {"compared_with": named(before), "champion": now and named(now), "reasons": refused}
        return Product({"promotion_rules": rules}, metrics={"promoted": not refused, **told})

    return stage.record(work, shown=decision)


def champion_before(stage: Stage) -> "Version | None":
    """The champion that this candidate has to replace; where the candidate is champion already (forced again, or killed
    after it was promoted), the one before it."""
    from rlaif_assets.store import registry

    candidate = stage.inputs["ppo_policy"].snapshot_id
    known = {one.version: one for one in registry.versions(stage.warehouse, REGISTERED_NAME)}
    past = [move.version for move in registry.moves(stage.warehouse, REGISTERED_NAME) if move.alias == CHAMPION]
    return next((known[one] for one in reversed(past) if known[one].snapshot_id != candidate), None)


def measured_rules(stage: Stage, config: ChampionPolicyConfig, before: "Version | None") -> list[PromotionRule]:
    from rlaif_assets.evaluation.promotion import promotion_rules
    from rlaif_assets.store.lineage import ancestry, verify

    answers = answers_of(stage, stage.inputs["policy_evaluation"], config.split)
    candidate = [row for row in answers if row.policy == "ppo"]
    if before is None:
        opponent = [row for row in answers if row.policy == "sl_cai"]
        rates = stage.rows(EvaluationRate, "policy_evaluation", "evaluation_rates")
        duels = [rate for rate in rates if (rate.split, rate.subject) == (config.split, "ppo_vs_sl_cai")]
    else:
        opponent = champions_answers(stage, before, config.split)
        duels = duels_with(stage, config, candidate, opponent)
    damage = [
        problem
        for record in ancestry(stage.warehouse, stage.inputs["ppo_policy"].snapshot_id)
        for problem in verify(stage.warehouse, record.snapshot_id)
    ]
    return [*promotion_rules(candidate, opponent, duels, damage, named(before), config), registered(stage)]


def champions_answers(stage: Stage, before: "Version", split: str) -> list[EvaluationAnswer]:
    """The champion's answers in its own newest evaluation, none where it answered under other settings."""
    from rlaif_assets.evaluation.report import evaluation_of

    evaluation = evaluation_of(stage.warehouse, stage.warehouse.get(before.snapshot_id))
    own = PolicyEvaluationSettings(**stage.inputs["policy_evaluation"].settings)
    if evaluation is None or any(evaluation.settings[name] != getattr(own, name) for name in ANSWERED_AS):
        return []
    return [row for row in answers_of(stage, evaluation, split) if row.policy == "ppo"]


def answers_of(stage: Stage, evaluation: "SnapshotRecord", split: str) -> list[EvaluationAnswer]:
    rows = stage.warehouse.rows("evaluation_answers", evaluation.snapshot_id)
    return [row for row in as_records(EvaluationAnswer, rows) if row.split == split]


def duels_with(
    stage: Stage, config: ChampionPolicyConfig, candidate: list[EvaluationAnswer], opponent: list[EvaluationAnswer]
) -> list[EvaluationRate]:
    """The candidate's win rate over the champion, and ties: by the gold annotator, else by the feedback model anew."""
    from rlaif_assets.evaluation.duels import judge_duels
    from rlaif_assets.evaluation.rates import win_rates
    from rlaif_assets.training.examples import prompts_by_id

    answers = [*candidate, *(dataclasses.replace(row, policy="sl_cai") for row in opponent)]
    prompts = [p for p in stage.prompts("red_team_prompts", splits=(config.split,)) if p.kind == "unknown"]
    judged, self_judged = None, False
    if prompts and opponent:
        judge, settings = judge_of(stage), judging_settings_of(stage)
        constitution = judging_constitution_of(stage)
        judged, _ = judge_duels(judge, constitution, prompts_by_id(prompts), answers, settings, stage.progress)
        labels = stage.rows(Label, "harmlessness_preferences", "labels")
        self_judged = any(label.annotator == judge.fingerprint for label in labels)
    return win_rates(answers, config.split, config.bootstrap, config.seed, judged, self_judged)


def registered(stage: Stage) -> PromotionRule:
    there = candidate_version(stage) is not None
    note = (
        "it is a version of the registry" if there else "no version of the registry: MLflow was away when it was made"
    )
    return PromotionRule("registered", there, True, None, None, None, None, note)


def candidate_version(stage: Stage) -> "Version | None":
    from rlaif_assets.store import registry

    wanted = stage.inputs["ppo_policy"].snapshot_id
    found = [one for one in registry.versions(stage.warehouse, REGISTERED_NAME) if one.snapshot_id == wanted]
    return found[-1] if found else None


def promote(stage: Stage, rules: list[PromotionRule]) -> None:
    """In the home's record first, which decides; MLflow is told, if it is there."""
    from rlaif_assets.store import registry

    version = candidate_version(stage)
    assert version is not None
    why = next(rule.note for rule in rules if rule.rule == "better")
    run = f"run {stage.context.run.run_id}"
    registry.set_alias(stage.warehouse, REGISTERED_NAME, CHAMPION, version.version, stage.asset, f"{run}: better {why}")
    stage.tell(lambda tracker, _: tracker.set_alias(REGISTERED_NAME, CHAMPION, version.version))


def named(version: "Version | None") -> str:
    return f"{version.name}/{version.version}" if version else "SL-CAI"


def decision(record: "SnapshotRecord") -> dict[str, Any]:
    """What the asset's page says of the decision."""
    told = record.metrics
    lines = [f"- {reason}" for reason in told["reasons"]] or ["- every rule passed"]
    head = f"{'promoted' if told['promoted'] else 'not promoted'}, compared with {told['compared_with']}"
    return {"promoted": told["promoted"], "decision": "\n".join([head, "", *lines])}
