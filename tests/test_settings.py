"""Profiles and overrides: what is refused, with the place and what is wrong there."""

from pathlib import Path

import pytest

from rlaif_assets.settings import Profile, SettingsError, apply_overrides, build_profile, load_profile


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"seed": 3}, "unknown stage 'seed'"),
        ({"ppo_policy": 3}, "stage ppo_policy: expected a mapping of fields, found 3"),
        ({"ppo_policy": ["seed"]}, "stage ppo_policy: expected a mapping of fields"),
        ({3: {}}, "unknown stage '3'"),
        ({"ppo_policy": {3: 1}}, "has no field '3'"),
        ([1], "expected a mapping of stages, found list"),
    ],
)
def test_what_is_no_profile_is_told_where(values: object, told: str) -> None:
    with pytest.raises(SettingsError, match="mine") as caught:
        build_profile(values, "mine")
    assert told in str(caught.value)


def test_an_empty_stage_has_its_defaults() -> None:
    assert build_profile({"ppo_policy": None}, "mine") == Profile()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"ppo_policy: {seed: 1}\nppo_policy: {updates: 3}\n", "a key stands twice here"),
        (b"ppo_policy: {seed: 1, seed: 2}\n", "a key stands twice here"),
        (b"constitution: {path: \xff\xfe}\n", "UTF-8"),
        (b"ppo_policy: {seed: 2024-99-99}\n", "not valid YAML"),
        (b"ppo_policy: [\n", "not valid YAML"),
    ],
)
def test_a_profile_file_that_cannot_be_read_is_told(content: bytes, told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"mine\.yaml") as caught:
        load_profile(str(file))
    assert told in str(caught.value)


def test_an_empty_profile_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("# nothing\n")
    assert load_profile(str(tmp_path / "mine.yaml")) == Profile()


@pytest.mark.parametrize(
    "override",
    [
        "relabel.cron='0 3 * *'",
        "relabel.time_zone=Mars/Olympus",
        "ppo_policy.harmful_share=true",
        "ppo_policy.updates=true",
        "red_team_prompts.limit=true",
        "relabel.overdue_after_days=0",
        "red_team_prompts.limit=0",
        "red_team_prompts.heldout_share=0.51",
        "helpfulness_preferences.heldout_share=0.51",
        "helpfulness_preferences.disagreement=7",
        "revised_responses.max_new_tokens=0",
        "sl_cai_checkpoint.batch_size=-3",
        "sl_cai_checkpoint.epochs=0",
        "sl_cai_checkpoint.learning_rate=.nan",
        "sl_cai_checkpoint.heldout_share=1",
        "response_pairs.temperature=0",
        "harmlessness_preferences.principles_per_pair=0",
        "harmlessness_preferences.drift_sample=1.5",
        "harmlessness_preferences.max_age_days=0",
        "harmlessness_preferences.as_of=soon",
        "label_changes.largest_flips=-1",
        "audits.max_flip_rate=1.5",
        "pmp_checkpoint.max_length=0",
        "reward_model.ai_weight=-1",
        "ppo_policy.rollouts=0",
        "ppo_policy.temperature=0",
        "ppo_policy.learning_rate=-1",
        "ppo_policy.gamma=1.1",
        "ppo_policy.harmful_share=2",
        "policy_evaluation.samples=0",
        "policy_evaluation.temperature=-1",
        "compute.batch_tokens=0",
        "compute.device=gpu",
        "compute.endpoint_key_variable=sk-1",
        "compute.endpoint_concurrency=0",
        "compute.endpoint_timeout=0",
        "compute.endpoint_failures=0",
        "compute.endpoint_max_calls=0",
        "feedback_model.verdicts=guess",
        "feedback_model.top_logprobs=1",
        "feedback_model.votes=0",
        "harmlessness_preferences.cot_clamp=0.6",
        "harmlessness_preferences.cot_max_new_tokens=0",
        "ppo_policy.seed=-1",
        "ppo_policy.seed=4294967296",
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_with_its_field(override: str) -> None:
    with pytest.raises(SettingsError, match=override.partition("=")[0]):
        apply_overrides(Profile(), [override])


def test_a_date_is_a_date_however_it_is_written() -> None:
    written = [f"harmlessness_preferences.as_of={text}" for text in ("2026-01-31", "'2026-01-31'", "20260131")]
    found = {apply_overrides(Profile(), [override]).harmlessness_preferences.as_of for override in written}
    assert found == {"2026-01-31"}


def test_edges_that_can_be_meant_are_taken() -> None:
    edges = ["policy_evaluation.temperature=0", "reward_model.heldout_share=0", "ppo_policy.harmful_share=1"]
    assert apply_overrides(Profile(), edges).policy_evaluation.temperature == 0


def test_a_merge_key_may_be_overridden(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("pmp_checkpoint: &a {epochs: 2, seed: 1}\nreward_model: {<<: *a, epochs: 3}\n")
    profile = load_profile(str(file))
    assert (profile.reward_model.epochs, profile.reward_model.seed, profile.pmp_checkpoint.epochs) == (3, 1, 2)
