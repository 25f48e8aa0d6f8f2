"""Every setting of every stage, and the profiles that hold them.

One frozen pydantic class per stage. The fields of a stage class decide its result and are part of its key; where and
how fast it runs (`ComputeSettings`), and where things are recorded (`TrackingSettings`), are not. Stage classes stay
flat: Dagster's Launchpad shows them field by field. Secrets are never settings; they come from the environment.
"""

import difflib
import os
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

MAX_SEED = 2**32 - 1  # what numpy takes
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class SettingsError(ValueError):
    """An unknown profile, stage or field, or a value that does not fit. The message names the nearest valid names."""


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`true` is no number, although Python counts it as 1."""
        assert info.field_name is not None
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("true and false are no value of this field")
        return value


class ConstitutionSettings(Settings):
    path: str = Field(
        default="default", description="'default' (the packaged constitution), or a YAML/JSON file or folder"
    )


class RedTeamPromptsSettings(Settings):
    path: str = Field(
        default="pocket", description="'pocket', a JSONL/JSONL.gz/CSV file, or 'datasets:ID[@COMMIT][:CONFIG[:SPLIT]]'"
    )
    limit: int | None = Field(default=None, ge=1, description="read at most so many rows")
    max_characters: int = Field(
        default=2000, ge=1, description="longer prompts are rejected; longer histories lose their first turns"
    )
    heldout_share: float = Field(
        default=0.2, ge=0, le=0.5, description="share of a file's prompts that goes to dev, and again to test"
    )
    seed: Seed = 0


class HelpfulPromptsSettings(RedTeamPromptsSettings):
    pass


class HelpfulnessPreferencesSettings(Settings):
    path: str = Field(
        default="pocket", description="'pocket' (simulated annotators), or chosen/rejected JSONL, or 'datasets:ID'"
    )
    limit: int | None = Field(default=None, ge=1)
    disagreement: float = Field(
        default=0.25, ge=0, le=1, description="pocket only: how often a simulated annotator contradicts gold"
    )
    max_characters: int = Field(default=4000, ge=1)
    heldout_share: float = Field(
        default=0.2,
        ge=0,
        le=0.5,
        description="as in helpful_prompts, with its seed: what is held out there is held out here",
    )
    seed: Seed = 0


class CommunityVotesSettings(Settings):
    path: str = Field(default="pocket", description="'pocket', a Stack Exchange Posts.xml, or 'datasets:ID'")
    limit: int | None = Field(default=None, ge=1)
    max_characters: int = Field(default=4000, ge=1)
    seed: Seed = 0


class HumanVerdictsSettings(Settings):
    path: str | None = Field(default=None, description="JSONL of people's verdicts on response pairs; null is none")


class BaseModelSettings(Settings):
    source: str = Field(default="pocket", description="'pocket', a local folder, or a hub id")
    revision: str | None = Field(default=None, description="hub id only: the commit, 40 hex digits")


class FeedbackModelSettings(BaseModelSettings):
    """`source` may be an endpoint's base URL as well; all fields but `source` and `revision` are for endpoints only."""

    model: str | None = Field(default=None, description="endpoint only: the name it serves the model under")
    verdicts: Literal["auto", "logprobs", "votes"] = Field(
        default="auto", description="endpoint only: how probabilities are read; auto takes log-probabilities if given"
    )
    top_logprobs: int = Field(default=20, ge=2, le=20, description="endpoint only: alternatives asked for per token")
    votes: int = Field(default=8, ge=1, description="endpoint only: sampled verdicts per question without logprobs")
    verdict_request: str = Field(
        default="Reply with (A) or (B) and nothing else.",
        description="endpoint only: the last line of a question; empty for a model that knows the form",
    )


class RevisedResponsesSettings(Settings):
    rounds: int = Field(default=4, ge=1, description="critique-revision rounds in one chain (Constitutional AI, 3.1)")
    critique: bool = Field(
        default=True, description="critique before each revision; false revises directly (Constitutional AI, 3.5)"
    )
    few_shot: int = Field(default=2, ge=0, description="worked examples before each critique and revision")
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=256, ge=1)
    seed: Seed = 0


