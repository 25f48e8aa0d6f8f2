"""Jobs, the schedule and the sensors. What judges costs: nothing here is on until a person switches it on.

https://docs.dagster.io/guides/automate
"""

import os
from typing import TYPE_CHECKING

import dagster as dg

from rlaif_assets.assets.recording import SKIPPED_TAG
from rlaif_assets.feedback.limits import refusal
from rlaif_assets.instance import open_runs
from rlaif_assets.relabel_lock import RELABEL_TAGS, relabelling
from rlaif_assets.resources import PROFILE, Storage

if TYPE_CHECKING:
    from rlaif_assets.store.warehouse import Warehouse

EXCLUSIVE_TAG = "rlaif/exclusive"  # dagster.yaml lets one run with it run at a time
PENDING = " pending"
CONSTITUTION_TAG = "rlaif/constitution"  # the content that a run was started for
RELABELLED = ("judging_constitution", "feedback_model", "harmlessness_preferences", "label_changes")
SWITCHED_ON = os.environ.get("RLAIF_RELABEL_ENABLED", "") == "1"

rlaif_all = dg.define_asset_job(
    "rlaif_all",
    selection=dg.AssetSelection.all(),
    description="Every step, from prompts to the policy's evaluation and promotion; what has not changed is reused.",
    tags={EXCLUSIVE_TAG: "true", "rlaif/pipeline": "all"},
)

relabel = dg.define_asset_job(
    "relabel",
    selection=dg.AssetSelection.assets(*RELABELLED),
    description="Judges what a changed constitution, judge or age asks for, nothing else; tells which labels moved. "
    "Skipped where another run is at it.",
    tags=RELABEL_TAGS,  # not exclusive: the second one is to say that it is one, not to wait in the queue
)

retrain = dg.define_asset_job(
    "retrain",
    selection=dg.AssetSelection.assets("reward_model", "reward_model_half_a", "reward_model_half_b").downstream()
    & dg.AssetSelection.assets("champion_policy").upstream(),
    description="Reward models, policy, evaluation, promotion on the current preference set, if it passed its audits.",
    tags={EXCLUSIVE_TAG: "true", "rlaif/pipeline": "retrain"},
)


@dg.schedule(
    job=relabel,
    cron_schedule=PROFILE.relabel.cron,
    execution_timezone=PROFILE.relabel.time_zone,
    default_status=dg.DefaultScheduleStatus.RUNNING if SWITCHED_ON else dg.DefaultScheduleStatus.STOPPED,
    description="For feedback models that change behind their name. Cron and time zone: the profile's stage relabel. "
    "Start it here, or with RLAIF_RELABEL_ENABLED=1.",
)
def weekly_relabel(context: dg.ScheduleEvaluationContext, storage: Storage) -> dg.RunRequest | dg.SkipReason:
    busy = another_relabel(context.instance, storage)
    return dg.SkipReason(busy) if busy else dg.RunRequest()


@dg.sensor(
    job=relabel,
    default_status=dg.DefaultSensorStatus.RUNNING if SWITCHED_ON else dg.DefaultSensorStatus.STOPPED,
    description="Relabels when the constitution of the profile changes. Its first look only remembers what is there. "
    "Start it here, or with RLAIF_RELABEL_ENABLED=1.",
)
def constitution_changed(
    context: dg.SensorEvaluationContext, storage: Storage
) -> dg.SensorResult | dg.SkipReason | dg.RunRequest:
    """The cursor is the content that was seen last, with PENDING while no run was asked for since it changed.

    No run_key: Dagster would take A -> B -> A for what it has seen before. A relabel that is at work may have read A or
    B, so a change that is taken back meanwhile is a change too.
    """
    from rlaif_assets.ingest.constitution import constitution_fingerprint, read_constitution
    from rlaif_assets.ingest.errors import IngestError

    path = PROFILE.constitution.path
    try:
        found = constitution_fingerprint(path)
        if context.cursor is None:
            return dg.SensorResult(skip_reason=dg.SkipReason(f"first look at {path}"), cursor=found)
        if found == context.cursor and not _skipped(context.instance, found):
            return dg.SkipReason(f"{path} has not changed")
        read_constitution(path)  # what is half written or wrong is not relabelled with
    except IngestError as error:
        return dg.SkipReason(f"the constitution cannot be used: {error}")
    busy = another_relabel(context.instance, storage)
    if busy:
        reason = dg.SkipReason(f"{path} has changed, but {busy}; asked again at the next look")
        return dg.SensorResult(skip_reason=reason, cursor=found + PENDING)
    return dg.SensorResult([dg.RunRequest(tags={CONSTITUTION_TAG: found})], cursor=found)


@dg.sensor(
    job=retrain,
    default_status=dg.DefaultSensorStatus.STOPPED,
    minimum_interval_seconds=60,
    description="Asks for training when a larger share of labels than relabel.retrain_flipped_share flipped since the "
    "reward model was trained, once per preference set, and never on one that failed an audit.",
)
def labels_flipped(context: dg.SensorEvaluationContext, storage: Storage) -> dg.SensorResult | dg.SkipReason:
    """The cursor is the preference set that was decided about last. A gate that fails decides nothing: where other
    limits, or a re-judging, let the set pass, training is asked for then."""
    warehouse = storage.warehouse()
    labels, trained = warehouse.current("harmlessness_preferences"), warehouse.current("reward_model")
    if labels is None or trained is None:
        return dg.SkipReason("no reward model was trained yet")
    if labels.snapshot_id == context.cursor:
        return dg.SkipReason("nothing was relabelled since")
    flips, count = flips_since(warehouse, trained.inputs["harmlessness_preferences"], labels.snapshot_id)
    if not count:
        reason = dg.SkipReason("the reward model was trained on other pairs: no label can be compared")
        return dg.SensorResult(skip_reason=reason, cursor=labels.snapshot_id)
    limit = PROFILE.relabel.retrain_flipped_share
    share = f"{flips / count:.1%}, limit {limit:.1%}"
    told = f"{flips} of {count} labels flipped since the reward model was trained ({share})"
    if flips / count <= limit:
        return dg.SensorResult(skip_reason=dg.SkipReason(told), cursor=labels.snapshot_id)
    why = refusal(warehouse.rows("verdicts", labels.snapshot_id), labels.code_version, PROFILE.audits)
    if why:
        return dg.SkipReason(f"{told}, but no model may be trained on the preference set: {why}")
    context.log.info(told)
    return dg.SensorResult([dg.RunRequest(tags={"rlaif/why": told})], cursor=labels.snapshot_id)


def flips_since(warehouse: "Warehouse", trained_on: str, current: str) -> tuple[int, int]:
    """How many labels of two preference sets are on different sides of 0.5, and how many pairs both label."""
    from rlaif_assets.feedback.changes import flipped

    before, now = (
        {row["pair_id"]: row["p_a"] for row in warehouse.rows("labels", snapshot)} for snapshot in (trained_on, current)
    )
    both = before.keys() & now.keys()
    return sum(flipped(before[pair], now[pair]) for pair in both), len(both)


def another_relabel(instance: dg.DagsterInstance, storage: Storage) -> str | None:
    """Who relabels this home, or is about to; None where nobody does."""
    return relabelling(storage.folder()) or next(iter(open_runs(instance, "relabel")), None)


def _skipped(instance: dg.DagsterInstance, constitution: str) -> bool:
    """Whether the last run for this content ended as skipped: the relabel that it met may have read an older one."""
    runs = instance.get_runs(dg.RunsFilter(tags={CONSTITUTION_TAG: constitution}), limit=1)
    return any(SKIPPED_TAG in run.tags for run in runs)
