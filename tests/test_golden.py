"""The golden content of every stage: content that changes needs a new code_version, or old snapshots are reused for it.

tests/golden.json holds each asset's content at a very small size, and that of the packaged sources at their full size,
with the code_version it belongs to. Where a stage's results change on purpose, raise its code_version in
`rlaif_assets/assets/`; then, and after raising one for another reason, rewrite the file and commit it:

    REWRITE_GOLDEN=1 .venv/bin/python -m pytest tests/test_golden.py

This refuses content that changed without a new version, unless the profile gives the stage other settings. Where the
tests' model changed, delete the file first.
"""

import copy
import json
import os
from pathlib import Path

import pytest

from rlaif_assets.assets.configuration import CONFIGS
from tests.golden import UNVERSIONED, Summary, problems, summarize
from tests.homes import SMALL, Home, failure

FILE = Path(__file__).with_name("golden.json")
PACKAGED = (
    "critique_constitution",
    "judging_constitution",
    "red_team_prompts",
    "helpful_prompts",
    "helpfulness_preferences",
    "community_votes",
)
Golden = dict[str, Summary]


@pytest.fixture(scope="module")
def inputs(home: Home) -> dict[str, list[str]]:
    return {asset: sorted(home.warehouse.get(home.first[asset]).inputs) for asset in CONFIGS}


@pytest.fixture(scope="module")
def found(home: Home, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """Summaries by asset, inputs first. `packaged` is the content hash of a source without a limit."""
    made = {asset: summarize(home.warehouse, home.warehouse.get(home.first[asset]), model) for asset in CONFIGS}
    whole = Home(tmp_path_factory.mktemp("packaged") / "home", model)
    limits = [text.partition("=")[0] + "=null" for text in SMALL if text.partition(".")[0] in PACKAGED]
    result = whole.run(PACKAGED, *limits)
    assert result.success, failure(result)
    for asset, snapshot in whole.ids().items():
        made[asset]["packaged"] = whole.warehouse.get(snapshot).content_hash
    return made


def test_no_content_changed_without_a_new_code_version(found: Golden, inputs: dict[str, list[str]]) -> None:
    golden: Golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    wrong = problems(golden, found, inputs)
    if os.environ.get("REWRITE_GOLDEN") and wrong and not any(UNVERSIONED in problem for problem in wrong):
        FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        wrong = []
    assert not wrong, "\n".join(["", *wrong, "How to rewrite it: the beginning of tests/test_golden.py."])


def test_every_stage_has_content_to_compare(found: Golden) -> None:
    assert found.keys() == CONFIGS.keys()
    for asset, summary in found.items():
        assert (asset == "human_verdicts") != bool(sum(table["rows"] for table in summary["tables"].values())), asset
        assert ("packaged" in summary) == (asset in PACKAGED)
        moved = [norm for norm, _ in summary.get("weights", {}).values() if norm > 1e-4]
        assert bool(moved) == asset.endswith(("checkpoint", "reward_model", "half_a", "half_b", "ppo_policy")), asset


def test_a_changed_row_number_or_weight_is_told_and_blamed_on_the_first_stage(
    found: Golden, inputs: dict[str, list[str]]
) -> None:
    now = copy.deepcopy(found)
    now["response_pairs"]["tables"]["pairs"]["hash"] = "another"
    now["harmlessness_preferences"]["numbers"]["labels.p_a"][0] += 0.02
    now["pmp_checkpoint"]["weights"]["score.weight"][1] += 0.2
    assert [problem.partition(" (")[0] for problem in problems(found, now, inputs)] == [
        f"response_pairs: {UNVERSIONED} {found['response_pairs']['code_version']}",
        "harmlessness_preferences: its content follows inputs or settings that changed: rewrite the file",
        f"pmp_checkpoint: {UNVERSIONED} {found['pmp_checkpoint']['code_version']}",
    ]


def test_a_raised_version_asks_for_a_new_file(found: Golden, inputs: dict[str, list[str]]) -> None:
    now = copy.deepcopy(found)
    version = found["revised_responses"]["code_version"]
    now["revised_responses"]["code_version"] = version + 1
    assert problems(found, now, inputs) == [
        f"revised_responses: the golden content is of code_version {version}, not {version + 1}: rewrite the file"
    ]
    now["revised_responses"]["tables"]["revisions"]["hash"] = "another"
    assert len(problems(found, now, inputs)) == 1


def test_content_that_follows_settings_needs_no_new_version(found: Golden, inputs: dict[str, list[str]]) -> None:
    now = copy.deepcopy(found)
    now["pmp_checkpoint"]["settings"]["epochs"] = 3.0
    now["pmp_checkpoint"]["weights"]["score.weight"][1] += 0.2
    assert problems(found, now, inputs) == [
        "pmp_checkpoint: its content follows inputs or settings that changed: rewrite the file"
    ]


def test_noise_in_the_last_digits_is_no_change(found: Golden, inputs: dict[str, list[str]]) -> None:
    now = copy.deepcopy(found)
    for summary in now.values():
        for values in [*summary["numbers"].values(), *summary.get("weights", {}).values()]:
            values[:] = [value * 1.001 + 1e-4 for value in values]
    assert problems(found, now, inputs) == []