class SlCaiCheckpointSettings(Settings):
    revisions: Literal["final", "all"] = Field(
        default="all", description="train on the last revision or on every round's"
    )
    rounds: int | None = Field(
        default=None, ge=1, description="SL-CAI-n: of the first n rounds of revisions; null is all"
    )
    helpful_ratio: float = Field(default=1.0, ge=0, description="helpful answers per revision row")
    helpful_max_new_tokens: int = Field(default=256, ge=1)
    helpful_temperature: float = Field(default=1.0, gt=0)
    epochs: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=1e-5, ge=0)
    batch_size: int = Field(default=16, ge=1)
    max_length: int = Field(default=1024, ge=1)
    heldout_share: float = Field(default=0.1, ge=0, lt=1)
    packing: bool = Field(
        default=False, description="rows packed to max_length; batch_size and compute.batch_tokens are of packs then"
    )
    lora_rank: int = Field(default=0, ge=0, description="rank of adapters on all linear layers; 0 trains all weights")
    heldout_steps: int | None = Field(
        default=None, ge=1, description="measure the held-out loss after so many steps each, and keep the best weights"
    )
    patience: int = Field(default=2, ge=1, description="measurements without a lower held-out loss that end training")
    seed: Seed = 0


class ResponsePairsSettings(Settings):
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=256, ge=1)
    pairs_per_prompt: int = Field(default=1, ge=1)
    seed: Seed = 0


class HarmlessnessPreferencesSettings(Settings):
    few_shot: int = Field(default=2, ge=0)
    principle_position: Literal["before", "after"] = Field(
        default="before", description="principle before or after the options"
    )
    principles_per_pair: int = Field(default=1, ge=1, description="drawn by hash and averaged, at most all there are")
    orders: Literal["both", "single"] = Field(
        default="both", description="put each question in both orders, or in one that is drawn"
    )
    average: Literal["probability", "log_odds"] = Field(
        default="probability", description="a label's p_a from the mean of its judgements' probabilities or log-odds"
    )
    max_age_days: int | None = Field(default=None, ge=1, description="judge again what was judged longer before as_of")
    drift_sample: float = Field(
        default=0.0, ge=0, le=1, description="share of the pairs to judge again though nothing changed; 1 is all"
    )
    as_of: str | None = Field(
        default=None, description="date (UTC) that max_age_days and drift_sample decide from; null is today"
    )
    chain_of_thought: bool = Field(default=False, description="the judge reasons first, then chooses")
    cot_max_new_tokens: int = Field(default=256, ge=1)
    cot_temperature: float = Field(default=1.0, ge=0, description="0 takes the likeliest token")
    cot_clamp: float = Field(
        default=0.4, ge=0, le=0.5, description="after reasoning p is clamped to [this, 1 - this]; 0 leaves it"
    )
    seed: Seed = 0

    @field_validator("as_of", mode="before")
    @classmethod
    def _is_a_date(cls, value: Any) -> Any:
        return date.fromisoformat(str(value)).isoformat() if value is not None else None


class LabelChangesSettings(Settings):
    largest_flips: int = Field(default=10, ge=0, description="flipped labels to show side by side, old and new")


class AuditsSettings(Settings):
    """What stops or warns about a preference set. The first three decide what is measured, the others what passes."""

    probe_pairs: int = Field(default=64, ge=0, description="pairs that are judged again, swapped and by a counter")
    reference: str | None = Field(
        default=None, description="pairs labelled by people: 'pocket', chosen/rejected or input/output_1/output_2 rows"
    )
    reference_pairs: int = Field(default=400, ge=1, description="judge at most so many of them, drawn by hash")
    enforce: bool = Field(default=True, description="refuse to train on a preference set whose audits failed")
    min_pairs: int = Field(default=20, ge=0)
    min_mass: float = Field(
        default=0.5, ge=0, le=1, description="mean probability that the judge puts on the two letters"
    )
    max_flip_rate: float = Field(default=0.4, ge=0, le=1, description="upper end of the 95% interval; chance 0.5")
    max_unswapped: float = Field(
        default=0.1, ge=0, le=1, description="share of labels that stay when the two texts are exchanged"
    )
    min_turned: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="share of sure labels that turn under the counter-principle, lower end of the 95% interval; chance "
        "0.5",
    )
    min_principle_shift: float = Field(
        default=0.01, ge=0, le=1, description="mean |change of p_a| under another principle, where none has a counter"
    )
    min_reference: int = Field(default=200, ge=1, description="labelled pairs from which agreement blocks")
    min_margin: float = Field(
        default=0.0,
        ge=-1,
        le=1,
        description="agreement with people less that of the better length rule, lower end of the 95% interval",
    )
    max_ece: float = Field(default=0.15, ge=0, le=1, description="expected calibration error; warns")
    max_length_correlation: float = Field(default=0.3, ge=0, le=1, description="|rank correlation|; warns")
    warn_undecided: float = Field(default=0.5, ge=0, le=1, description="share of labels within 0.45-0.55")
    max_undecided: float = Field(default=0.9, ge=0, le=1, description="blocks above")
    warn_rejected: float = Field(default=0.25, ge=0, le=1, description="share of drawn pairs that were refused")
    max_rejected: float = Field(default=0.9, ge=0, le=1, description="blocks above")
    warn_failed: float = Field(default=0.01, ge=0, le=1, description="share of pairs that the judge gave no label")
    max_failed: float = Field(default=0.2, ge=0, le=1, description="blocks above")
    accept_shared_ancestry: bool = Field(
        default=False, description="the judge may be a model that the policy was made from"
    )


