"""What each asset can be told: one Dagster config per asset, made of its stage's settings; and a profile's run config.

Defaults are the active profile's, so that the Launchpad shows effective values and a run without config uses them. What
the settings mean, and their limits, belong to `settings`.
"""

from collections.abc import Callable, Collection
from typing import Any, TypeVar

import dagster as dg
from pydantic import BaseModel

from rlaif_assets.resources import PROFILE, with_defaults
from rlaif_assets.settings import (
    AuditsSettings,
    BaseModelSettings,
    ChampionPolicySettings,
    CommunityVotesSettings,
    ConstitutionSettings,
    FeedbackModelSettings,
    HarmlessnessPreferencesSettings,
    HelpfulnessPreferencesSettings,
    HelpfulPromptsSettings,
    HumanVerdictsSettings,
    LabelChangesSettings,
    PmpCheckpointSettings,
    PolicyEvaluationSettings,
    PpoPolicySettings,
    Profile,
    RedTeamPromptsSettings,
    ResponsePairsSettings,
    RevisedResponsesSettings,
    RewardModelSettings,
    SettingsError,
    SlCaiCheckpointSettings,
    nearest,
)

AUDITS_CHECK = "harmlessness_preferences_audits"

ModelClass = TypeVar("ModelClass", bound=type[BaseModel])


def from_profile(stage: str) -> Callable[[ModelClass], ModelClass]:
    """Class decorator: gives each field the active profile's value as its default."""
    return with_defaults(stage_values(PROFILE, stage))


def stage_values(profile: Profile, stage: str) -> dict[str, Any]:
    """The stage's settings, and those of the audits as `audits_X` for the configs that have such fields."""
    audits = {f"audits_{name}": value for name, value in profile.audits.model_dump().items()}
    return audits | getattr(profile, stage).model_dump()


@from_profile("constitution")
class ConstitutionConfig(ConstitutionSettings, dg.Config):
    pass


@from_profile("red_team_prompts")
class RedTeamPromptsConfig(RedTeamPromptsSettings, dg.Config):
    pass


@from_profile("helpful_prompts")
class HelpfulPromptsConfig(HelpfulPromptsSettings, dg.Config):
    pass


@from_profile("helpfulness_preferences")
class HelpfulnessPreferencesConfig(HelpfulnessPreferencesSettings, dg.Config):
    pass


@from_profile("community_votes")
class CommunityVotesConfig(CommunityVotesSettings, dg.Config):
    pass


@from_profile("human_verdicts")
class HumanVerdictsConfig(HumanVerdictsSettings, dg.Config):
    pass


@from_profile("base_model")
class BaseModelConfig(BaseModelSettings, dg.Config):
    pass


@from_profile("feedback_model")
class FeedbackModelConfig(FeedbackModelSettings, dg.Config):
    pass


@from_profile("revised_responses")
class RevisedResponsesConfig(RevisedResponsesSettings, dg.Config):
    pass


@from_profile("sl_cai_checkpoint")
class SlCaiCheckpointConfig(SlCaiCheckpointSettings, dg.Config):
    pass


@from_profile("response_pairs")
class ResponsePairsConfig(ResponsePairsSettings, dg.Config):
    pass


class AuditLimits(dg.Config):
    """The limits of the audits decide what passes, and neither labels nor weights: they are in no key."""

    audits_min_pairs: int = 0
    audits_min_mass: float = 0.0
    audits_max_flip_rate: float = 0.0
    audits_max_unswapped: float = 0.0
    audits_min_turned: float = 0.0
    audits_min_principle_shift: float = 0.0
    audits_min_reference: int = 0
    audits_min_margin: float = 0.0
    audits_max_ece: float = 0.0
    audits_max_length_correlation: float = 0.0
    audits_warn_undecided: float = 0.0
    audits_max_undecided: float = 0.0
    audits_warn_rejected: float = 0.0
    audits_max_rejected: float = 0.0
    audits_warn_failed: float = 0.0
    audits_max_failed: float = 0.0
    audits_accept_shared_ancestry: bool = False

    def audits(self) -> AuditsSettings:
        """The profile's settings with what this config has of them."""
        own = self.model_dump()
        return AuditsSettings(
            **{name: own[f"audits_{name}"] for name in AuditsSettings.model_fields if f"audits_{name}" in own}
        )


