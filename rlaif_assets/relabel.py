"""`rlaif relabel`: what the job `relabel` would judge, and what it judged. How that is decided belongs to `feedback`.

The forecast asks the same plan as the run, and foresees whether the run would find its snapshot made already.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif_assets.settings import Profile

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from rlaif_assets.store.judgements import JudgementStore
    from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse

LABELS = "harmlessness_preferences"
Counts = dict[str, Any]
NEEDED = ("response_pairs", "red_team_prompts", "human_verdicts")


def relabel(
    instance: "DagsterInstance", home: Path, profile: Profile, show: Callable[[str], None], debug: bool = False
) -> dict[str, Any]:
    """Runs the job and tells {dry_run, reused, computed, by_reason, audits, tokens, seconds, changes, stopped}.

    `reused`, `computed` and `by_reason` are of the pairs' own questions, `audits` {reused, computed} of those that the
    audits ask; tokens and seconds are of both. `changes`: the metrics of `label_changes`. Where the labels were made
    and their audits failed, `stopped` says which and `changes` is None: that table is not made. Raises StoreError as
    `forecast` does, and RunError.
    """
    from rlaif_assets import pipeline
    from rlaif_assets.store.warehouse import Warehouse

    warehouse = Warehouse(home)
    for name in NEEDED:
        _current(warehouse, name)
    stopped = None
    try:
        run_id = pipeline.run_pipeline(instance, profile, show=show, debug=debug, load=pipeline.relabel)
    except pipeline.ChecksFailedError as error:
        run_id, stopped = error.run_id, str(error)
    record = warehouse.current(LABELS)
    changes = None if stopped else warehouse.current("label_changes")
    assert record is not None
    if record.dagster_run_id == run_id:
        own, audits = record.metrics["judging"], record.metrics["audit_judging"]
    else:
        own, audits = _all_reused(record)
    spent = {name: own[name] + audits[name] for name in ("tokens", "seconds")}
    return {"dry_run": False, **_told(own, audits), **spent, "changes": changes and changes.metrics, "stopped": stopped}


def forecast(home: Path, profile: Profile) -> dict[str, Any]:
    """What `relabel` would do: `dry_run`, `reused`, `computed`, `by_reason`, `audits`, `expected_tokens`,
    `expected_seconds`, `unknown`.

    Nothing is judged and no model is loaded; what a run that died had judged is put where it belongs. Expected are
    means of earlier judgements; where there are none they are None and `unknown` says why. Which pairs the audits ask
    about depends on labels that are not made yet: theirs is an estimate, from the labels there are. Raises StoreError
    where the home lacks what is judged, IngestError for a constitution, or a reference, that cannot be read.
    """
    from rlaif_assets.store.judgements import JudgementStore
    from rlaif_assets.store.warehouse import Warehouse

    warehouse = Warehouse(home)
    store = JudgementStore(warehouse)
    store.absorb()
    judge, own, audits = _planned(warehouse, store, profile)
    speed = store.speed(judge)
    asked = own["computed"] + audits["computed"]
    seconds = 0.0 if not asked else None if speed.seconds is None else asked * speed.seconds
    tokens = 0 if not asked else None if speed.tokens is None else round(asked * speed.tokens)
    unknown = None if seconds is not None else "this judge has judged nothing in this home yet"
    expected = {"expected_tokens": tokens, "expected_seconds": seconds, "unknown": unknown}
    return {"dry_run": True, **_told(own, audits), **expected}


def _told(own: Counts, audits: Counts) -> Counts:
    counts = {name: own[name] for name in ("reused", "computed", "by_reason")}
    return {**counts, "audits": {name: audits[name] for name in ("reused", "computed")}}


def _planned(warehouse: "Warehouse", store: "JudgementStore", profile: Profile) -> tuple[str, Counts, Counts]:
    """The judge's fingerprint and the counts of `relabelling.Plan`, of the pairs' questions and of the audits'."""
    from rlaif_assets.assets.auditing import audited_identity
    from rlaif_assets.assets.configuration import HarmlessnessPreferencesConfig, config_values
    from rlaif_assets.assets.recording import as_records, code_version
    from rlaif_assets.assets.step3_preferences import harmlessness_preferences, with_as_of
    from rlaif_assets.feedback.forecast import expected_labels, plan_audits
    from rlaif_assets.feedback.judging import judge_questions
    from rlaif_assets.feedback.relabelling import plan
    from rlaif_assets.records import HumanVerdict, JudgingConstitution, Label, Pair, Prompt
    from rlaif_assets.store.warehouse import snapshot_key

    current = {name: _current(warehouse, name).snapshot_id for name in NEEDED}
    constitution_id, constitution = _constitution(profile)
    model_id, judge = _judge(warehouse, profile)
    config = with_as_of(HarmlessnessPreferencesConfig(**config_values(profile, LABELS, HarmlessnessPreferencesConfig)))
    inputs = {**current, "judging_constitution": constitution_id, "feedback_model": model_id}
    key = snapshot_key(LABELS, inputs, audited_identity(config), code_version(harmlessness_preferences))
    made = warehouse.find(LABELS, key)
    if made is not None:
        return judge, *_all_reused(made)
    prompts = as_records(Prompt, warehouse.rows("prompts", current["red_team_prompts"]))
    by_id = {prompt.prompt_id: prompt for prompt in prompts if prompt.split == "train"}
    pairs = as_records(Pair, warehouse.rows("pairs", current["response_pairs"]))
    principles, examples = (tuple(rows) for rows in constitution.values())
    judging = JudgingConstitution(principles, examples)
    own = plan(judge, judge_questions(judge, judging, by_id, pairs, config), store, config)
    before = warehouse.current(LABELS)
    earlier = as_records(Label, warehouse.rows("labels", before.snapshot_id)) if before else []
    verdicts = as_records(HumanVerdict, warehouse.rows("human_verdicts", current["human_verdicts"]))
    labels = expected_labels(own, earlier, verdicts, pairs, by_id, config)
    audits = plan_audits(judge, own, judging, by_id, pairs, labels, store, config, config.audits())
    return judge, own.counts(), audits.counts()