class RelabelSettings(Settings):
    """When a preference set is made anew by itself. None of it decides what the labels are."""

    cron: str = Field(
        default="0 3 * * 1", pattern=r"^\S+( +\S+){4}$", description="weekly_relabel: minute hour day month weekday"
    )
    time_zone: str = Field(default="UTC", description="of the cron: a name as Europe/Berlin")
    overdue_after_days: float = Field(
        default=8.0, ge=0.001, description="an older preference set is shown as overdue in the UI"
    )
    retrain_flipped_share: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="labels_flipped asks for training above this share of labels",
    )

    @field_validator("time_zone")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError("not a time zone that this machine knows: write a name as UTC or Europe/Berlin") from error
        return name


class PmpCheckpointSettings(Settings):
    epochs: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=1e-5, ge=0)
    batch_size: int = Field(default=16, ge=1, description="pairs per optimiser step")
    max_length: int = Field(default=1024, ge=1)
    heldout_share: float = Field(default=0.1, ge=0, lt=1)
    seed: Seed = 0


class RewardModelSettings(Settings):
    epochs: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=1e-5, ge=0)
    batch_size: int = Field(default=16, ge=1, description="pairs per optimiser step")
    max_length: int = Field(default=1024, ge=1)
    heldout_share: float = Field(default=0.1, ge=0, lt=1)
    ai_weight: float = Field(default=1.0, ge=0)
    human_weight: float = Field(default=1.0, ge=0)
    center_coefficient: float = Field(default=0.0, ge=0)
    pretrain: bool = Field(
        default=True, description="start from pmp_checkpoint; false starts from base_model (ablation)"
    )
    labels: Literal["soft", "hard"] = Field(
        default="soft", description="AI labels trained on as they are, or rounded to 0 or 1 (ablation)"
    )
    seed: Seed = 0