def without_limits(config: AuditLimits) -> dict[str, Any]:
    """What decides the result of a stage that has limits among its settings."""
    return config.model_dump(exclude=set(AuditLimits.model_fields))


@from_profile("harmlessness_preferences")
class HarmlessnessPreferencesConfig(HarmlessnessPreferencesSettings, AuditLimits):
    """The verdicts stored beside the labels are under these limits; gates apply their own to what was measured. What is
    measured is part of the set."""

    audits_probe_pairs: int = 0
    audits_reference: str | None = None
    audits_reference_pairs: int = 1


@from_profile("label_changes")
class LabelChangesConfig(LabelChangesSettings, dg.Config):
    pass


@from_profile("audits")
class AuditsCheckConfig(AuditLimits):
    audits_enforce: bool = True


@from_profile("pmp_checkpoint")
class PmpCheckpointConfig(PmpCheckpointSettings, dg.Config):
    pass


@from_profile("reward_model")
class RewardModelConfig(RewardModelSettings, AuditLimits):
    audits_enforce: bool = True


@from_profile("ppo_policy")
class PpoPolicyConfig(PpoPolicySettings, dg.Config):
    pass


@from_profile("policy_evaluation")
class PolicyEvaluationConfig(PolicyEvaluationSettings, dg.Config):
    pass


@from_profile("champion_policy")
class ChampionPolicyConfig(ChampionPolicySettings, dg.Config):
    pass


CONFIGS: dict[str, tuple[str, type[dg.Config]]] = {
    "critique_constitution": ("constitution", ConstitutionConfig),
    "judging_constitution": ("constitution", ConstitutionConfig),
    "red_team_prompts": ("red_team_prompts", RedTeamPromptsConfig),
    "helpful_prompts": ("helpful_prompts", HelpfulPromptsConfig),
    "helpfulness_preferences": ("helpfulness_preferences", HelpfulnessPreferencesConfig),
    "community_votes": ("community_votes", CommunityVotesConfig),
    "human_verdicts": ("human_verdicts", HumanVerdictsConfig),
    "base_model": ("base_model", BaseModelConfig),
    "feedback_model": ("feedback_model", FeedbackModelConfig),
    "revised_responses": ("revised_responses", RevisedResponsesConfig),
    "sl_cai_checkpoint": ("sl_cai_checkpoint", SlCaiCheckpointConfig),
    "response_pairs": ("response_pairs", ResponsePairsConfig),
    "harmlessness_preferences": ("harmlessness_preferences", HarmlessnessPreferencesConfig),
    "label_changes": ("label_changes", LabelChangesConfig),
    "pmp_checkpoint": ("pmp_checkpoint", PmpCheckpointConfig),
    "reward_model": ("reward_model", RewardModelConfig),
    "reward_model_half_a": ("reward_model", RewardModelConfig),
    "reward_model_half_b": ("reward_model", RewardModelConfig),
    "ppo_policy": ("ppo_policy", PpoPolicyConfig),
    "policy_evaluation": ("policy_evaluation", PolicyEvaluationConfig),
    "champion_policy": ("champion_policy", ChampionPolicyConfig),
}


def config_values(profile: Profile, stage: str, config: type[dg.Config]) -> dict[str, Any]:
    return {name: value for name, value in stage_values(profile, stage).items() if name in config.model_fields}


def run_config(profile: Profile, selection: Collection[str] | None = None) -> dict[str, Any]:
    """The run config that gives the selected assets (None: all) and the resources exactly the profile's settings.

    `harmlessness_preferences` brings its audits check along. Raises SettingsError for an unknown asset.
    """
    for name in selection or ():
        if name not in CONFIGS:
            raise SettingsError(f"unknown asset {name!r}: {nearest(name, list(CONFIGS))}")
    ops = {
        name: {"config": config_values(profile, stage, config)}
        for name, (stage, config) in CONFIGS.items()
        if selection is None or name in selection
    }
    if "harmlessness_preferences" in ops:
        ops[AUDITS_CHECK] = {"config": config_values(profile, "audits", AuditsCheckConfig)}
    resources = {
        "compute": {"config": profile.compute.model_dump()},
        "tracking": {"config": profile.tracking.model_dump()},
    }
    return {"ops": ops, "resources": resources}
