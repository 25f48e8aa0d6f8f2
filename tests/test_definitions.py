"""Loading the definitions: light, valid, configured by the profile."""

import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from rlaif_assets.assets.auditing import audited_identity
from rlaif_assets.assets.configuration import (
    CONFIGS,
    HarmlessnessPreferencesConfig,
    RevisedResponsesConfig,
    RewardModelConfig,
    run_config,
    without_limits,
)
from rlaif_assets.definitions import build_defs, defs, executor
from rlaif_assets.resources import Compute, Storage
from rlaif_assets.settings import (
    AuditsSettings,
    HarmlessnessPreferencesSettings,
    RevisedResponsesSettings,
    SettingsError,
    apply_overrides,
    load_profile,
)

HEAVY = (
    "torch", "transformers", "trl", "datasets", "mlflow", "duckdb", "pyarrow", "matplotlib", "scipy", "openai",
)  # fmt: skip
LOAD = """
import json, sys, time
import dagster
started = time.process_time()
import rlaif_assets.definitions
print(json.dumps({"seconds": time.process_time() - started, "modules": sorted(sys.modules)}))
"""
EFFECTIVE = """
import json
from rlaif_assets.assets.configuration import CONFIGS
print(json.dumps({name: config().model_dump() for name, (_, config) in CONFIGS.items()}))
"""


def python(code: str, **environment: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_loading_imports_nothing_heavy_and_takes_at_most_300_ms_of_the_processor() -> None:
    loads = [python(LOAD) for _ in range(3)]
    assert not set(HEAVY) & set(loads[0]["modules"])
    assert min(load["seconds"] for load in loads) <= 0.3


def test_the_definitions_are_loadable_and_fresh_each_time() -> None:
    dg.Definitions.validate_loadable(defs)
    assert build_defs() is not build_defs()
    other = Storage(home="elsewhere")
    assert (build_defs({"storage": other}).resources or {})["storage"] is other


@pytest.mark.parametrize("name", CONFIGS)
def test_the_launchpad_shows_the_profiles_values(name: str) -> None:
    profile = load_profile()
    stage, config = CONFIGS[name]
    fields: dict[str, dg.Field] = config.to_config_schema().as_field().config_type.fields  # type: ignore[attr-defined]
    shown = {key: field.default_value for key, field in fields.items()}
    wanted = getattr(profile, stage).model_dump()
    assert {key: shown[key] for key in wanted if wanted[key] is not None} == {
        key: value for key, value in wanted.items() if value is not None
    }


def test_another_profile_gives_other_defaults() -> None:
    found = python(EFFECTIVE, RLAIF_PROFILE="smollm2")
    profile = load_profile("smollm2")
    assert found["base_model"] == profile.base_model.model_dump()
    assert found["base_model"]["source"] != "pocket"


def test_a_config_is_its_stages_settings_and_leaves_their_defaults_alone() -> None:
    config = RevisedResponsesConfig()
    assert isinstance(config, RevisedResponsesSettings)
    assert config.model_dump() == load_profile().revised_responses.model_dump()
    assert RevisedResponsesSettings().rounds == 4


def test_run_config_carries_overrides_and_the_audits() -> None:
    profile = apply_overrides(
        load_profile(), ["audits.enforce=false", "audits.min_pairs=7", "constitution.path=mine.yaml"], seed=5
    )
    config = run_config(profile)
    assert config["ops"]["critique_constitution"] == config["ops"]["judging_constitution"]
    assert config["ops"]["critique_constitution"]["config"]["path"] == "mine.yaml"
    assert config["ops"]["harmlessness_preferences"]["config"]["audits_min_pairs"] == 7
    audits = {f"audits_{name}": value for name, value in profile.audits.model_dump().items()}
    checked = config["ops"]["harmlessness_preferences_audits"]["config"]
    measured = {"audits_probe_pairs", "audits_reference", "audits_reference_pairs"}
    assert checked == {name: value for name, value in audits.items() if name not in measured}
    assert checked.items() <= config["ops"]["reward_model"]["config"].items()
    labelled = config["ops"]["harmlessness_preferences"]["config"]
    assert labelled.items() >= {n: v for n, v in audits.items() if n != "audits_enforce"}.items()
    assert config["ops"]["reward_model"]["config"]["audits_enforce"] is False
    assert config["ops"]["ppo_policy"]["config"]["seed"] == 5
    assert dg.validate_run_config(defs.resolve_job_def("rlaif_all"), config)


def test_run_config_of_a_selection_holds_nothing_else() -> None:
    profile = load_profile()
    assert run_config(profile, ["ppo_policy"])["ops"].keys() == {"ppo_policy"}
    both = {"harmlessness_preferences", "harmlessness_preferences_audits"}
    assert run_config(profile, ["harmlessness_preferences"])["ops"].keys() == both
    with pytest.raises(SettingsError, match=r"ppo_polic.*ppo_policy"):
        run_config(profile, ["ppo_polic"])


def test_audit_limits_reach_the_audits() -> None:
    config = HarmlessnessPreferencesConfig(audits_min_pairs=3, audits_min_mass=0.25, audits_max_flip_rate=0.75)
    changed = {"min_pairs": 3, "min_mass": 0.25, "max_flip_rate": 0.75}
    assert config.audits() == load_profile().audits.model_copy(update=changed)
    assert {f"audits_{name}" for name in AuditsSettings.model_fields} == (
        HarmlessnessPreferencesConfig.model_fields.keys() | {"audits_enforce"}
    ) - HarmlessnessPreferencesSettings.model_fields.keys()


def test_limits_are_in_no_key_and_what_is_measured_is() -> None:
    base = without_limits(HarmlessnessPreferencesConfig())
    assert without_limits(HarmlessnessPreferencesConfig(audits_max_ece=0.7, audits_max_failed=0.7)) == base
    assert without_limits(HarmlessnessPreferencesConfig(audits_probe_pairs=7)) != base


def test_a_file_of_peoples_labels_counts_by_its_content(tmp_path: Path) -> None:
    here, there = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path in (here, there):
        path.write_text("{}")

    def identity() -> dict:
        return audited_identity(HarmlessnessPreferencesConfig(audits_reference=str(here)))

    first = identity()
    assert first == audited_identity(HarmlessnessPreferencesConfig(audits_reference=str(there)))
    here.write_text("[]")
    assert identity() != first


def test_enforcing_is_not_part_of_the_labels() -> None:
    assert "audits_enforce" not in HarmlessnessPreferencesConfig.model_fields
    assert "audits_enforce" in RewardModelConfig.model_fields


def test_the_executor_is_one_process_unless_asked_for_more() -> None:
    assert executor(None) is dg.in_process_executor
    assert executor("multiprocess").name == "multiprocess"
    with pytest.raises(ValueError, match="in_process or multiprocess"):
        executor("kubernetes")


def test_resources_hand_out_plain_settings() -> None:
    assert Compute().settings() == load_profile().compute


def test_the_home_is_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    assert Storage().folder().is_absolute() and Storage().folder().name == "dagster_home"
    monkeypatch.setenv("DAGSTER_HOME", "some/where")
    assert Storage().folder().is_absolute() and Storage().folder().parts[-2:] == ("some", "where")
    assert Storage(home="/given").folder().as_posix() == "/given"