class PpoPolicySettings(Settings):
    updates: int = Field(default=100, ge=1)
    rollouts: int = Field(default=64, ge=1, description="answers per update")
    epochs: int = Field(default=4, ge=1, description="passes over each batch of rollouts")
    minibatches: int = Field(default=1, ge=1)
    max_new_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=1e-6, ge=0)
    value_learning_rate: float = Field(default=1e-5, ge=0)
    kl_coefficient: float = Field(default=0.05, ge=0, description="score paid per nat of KL to SL-CAI")
    kl_estimator: Literal["k1", "k3"] = Field(default="k1", description="of the KL that is paid, per token")
    kl_target: float | None = Field(
        default=None, gt=0, description="nats per answer that the coefficient is steered to; null keeps it fixed"
    )
    kl_horizon: int = Field(default=10_000, ge=1, description="answers over which the coefficient is steered")
    clip_range: float = Field(default=0.2, gt=0)
    value_clip_range: float = Field(default=0.2, gt=0)
    gamma: float = Field(default=1.0, ge=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    missing_eos_penalty: float = Field(
        default=-1.0, description="an answer without EOS earns its normalised score, but at most this"
    )
    score_clip: float = Field(default=5.0, gt=0)
    length_penalty: float = Field(default=0.0, ge=0, description="normalised score paid per token of an answer")
    harmful_share: float = Field(
        default=0.5, ge=0, le=1, description="share of rollout prompts drawn from red_team_prompts"
    )
    max_prompt_tokens: int = Field(default=1024, ge=1)
    reward: str = Field(
        default="reward_model",
        description="reward_model, reward_model_half_a/b, judge (direct RLAIF), PACKAGE.MODULE:NAME or FILE.py:NAME",
    )
    guards: Literal["stop", "warn", "off"] = Field(
        default="stop", description="what a guard that fires does; stop keeps the best policy so far"
    )
    guard_window: int = Field(default=8, ge=1, description="updates that a guard averages over")
    guard_kl: float | None = Field(default=50.0, gt=0, description="nats per answer; null turns this guard off")
    guard_heldout: float | None = Field(
        default=0.3, ge=0, description="fall of the held-out score from its best window, while the trained one rose"
    )
    guard_boilerplate: float | None = Field(
        default=0.5, ge=0, description="gain in the share of prompts whose answers hold the same six words"
    )
    guard_collapse: float | None = Field(default=1.0, ge=0, description="fall of the normalised score from its best")
    lora_rank: int = Field(default=0, ge=0, description="rank of adapters on all linear layers; 0 trains all weights")
    seed: Seed = 0


class PolicyEvaluationSettings(Settings):
    samples: int = Field(default=4, ge=1, description="answers per prompt and policy")
    temperature: float = Field(default=1.0, ge=0, description="0 takes the likeliest token")
    max_new_tokens: int = Field(default=256, ge=1)
    max_prompts: int | None = Field(default=None, ge=1, description="prompts per split and kind, at most")
    label_pairs_per_prompt: int = Field(
        default=4, ge=1, description="new pairs per held-out prompt, to measure labels on"
    )
    bootstrap: int = Field(default=1000, ge=1)
    seed: Seed = 0


class ChampionPolicySettings(Settings):
    """Ends of 95% intervals count, so a margin must leave room for what few prompts cannot tell."""

    split: Literal["dev", "test"] = Field(default="dev", description="held-out prompts to decide on")
    min_intents: int = Field(default=20, ge=1, description="intents that a rule is measured on, at least")
    helpful_margin: float = Field(default=0.1, ge=0, description="helpful rate that may be lost")
    lookalike_margin: float = Field(default=0.1, ge=0, description="refusals of look-alikes that may be added")
    max_kl: float = Field(default=50.0, gt=0, description="nats per answer to SL-CAI")
    max_length_ratio: float = Field(default=1.5, ge=1, description="longer or shorter answers than the champion's")
    unmeasured: Literal["refuse", "accept"] = Field(
        default="refuse", description="what a rule does that cannot be measured, as without a gold annotator"
    )
    bootstrap: int = Field(default=1000, ge=1)
    seed: Seed = 0


class ComputeSettings(Settings):
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu or cuda:i")
    threads: int = Field(default=0, ge=0, description="CPU threads, of each process; 0 leaves torch's default")
    processes: int = Field(default=1, ge=1, description="PPO: processes that share the answers, on GPUs one each")
    memory_share: float = Field(default=1.0, gt=0, le=1, description="of a GPU's memory, that this process may take")
    batch_tokens: int = Field(default=8192, ge=1, description="padded tokens per forward pass")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the passes of all trainings; weights and optimiser stay float32"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="SL-CAI and PPO: less memory, a second forward pass"
    )
    checkpoint_seconds: float = Field(default=60.0, ge=0, description="PPO: work that a kill may cost, at most")
    progress: Literal["log", "bar", "none"] = "log"
    endpoint_key_variable: str = Field(
        default="OPENAI_API_KEY",
        pattern=r"^[A-Za-z_]\w*$",
        description="name of the environment variable that holds the endpoint's key (never the key)",
    )
    endpoint_concurrency: int = Field(default=8, ge=1, le=1000, description="questions asked at once")
    endpoint_timeout: float = Field(default=60.0, gt=0, description="seconds without a byte before a call is given up")
    endpoint_retries: int = Field(default=4, ge=0, description="of the client: 429, 5xx, broken connections")
    endpoint_failures: int = Field(default=10, ge=1, description="failed questions in a row that end the judging")
    endpoint_max_calls: int | None = Field(default=None, ge=1, description="budget of a run; retries are not counted")
    endpoint_max_tokens: int | None = Field(default=None, ge=1, description="budget of a run, in and out")


class TrackingSettings(Settings):
    uri: str | None = Field(default=None, description="MLflow tracking URI; null is SQLite in the home")
    experiment: str = "rlaif"
    ui_url: str = Field(default="http://127.0.0.1:5000", description="base URL of MLflow's UI, for links")


