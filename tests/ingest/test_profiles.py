import re

import pytest

from rlaif_assets.settings import load_profile


@pytest.mark.parametrize("name", ["smollm2", "qwen2.5"])
def test_a_real_profile_names_a_source_for_every_input(name: str) -> None:
    profile = load_profile(name)
    inputs = (
        profile.red_team_prompts,
        profile.helpful_prompts,
        profile.helpfulness_preferences,
        profile.community_votes,
    )
    assert all(re.fullmatch(r"datasets:[\w.-]+/[\w.-]+(:[\w-]+){0,2}", stage.path) and stage.limit for stage in inputs)
    for model in (profile.base_model, profile.feedback_model):
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.source)
        assert re.fullmatch(r"[0-9a-f]{40}", model.revision or "")
