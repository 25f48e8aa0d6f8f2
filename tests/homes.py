"""Homes of tests: the whole graph at a very small size. What it makes belongs to the tests that look at it."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from rlaif_assets.assets.configuration import CONFIGS, run_config
from rlaif_assets.definitions import defs
from rlaif_assets.settings import Profile, apply_overrides, load_profile
from rlaif_assets.store.warehouse import Warehouse

SMALL = (
    "red_team_prompts.limit=24",
    "helpful_prompts.limit=24",
    "helpfulness_preferences.limit=16",
    "community_votes.limit=24",
    "revised_responses.rounds=1",
    "revised_responses.few_shot=0",
    "revised_responses.max_new_tokens=16",
    "sl_cai_checkpoint.helpful_max_new_tokens=16",
    "sl_cai_checkpoint.epochs=1",
    "sl_cai_checkpoint.heldout_share=0.3",
    "response_pairs.max_new_tokens=16",
    "response_pairs.pairs_per_prompt=1",
    "harmlessness_preferences.few_shot=0",
    "pmp_checkpoint.epochs=1",
    "reward_model.epochs=1",
    "ppo_policy.updates=1",
    "ppo_policy.rollouts=4",
    "ppo_policy.max_new_tokens=6",
    "policy_evaluation.samples=1",
    "policy_evaluation.max_new_tokens=6",
    "policy_evaluation.max_prompts=2",
    "policy_evaluation.bootstrap=10",
    "compute.threads=1",
    "compute.device=cpu",
    "audits.probe_pairs=8",
    "audits.reference_pairs=16",
    "audits.enforce=false",  # a random model fails them
)


class Home:
    """A home, its Dagster instance and its profile. `pristine`: a copy of its folder from before any test."""

    def __init__(self, folder: Path, model: Path, *overrides: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.instance = dg.DagsterInstance.ephemeral()
        models = (f"base_model.source={model}", f"feedback_model.source={model}")
        self.profile = apply_overrides(load_profile("pocket"), [*SMALL, *models, *overrides])
        self.warehouse = Warehouse(folder)
        self.first: dict[str, str] = {}
        self.pristine = folder

    def run(
        self,
        selection: Sequence[str] | None = None,
        *overrides: str,
        tags: dict[str, str] | None = None,
        profile: Profile | None = None,
    ) -> dg.ExecuteInProcessResult:
        settings = apply_overrides(profile or self.profile, list(overrides))
        config: dict[str, Any] = run_config(settings, selection)
        config["resources"]["storage"] = {"config": {"home": str(self.folder)}}
        return defs.resolve_job_def("rlaif_all").execute_in_process(
            run_config=config,
            instance=self.instance,
            asset_selection=[dg.AssetKey(name) for name in selection] if selection else None,
            tags=tags,
            raise_on_error=False,
        )

    def ids(self) -> dict[str, str]:
        return {name: record.snapshot_id for name in CONFIGS if (record := self.warehouse.current(name))}


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    return {
        event.asset_key.to_user_string(): {
            name: value.value for name, value in event.step_materialization_data.materialization.metadata.items()
        }
        for event in result.get_asset_materialization_events()
        if event.asset_key
    }


def failure(result: dg.ExecuteInProcessResult) -> str:
    """What the failed steps say: the description of a Failure, else the error with its causes."""
    failures = [event.step_failure_data for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    return "\n".join(
        str(found.user_failure_data.description) if found.user_failure_data else str(found.error) for found in failures
    )


def start_command(*words: str) -> subprocess.Popen[str]:
    """`rlaif WORDS` in a process of its own; its output and errors come line by line. The caller ends it.

    It hears SIGINT also where these tests do not: a shell starts its background jobs with SIGINT ignored.
    """
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "rlaif_assets.cli", *words],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
