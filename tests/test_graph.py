"""The graph as it is promised: assets, what they read, how they are shown; and what an asset body may look like."""

import ast
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from rlaif_assets.assets import recording
from rlaif_assets.assets.configuration import CONFIGS
from rlaif_assets.definitions import defs
from rlaif_assets.feedback.limits import RULES
from rlaif_assets.settings import load_profile

SOURCES = {
    "critique_constitution": {"yaml", "duckdb"},
    "judging_constitution": {"yaml", "duckdb"},
    "red_team_prompts": {"python", "duckdb"},
    "helpful_prompts": {"python", "duckdb"},
    "helpfulness_preferences": {"python", "duckdb"},
    "community_votes": {"python", "duckdb"},
    "human_verdicts": {"python", "duckdb"},
    "base_model": {"huggingface", "mlflow"},
    "feedback_model": {"huggingface", "mlflow"},
}
REWARD_MODEL = (
    "step_4_reward_model",
    {
        "pmp_checkpoint",
        "base_model",
        "harmlessness_preferences",
        "response_pairs",
        "red_team_prompts",
        "helpfulness_preferences",
    },
)
STEPS = {
    "revised_responses": ("step_1_revisions", {"base_model", "critique_constitution", "red_team_prompts"}),
    "sl_cai_checkpoint": (
        "step_2_sl_cai",
        {"revised_responses", "base_model", "red_team_prompts", "helpful_prompts"},
    ),
    "response_pairs": ("step_3_preferences", {"sl_cai_checkpoint", "red_team_prompts"}),
    "harmlessness_preferences": (
        "step_3_preferences",
        {"response_pairs", "red_team_prompts", "judging_constitution", "feedback_model", "human_verdicts"},
    ),
    "label_changes": (
        "step_3_preferences",
        {"harmlessness_preferences", "response_pairs", "red_team_prompts", "judging_constitution"},
    ),
    "pmp_checkpoint": ("step_4_reward_model", {"base_model", "community_votes"}),
    "reward_model": REWARD_MODEL,
    "reward_model_half_a": REWARD_MODEL,
    "reward_model_half_b": REWARD_MODEL,
    "ppo_policy": (
        "step_5_ppo",
        {
            "sl_cai_checkpoint",
            "reward_model",
            "reward_model_half_a",
            "reward_model_half_b",
            "red_team_prompts",
            "helpful_prompts",
            "judging_constitution",
            "feedback_model",
        },
    ),
    "policy_evaluation": (
        "step_6_evaluation",
        {
            "base_model",
            "sl_cai_checkpoint",
            "ppo_policy",
            "red_team_prompts",
            "helpful_prompts",
            "feedback_model",
            "judging_constitution",
            "response_pairs",
            "harmlessness_preferences",
        },
    ),
    "champion_policy": (
        "step_7_promotion",
        {
            "ppo_policy",
            "policy_evaluation",
            "red_team_prompts",
            "feedback_model",
            "judging_constitution",
            "harmlessness_preferences",
        },
    ),
}
ASSETS = Path(recording.__file__).parent
STEP_FILES = sorted(
    [
        *ASSETS.glob("step*.py"),
        *(ASSETS / f"{name}.py" for name in ("sources", "evaluation", "promotion")),
    ]
)


def spec(name: str) -> dg.AssetSpec:
    return next(spec for spec in defs.resolve_all_asset_specs() if spec.key == dg.AssetKey(name))


def test_the_assets_are_those_of_the_plan_and_each_has_a_config() -> None:
    names = {spec.key.to_user_string() for spec in defs.resolve_all_asset_specs()}
    assert names == SOURCES.keys() | STEPS.keys() == CONFIGS.keys()


@pytest.mark.parametrize("name", SOURCES)
def test_sources_read_no_asset(name: str) -> None:
    assert (spec(name).group_name, list(spec(name).deps), spec(name).kinds) == ("step_0_sources", [], SOURCES[name])


@pytest.mark.parametrize("name", STEPS)
def test_steps_read_what_they_are_made_of(name: str) -> None:
    found = {dep.asset_key.to_user_string() for dep in spec(name).deps}
    assert (spec(name).group_name, found) == STEPS[name]


def test_the_picture_in_the_readme_is_the_graph() -> None:
    lines = [line.split() for line in (ASSETS.parents[1] / "README.md").read_text().splitlines()]
    drawn = sorted((line[0], line[2]) for line in lines if len(line) == 3 and line[1] == "-->")
    assert drawn == sorted((dep, name) for name, (_, deps) in STEPS.items() for dep in deps)


@pytest.mark.parametrize("name", [*SOURCES, *STEPS])
def test_every_asset_says_whose_it_is_what_it_is_and_its_version(name: str) -> None:
    found = spec(name)
    assert found.owners == ["team:alignment"]
    assert found.description
    assert found.kinds
    assert found.code_version is not None and int(found.code_version) >= 1


def test_assets_that_need_the_accelerator_share_its_pool_and_sources_do_not() -> None:
    pools = {
        asset.key.to_user_string(): asset.op.pool
        for asset in defs.assets or ()
        if isinstance(asset, dg.AssetsDefinition)
    }
    assert {name for name, pool in pools.items() if pool == "gpu"} == STEPS.keys() - {"label_changes"}


def test_tables_show_their_columns() -> None:
    schema = spec("harmlessness_preferences").metadata["dagster/column_schema"]
    names = [column.name for column in schema.columns]
    assert names[:4] == ["label_id", "pair_id", "principle_id", "p_a"]


def test_the_gate_blocks_and_the_schedule_sleeps() -> None:
    checks = {spec.name: spec for check in defs.asset_checks or () for spec in check.check_specs}
    assert checks.keys() == RULES.keys() | {"agrees_with_labels", "promoted"}
    warn = {"other_principle", "length_correlation", "judge_in_ancestry", "agrees_with_labels", "promoted"}
    warn |= {"calibration", "calibration_verdicts"}
    assert {name for name, check in checks.items() if not check.blocking} == warn
    assert {checks[name].asset_key for name in RULES} == {dg.AssetKey("harmlessness_preferences")}
    assert all(check.description for check in checks.values())
    schedule = defs.resolve_schedule_def("weekly_relabel")
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    assert schedule.job_name == "relabel"
    assert defs.resolve_job_def("rlaif_all").tags["rlaif/exclusive"] == "true"


def test_the_sensors_start_the_jobs_that_they_are_named_for() -> None:
    jobs = {sensor.name: sensor.job_name for sensor in defs.sensors or ()}
    assert jobs == {"constitution_changed": "relabel", "labels_flipped": "retrain"}


def test_an_old_preference_set_is_overdue_and_nothing_else_is() -> None:
    policies = {spec.key.to_user_string(): spec.freshness_policy for spec in defs.resolve_all_asset_specs()}
    window = timedelta(days=load_profile().relabel.overdue_after_days)
    assert policies.pop("harmlessness_preferences") == dg.FreshnessPolicy.time_window(fail_window=window)
    assert set(policies.values()) == {None}


@pytest.mark.parametrize("path", STEP_FILES, ids=lambda path: path.stem)
def test_asset_bodies_are_short_and_loop_over_nothing(path: Path) -> None:
    tree = ast.parse(path.read_text())
    bodies = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and any("asset" in ast.unparse(d) for d in node.decorator_list)
    ]
    assert bodies
    for node in bodies:
        assert node.end_lineno is not None
        assert node.end_lineno - node.body[0].lineno < 30, node.name
        assert not [part for part in ast.walk(node) if isinstance(part, ast.For | ast.While)], node.name
