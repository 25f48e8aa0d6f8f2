"""The audits of a preference set, gathered for its asset; and the judge's passport, shown where people look for it.

What is measured belongs to `feedback.audits`, what is asked again to `feedback.probes`, verdicts to `checks`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from rlaif_assets.assets.configuration import HarmlessnessPreferencesConfig, without_limits
from rlaif_assets.assets.recording import Product, Stage
from rlaif_assets.assets.showing import preview
from rlaif_assets.feedback.limits import measured
from rlaif_assets.records import PASSPORT, JudgingConstitution, Pair, Prompt, Rejection

if TYPE_CHECKING:
    from rlaif_assets.feedback.judge import Judge
    from rlaif_assets.feedback.preferences import PreferenceSet


def audited(
    stage: Stage,
    config: HarmlessnessPreferencesConfig,
    judge: "Judge",
    constitution: JudgingConstitution,
    prompts: Mapping[str, Prompt],
    pairs: Sequence[Pair],
    made: "PreferenceSet",
) -> Product:
    """The verdicts and what they rest on (`verdicts`, `audit_probes`), the passport, the reliability picture; rejected
    are the rows of people's labels that could not be read.

    `metrics`: `audits` (values by name), `audit_judging` (what they asked; `unanswered`: [reason, pairs] of what they
    asked in vain); `tokens` are those that they took.
    """
    from rlaif_assets.evaluation.pictures import reliability_picture
    from rlaif_assets.feedback.audits import Evidence, audit
    from rlaif_assets.feedback.passport import AGAINST_PEOPLE, make_passport
    from rlaif_assets.feedback.probes import Labeller, against_people, draw_reference, has_counter, probe_judge
    from rlaif_assets.ingest.labelled_pairs import read_labelled_pairs

    def progress(phase: str, done: int, total: int) -> None:
        stage.progress(f"audit {phase}", done, total)

    settings = config.audits()
    reference, rejected = None, list[Rejection]()
    people: dict[str, Mapping[str, Pair]] = {}
    if settings.reference is not None:
        comparisons, rejected = read_labelled_pairs(settings.reference)
        reference = draw_reference(comparisons, settings.reference_pairs)
        people["agreement"] = reference.decided
    label = Labeller(judge, config, progress, stage.judgements, stage.context.run.run_id)
    probes = probe_judge(label, constitution, prompts, pairs, made.labels, settings.probe_pairs, reference)
    said = {row.pair_id: row.p_a for row in made.labels if row.source == "human"}
    if said:
        people["agreement_verdicts"] = {pair.pair_id: pair for pair in pairs if said.get(pair.pair_id, 0.5) != 0.5}
        probes += against_people("agreement_verdicts", said, made.by_judge)
    refused = stage.inputs["response_pairs"].row_counts.get("rejected_rows", 0)
    shared = models_shared(stage, judge.fingerprint)
    counter = has_counter(constitution)
    evidence = Evidence(made.labels, made.judgements, pairs, refused, probes, counter, people, shared, config.average)
    verdicts = audit(evidence, settings)
    model = stage.warehouse.rows("external_models", stage.inputs["feedback_model"].snapshot_id)[0]
    date = datetime.now(UTC).isoformat(timespec="seconds")
    passport = make_passport(judge.fingerprint, model, without_limits(config), verdicts, probes, people, date)
    bins = {name: passport[name]["reliability"] for name in AGAINST_PEOPLE if passport[name]}
    pictures = {"judge_reliability": reliability_picture(bins)} if bins else {}
    unanswered = [[reason, count] for reason, count in Counter(row.reason for row in label.rejections).items()]
    numbers = {row["audit"]: row["value"] for row in verdicts if row["value"] is not None}
    return Product(
        {"verdicts": verdicts, "audit_probes": probes},
        rejected,
        metrics={"audits": numbers, "audit_judging": {**label.metrics, "unanswered": unanswered}},
        tokens=label.metrics["tokens"],
        pictures=pictures,
        documents={PASSPORT: passport},
    )


def audited_identity(config: HarmlessnessPreferencesConfig) -> dict[str, Any]:
    """What decides labels and what is measured on them: of a file of people's labels its content, not its place."""
    from rlaif_assets.store.fingerprint import file_sha256

    identity, path = without_limits(config), config.audits_reference
    if path is not None and Path(path).is_file():
        identity["audits_reference"] = file_sha256(Path(path))
    return identity


def models_shared(stage: Stage, judge: str) -> list[str]:
    """The assets among those that the response pairs were made from whose weights are the judge's."""
    from rlaif_assets.store.lineage import weights_in_ancestry

    models = stage.warehouse.rows("external_models", stage.inputs["feedback_model"].snapshot_id)
    judges = {judge, *(row["fingerprint"] for row in models)}
    found = weights_in_ancestry(stage.warehouse, stage.inputs["response_pairs"].snapshot_id)
    return [asset for asset, fingerprint in found.items() if fingerprint in judges]


def show_passport(stage: Stage) -> None:
    """Shows the current passport on `feedback_model`, as an observation: what this judge was found to be, and when."""
    record = stage.warehouse.current(stage.asset)
    if record is None or PASSPORT not in record.metrics:
        return
    passport: dict[str, Any] = record.metrics[PASSPORT]
    rows = [
        {
            "audit": row["audit"],
            "passed": row["passed"],
            "measured": measured(row) if row["count"] is not None else "",
            "note": row["note"],
        }
        for row in passport["audits"]
    ]
    metadata = {
        "passport_id": passport["passport_id"],
        "date": passport["date"],
        "preference_set": record.snapshot_id,
        "audits": preview(rows),
        PASSPORT: dg.MetadataValue.json(passport),
    }
    stage.context.log_event(
        dg.AssetObservation("feedback_model", description="The judge's passport", metadata=metadata)
    )
