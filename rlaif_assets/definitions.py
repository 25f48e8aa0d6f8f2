"""Table of contents: everything that Dagster loads. Nothing is defined here."""

import os
from collections.abc import Mapping
from typing import Any

import dagster as dg

from rlaif_assets import automation, checks
from rlaif_assets.assets import (
    evaluation,
    promotion,
    sources,
    step1_revisions,
    step2_sl_cai,
    step3_preferences,
    step4_reward_model,
    step5_ppo,
)
from rlaif_assets.assets.showing import with_source_links
from rlaif_assets.resources import Compute, Storage, Tracking
from rlaif_assets.settings import SettingsError

STEPS = (
    sources,
    step1_revisions,
    step2_sl_cai,
    step3_preferences,
    step4_reward_model,
    step5_ppo,
    evaluation,
    promotion,
)


def executor(name: str | None) -> dg.ExecutorDefinition:
    """One process by default: imports are paid once and models stay loaded. `multiprocess` isolates every asset."""
    if name == "multiprocess":
        start = {"forkserver": {"preload_modules": ["rlaif_assets.definitions"]}}
        return dg.multiprocess_executor.configured({"max_concurrent": 1, "start_method": start})
    if name in (None, "", "in_process"):
        return dg.in_process_executor
    raise SettingsError(f"RLAIF_EXECUTOR={name}: write in_process or multiprocess")


def build_defs(resources: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Fresh definitions; `resources` replaces the default ones of the same names (storage, compute, tracking)."""
    return dg.Definitions(
        assets=with_source_links(dg.load_assets_from_modules(STEPS)),
        asset_checks=dg.load_asset_checks_from_modules([checks]),
        jobs=[automation.rlaif_all, automation.relabel, automation.retrain],
        schedules=[automation.weekly_relabel],
        sensors=[automation.constitution_changed, automation.labels_flipped],
        resources={"storage": Storage(), "compute": Compute(), "tracking": Tracking(), **(resources or {})},
        executor=executor(os.environ.get("RLAIF_EXECUTOR")),
    )


defs = build_defs()
