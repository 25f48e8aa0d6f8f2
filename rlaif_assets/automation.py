"""Jobs and schedules. Training runs by job or button, never by itself. https://docs.dagster.io/guides/automate"""

import dagster as dg

EXCLUSIVE_TAG = "rlaif/exclusive"  # dagster.yaml lets one run with it run at a time

rlaif_all = dg.define_asset_job(
    "rlaif_all",
    selection=dg.AssetSelection.all(),
    description="Every step, from prompts to the policy's evaluation; what has not changed is reused.",
    tags={EXCLUSIVE_TAG: "true", "rlaif/pipeline": "all"},
)

relabel = dg.define_asset_job(
    "relabel",
    selection=dg.AssetSelection.assets(
        "judging_constitution", "feedback_model", "harmlessness_preferences", "label_changes"
    ),
    description="Judges what a changed constitution, judge or age asks for, nothing else; tells which labels moved.",
    tags={EXCLUSIVE_TAG: "true", "rlaif/pipeline": "relabel"},
)

weekly_relabel = dg.ScheduleDefinition(
    name="weekly_relabel",
    job=relabel,
    cron_schedule="0 3 * * 1",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="For feedback models that may change behind their name; start it under Automation.",
)