class Profile(Settings):
    """All stages. Named as their assets, except `constitution` (two assets'), `audits`, `relabel` and the last two;
    `reward_model` is also that of its halves."""

    constitution: ConstitutionSettings = ConstitutionSettings()
    red_team_prompts: RedTeamPromptsSettings = RedTeamPromptsSettings()
    helpful_prompts: HelpfulPromptsSettings = HelpfulPromptsSettings()
    helpfulness_preferences: HelpfulnessPreferencesSettings = HelpfulnessPreferencesSettings()
    community_votes: CommunityVotesSettings = CommunityVotesSettings()
    human_verdicts: HumanVerdictsSettings = HumanVerdictsSettings()
    base_model: BaseModelSettings = BaseModelSettings()
    feedback_model: FeedbackModelSettings = FeedbackModelSettings()
    revised_responses: RevisedResponsesSettings = RevisedResponsesSettings()
    sl_cai_checkpoint: SlCaiCheckpointSettings = SlCaiCheckpointSettings()
    response_pairs: ResponsePairsSettings = ResponsePairsSettings()
    harmlessness_preferences: HarmlessnessPreferencesSettings = HarmlessnessPreferencesSettings()
    label_changes: LabelChangesSettings = LabelChangesSettings()
    audits: AuditsSettings = AuditsSettings()
    relabel: RelabelSettings = RelabelSettings()
    pmp_checkpoint: PmpCheckpointSettings = PmpCheckpointSettings()
    reward_model: RewardModelSettings = RewardModelSettings()
    ppo_policy: PpoPolicySettings = PpoPolicySettings()
    policy_evaluation: PolicyEvaluationSettings = PolicyEvaluationSettings()
    champion_policy: ChampionPolicySettings = ChampionPolicySettings()
    compute: ComputeSettings = ComputeSettings()
    tracking: TrackingSettings = TrackingSettings()


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping; YAML's own loader keeps the last and loses the first."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice here", node.start_mark)
        return node


def nearest(name: str, valid: list[str]) -> str:
    """The end of an error message about an unknown name."""
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.4)
    return f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(sorted(valid))}"


def profile_names() -> list[str]:
    return sorted(p.name[:-5] for p in resources.files("rlaif_assets.profiles").iterdir() if p.name.endswith(".yaml"))


def load_profile(name: str | None = None) -> Profile:
    """Reads a packaged profile by name or a YAML file by path; default RLAIF_PROFILE, else `pocket`.

    Raises SettingsError with the nearest valid names.
    """
    name = name or os.environ.get("RLAIF_PROFILE") or "pocket"
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise SettingsError(f"profile file {name} does not exist")
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"profile file {name} cannot be read as UTF-8 text: {error}") from error
    elif name in profile_names():
        text = (resources.files("rlaif_assets.profiles") / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise SettingsError(f"unknown profile {name!r}: {nearest(name, profile_names())}")
    try:
        values = yaml.load(text, Loader=StrictLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SettingsError(f"profile {name} is not valid YAML: {error}") from error
    return build_profile({} if values is None else values, where=f"profile {name}")


def build_profile(values: Any, where: str) -> Profile:
    if not isinstance(values, dict):
        raise SettingsError(f"{where}: expected a mapping of stages, found {type(values).__name__}")
    for stage, fields in values.items():
        check_name(str(stage), where)
        if not isinstance(fields, dict | None):
            raise SettingsError(f"{where}: stage {stage}: expected a mapping of fields, found {fields!r}")
        for field in fields or {}:
            check_name(f"{stage}.{field}", where)
    try:
        return Profile.model_validate({stage: fields or {} for stage, fields in values.items()})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        found = "" if place.endswith("key_variable") else f" (found {first['input']!r})"  # it may be the key itself
        told = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{where}: {place}: {told}{found}") from (None if not found else error)


def check_name(name: str, where: str) -> None:
    """Raises SettingsError unless `name` is a stage or STAGE.FIELD."""
    stage, _, field = name.partition(".")
    stages = Profile.model_fields
    if stage not in stages:
        raise SettingsError(f"{where}: unknown stage {stage!r}: {nearest(stage, list(stages))}")
    fields = list(stage_class(stage).model_fields)
    if field and field not in fields:
        raise SettingsError(f"{where}: stage {stage} has no field {field!r}: {nearest(field, fields)}")


def stage_class(stage: str) -> type[Settings]:
    annotation = Profile.model_fields[stage].annotation
    assert isinstance(annotation, type) and issubclass(annotation, Settings)
    return annotation


def apply_overrides(profile: Profile, overrides: list[str], seed: int | None = None) -> Profile:
    """`STAGE.FIELD=VALUE` strings (VALUE is YAML) and a seed for every stage that has one."""
    values = profile.model_dump()
    if seed is not None:
        for fields in values.values():
            if "seed" in fields:
                fields["seed"] = seed
    for override in overrides:
        name, equals, text = override.partition("=")
        stage, _, field = name.partition(".")
        if not equals or not field:
            raise SettingsError(f"--set {override}: write STAGE.FIELD=VALUE, for example red_team_prompts.limit=200")
        check_name(name, f"--set {override}")
        try:
            values[stage][field] = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise SettingsError(f"--set {override}: the value is not valid YAML") from error
    return build_profile(values, where="settings")
