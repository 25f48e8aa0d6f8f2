"""Step 3: response pairs from SL-CAI, and the feedback model's soft labels on them. How belongs to `feedback`."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from rlaif_assets.assets.auditing import audited, audited_identity, show_passport
from rlaif_assets.assets.configuration import (
    HarmlessnessPreferencesConfig,
    LabelChangesConfig,
    ResponsePairsConfig,
)
from rlaif_assets.assets.judges import judge_metrics, judge_of, judging_constitution_of
from rlaif_assets.assets.recording import Product, Stage, as_records
from rlaif_assets.assets.showing import table_metadata
from rlaif_assets.devices import POOL
from rlaif_assets.feedback.as_of import decided_as_of
from rlaif_assets.records import (
    HumanVerdict,
    Label,
    LabelChange,
    Pair,
)
from rlaif_assets.relabel_lock import RelabelHeldError, relabel_lock
from rlaif_assets.resources import ON_GPU, PROFILE, Compute, Storage, Tracking

if TYPE_CHECKING:
    from rlaif_assets.feedback.changes import Labelled
    from rlaif_assets.store.warehouse import SnapshotRecord

GROUP = "step_3_preferences"
PAIRS_LINEAGE = {
    "prompt_id": "red_team_prompts.prompt_id",
    "response_a": "red_team_prompts.messages sl_cai_checkpoint.text",
    "response_b": "red_team_prompts.messages sl_cai_checkpoint.text",
}
LABELS_LINEAGE = {
    "pair_id": "response_pairs.pair_id",
    "principle_id": "judging_constitution.principle_id",
    "p_a": "response_pairs.response_a response_pairs.response_b red_team_prompts.messages judging_constitution.text"
    " feedback_model.fingerprint human_verdicts.p_a",
    "annotator": "feedback_model.fingerprint human_verdicts.annotator",
    "verdict_ids": "human_verdicts.verdict_id",
}
CHANGES_LINEAGE = {
    "name": "judging_constitution.name red_team_prompts.category",
    "labels": "harmlessness_preferences.pair_id",
    "flipped": "harmlessness_preferences.p_a",
    "mean_change": "harmlessness_preferences.p_a",
}


@dg.asset(
    deps=["sl_cai_checkpoint", "red_team_prompts"],
    group_name=GROUP,
    owners=["team:alignment"],
    kinds={"duckdb", "huggingface"},
    pool=POOL,
    op_tags=ON_GPU,
    code_version="2",
    metadata=table_metadata("pairs", Pair, PAIRS_LINEAGE),
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
    deps=["response_pairs", "red_team_prompts", "judging_constitution", "feedback_model", "human_verdicts"],
    group_name=GROUP,
    owners=["team:alignment"],
    kinds={"duckdb", "huggingface"},
    pool=POOL,
    op_tags=ON_GPU,
    code_version="10",
    metadata=table_metadata("labels", Label, LABELS_LINEAGE),
    output_required=False,
    freshness_policy=dg.FreshnessPolicy.time_window(timedelta(days=PROFILE.relabel.overdue_after_days)),
)
def harmlessness_preferences(
    context: dg.AssetExecutionContext,
    config: HarmlessnessPreferencesConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> Iterator[dg.MaterializeResult]:
    """Soft labels: how probably response A is the better one, by the feedback model or a person; and their audits.

    Only what was never judged before is judged.
    """
    config = with_as_of(config)
    stage = Stage(context, config, storage, compute, tracking)

    lock = relabel_lock(stage.home, context.run.run_id, context.log.warning)
    try:
        yield stage.record(
            lambda: preference_set(stage, config),
            lambda: audited_identity(config),
            plotted=lambda record: flip_rate(stage, record),
            guard=lock,
        )
        show_passport(stage)
    except RelabelHeldError as held:
        stage.skip(str(held))


def flip_rate(stage: Stage, record: "SnapshotRecord") -> dict[str, float | None]:
    """Of the labels with a choice in both orders, the share in which the judge chose another response in the other."""
    counts = {row["flipped"]: row["rows"] for row in stage.warehouse.grouped("labels", record.snapshot_id, "flipped")}
    asked = counts.get(True, 0) + counts.get(False, 0)
    return {"flip_rate": counts.get(True, 0) / asked if asked else None}


def preference_set(stage: Stage, config: HarmlessnessPreferencesConfig) -> Product:
    """Labels, audits and the judge's passport, of the stage's inputs."""
    from rlaif_assets.feedback.preferences import label_pairs
    from rlaif_assets.training.examples import prompts_by_id

    prompts = prompts_by_id(stage.prompts("red_team_prompts"))
    stage.require_made_from("response_pairs", "red_team_prompts")
    pairs = stage.rows(Pair, "response_pairs", "pairs")
    judge, constitution = judge_of(stage), judging_constitution_of(stage)
    made = label_pairs(
        judge,
        constitution,
        prompts,
        pairs,
        stage.rows(HumanVerdict, "human_verdicts", "human_verdicts"),
        config,
        stage.judgements,
        stage.context.run.run_id,
        stage.progress,
    )
    audits = audited(stage, config, judge, constitution, prompts, pairs, made)
    return replace(
        audits,
        tables={"labels": made.labels, **audits.tables},
        rejected=[*made.rejections, *audits.rejected],
        metrics={**made.metrics, **audits.metrics, **judge_metrics(judge)},
        tokens=made.metrics["judging"]["tokens"] + audits.tokens,
    )


def with_as_of(config: HarmlessnessPreferencesConfig) -> HarmlessnessPreferencesConfig:
    """The config with the date that re-judging is decided from; none where nothing is decided by it."""
    return config.model_copy(update={"as_of": decided_as_of(config)})


@dg.asset(
    deps=["harmlessness_preferences", "response_pairs", "red_team_prompts", "judging_constitution"],
    group_name=GROUP,
    owners=["team:alignment"],
    kinds={"duckdb"},
    code_version="2",
    metadata=table_metadata("label_changes", LabelChange, CHANGES_LINEAGE),
)
def label_changes(
    context: dg.AssetExecutionContext,
    config: LabelChangesConfig,
    storage: Storage,
    compute: Compute,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """How the labels differ from the ones that were compared last: flips, mean change, and the largest flips to read.

    A set that failed its audits has no such table, so the next one is compared with the last that had one.
    """
    stage = Stage(context, config, storage, compute, tracking)
    previous = compared_with(stage)

    def work() -> Product:
        from rlaif_assets.feedback.changes import change_metrics, compare
        from rlaif_assets.training.examples import prompts_by_id

        stage.require_made_from("harmlessness_preferences", "response_pairs", "judging_constitution")
        stage.require_made_from("response_pairs", "red_team_prompts")
        old, new = labelled(stage, previous), labelled(stage, stage.inputs["harmlessness_preferences"])
        stage.mlflow.read |= {("harmlessness_preferences", "labels"), ("judging_constitution", "judging_principles")}
        pairs, prompts = stage.rows(Pair, "response_pairs", "pairs"), stage.prompts("red_team_prompts")
        changes, flips = compare(old, new, pairs, prompts_by_id(prompts), config.largest_flips)
        metrics = {**change_metrics(changes, old, new), "compared_with": previous and previous.snapshot_id}
        return Product({"label_changes": changes, "label_flips": flips}, metrics=metrics)

    def shown(record: "SnapshotRecord") -> dict[str, str]:
        from rlaif_assets.feedback.changes import flips_markdown

        return {"largest_flips": flips_markdown(stage.warehouse.rows("label_flips", record.snapshot_id))}

    identity = {**config.model_dump(), "previous": previous and previous.snapshot_id}
    return stage.record(
        work, lambda: identity, shown=shown, plotted=lambda one: {"flip_rate": one.metrics["flipped_share"]}
    )


def compared_with(stage: Stage) -> "SnapshotRecord | None":
    """The preference set that the current one is to be compared with."""
    last = stage.warehouse.current("label_changes")
    same = last is not None and (
        last.inputs["harmlessness_preferences"] == stage.inputs["harmlessness_preferences"].snapshot_id
    )
    if last is None or (same and "compared_with" not in last.metrics):
        return stage.warehouse.previous("harmlessness_preferences")
    found = last.metrics["compared_with"] if same else last.inputs["harmlessness_preferences"]
    return stage.warehouse.get(found) if found else None


def labelled(stage: Stage, record: "SnapshotRecord | None") -> "Labelled":
    """The labels of a snapshot, None: none."""
    from rlaif_assets.feedback.changes import Labelled

    if record is None:
        return Labelled([], {}, {})
    labels = as_records(Label, stage.warehouse.rows("labels", record.snapshot_id))
    principles = stage.warehouse.rows("judging_principles", record.inputs["judging_constitution"])
    return Labelled(labels, stage.judgements_of(labels), {row["principle_id"]: row["name"] for row in principles})