def _constitution(profile: Profile) -> tuple[str, dict[str, Any]]:
    """The id that `judging_constitution` would have, and its rows by table: principles, then examples."""
    from rlaif_assets.assets.configuration import ConstitutionConfig
    from rlaif_assets.assets.recording import code_version, product_rows, source_identity
    from rlaif_assets.assets.sources import judging_constitution, read_judging_constitution
    from rlaif_assets.store.warehouse import id_of_rows, snapshot_key

    config = ConstitutionConfig(**profile.constitution.model_dump())
    product = read_judging_constitution(config)
    key = snapshot_key("judging_constitution", {}, source_identity(config, product), code_version(judging_constitution))
    return id_of_rows(key, product_rows(product)), dict(product.tables)


def _judge(warehouse: "Warehouse", profile: Profile) -> tuple[str, str]:
    """The id that `feedback_model` would have, and the judge's fingerprint; empty where only asking could tell."""
    from rlaif_assets.assets.recording import code_version
    from rlaif_assets.assets.sources import feedback_identity, feedback_model
    from rlaif_assets.feedback.opening import judge_fingerprint
    from rlaif_assets.store.warehouse import snapshot_key

    identity, judging = feedback_identity(profile.feedback_model), profile.harmlessness_preferences
    key = snapshot_key("feedback_model", {}, identity, code_version(feedback_model))
    record = warehouse.find("feedback_model", key)
    if record is not None:
        row = warehouse.rows("external_models", record.snapshot_id)[0]
        return record.snapshot_id, judge_fingerprint(row, profile.feedback_model, judging)
    if "fingerprint" not in identity:
        return "", ""
    return "", judge_fingerprint({**identity, "verdicts": None}, profile.feedback_model, judging)


def _current(warehouse: "Warehouse", asset: str) -> "SnapshotRecord":
    from rlaif_assets.store.errors import StoreError

    record = warehouse.current(asset)
    if record is None:
        raise StoreError(f"{warehouse.home} has no {asset} to relabel: run the pipeline up to {LABELS} first")
    return record


def _all_reused(record: "SnapshotRecord") -> tuple[Counts, Counts]:
    """The counts of a run that finds this snapshot made already."""
    none = {"computed": 0, "by_reason": {}, "tokens": 0, "seconds": 0.0}
    made = [record.metrics[name] for name in ("judging", "audit_judging")]
    own, audits = ({**none, "reused": counts["reused"] + counts["computed"]} for counts in made)
    return own, audits
