"""The audits of a judge on any file of pairs that people labelled: what `rlaif audit` prints.

Reading the file belongs to `ingest.labelled_pairs`, what is measured to `audits`.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlaif_assets.feedback.audits import Evidence, audit
from rlaif_assets.feedback.generation import Progress
from rlaif_assets.feedback.judge import Judge
from rlaif_assets.feedback.judging import judge_questions, whole_pairs
from rlaif_assets.feedback.labels import make_labels
from rlaif_assets.feedback.limits import RULES, measured
from rlaif_assets.feedback.opening import ask_endpoint, endpoint_judge, local_judge, prove
from rlaif_assets.feedback.passport import make_passport
from rlaif_assets.feedback.probes import Labeller, against_people, as_reference, has_counter, probe_judge
from rlaif_assets.feedback.relabelling import answer_missing
from rlaif_assets.language_models.endpoint import Endpoint, checked_url, is_endpoint
from rlaif_assets.language_models.local import load_model
from rlaif_assets.records import Comparison, JudgingConstitution, Rejection
from rlaif_assets.settings import (
    AuditsSettings,
    ComputeSettings,
    FeedbackModelSettings,
    HarmlessnessPreferencesSettings,
)
from rlaif_assets.store.judgements import JudgementStore


def named_judge(name: str | None, default: FeedbackModelSettings) -> FeedbackModelSettings:
    """The model of `rlaif audit --judge`: `pocket`, a folder, a hub id with `@COMMIT`, or an endpoint's URL with
    `@MODEL`, which is asked as `default` says. None: `default`. Raises ModelError for a URL that may hold a secret.
    """
    if name is None:
        return default
    source, _, pin = (checked_url(name) if is_endpoint(name) else name).partition("@")
    if is_endpoint(source):
        return default.model_copy(update={"source": source, "model": pin or default.model, "revision": None})
    return FeedbackModelSettings(source=source, revision=pin or None)


def open_judge(
    settings: FeedbackModelSettings, judging: HarmlessnessPreferencesSettings, compute: ComputeSettings
) -> tuple[Judge, dict[str, Any]]:
    """The judge that these settings name, and what a passport says of its model. Raises ModelError."""
    from rlaif_assets.pocket.world import model_folder

    if is_endpoint(settings.source):

        def connect(url: str, model: str, version: str | None) -> Endpoint:
            return Endpoint(url, model, compute, version)

        row, _, _ = ask_endpoint(settings, connect)
        return endpoint_judge(row, settings, judging, connect), row
    source = model_folder() if settings.source == "pocket" else settings.source
    model = load_model(source, compute, settings.revision)
    known = {"architecture": type(model.model).__name__, "parameters": model.model.num_parameters()}
    return local_judge(model, judging), {"source": settings.source, "revision": settings.revision, **known}


def audit_pairs(
    judge: Judge,
    model: Mapping[str, Any],
    constitution: JudgingConstitution,
    comparisons: Sequence[Comparison],
    refused: Sequence[Rejection],
    settings: HarmlessnessPreferencesSettings,
    audits: AuditsSettings,
    store: JudgementStore,
    progress: Progress,
) -> dict[str, Any]:
    """Judges all pairs as step 3 does and holds the labels against people's. Answers are kept in `store`, and what is
    there is not asked again.

    Keys: passed (no audit that would stop training failed), pairs (rows read, refused, pairs, judged), judging and
    audit_judging (see `relabelling.Answered`; of the pairs' own questions and of the audits'), rejected (rows
    {where, reason}), and those of a passport (see `passport`). `refused` are the rows that gave no pair. Raises
    JudgeStoppedError.
    """
    prove(judge, store)
    reference = as_reference(comparisons)
    prompts, pairs, decided = reference.prompts, list(reference.pairs.values()), {"agreement": reference.decided}
    questions = judge_questions(judge.fingerprint, constitution, prompts, pairs, settings)
    answered = answer_missing(judge, questions, store, settings, None, progress)
    judgements, failed = whole_pairs(questions, answered.found)
    labels = make_labels(judgements, settings.average, settings.orders)

    def again(phase: str, done: int, total: int) -> None:
        progress(f"audit {phase}", done, total)

    label = Labeller(judge, settings, again, store)
    probes = against_people("agreement", reference.people, labels)
    probes += probe_judge(label, constitution, prompts, pairs, labels, audits.probe_pairs)
    counter = has_counter(constitution)
    evidence = Evidence(labels, judgements, pairs, len(refused), probes, counter, decided, average=settings.average)
    verdicts = audit(evidence, audits)
    asked = {**settings.model_dump(), "probe_pairs": audits.probe_pairs}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    counts = {"read": len(comparisons) + len(refused), "refused": len(refused), "pairs": len(pairs)}
    return {
        "passed": not any(row["blocks"] and not row["passed"] for row in verdicts),
        "pairs": {**counts, "judged": len(labels)},
        "judging": answered.metrics,
        "audit_judging": label.metrics,
        "rejected": [{"where": row.where, "reason": row.reason} for row in [*refused, *failed, *label.rejections]],
        **make_passport(judge.fingerprint, model, asked, verdicts, probes, decided, date),
    }


def audit_table(report: Mapping[str, Any]) -> RenderableType:
    """The audits of `audit_pairs` as a table, what to do about those that failed, and whether the gate is open."""
    table = Table(
        title=f"Audit of judge {report['judge'][:12]} on {report['pairs']['judged']} pairs", title_style="bold"
    )
    for name in ("audit", "result", "value", "limit", "of what"):
        table.add_column(name, overflow="fold")
    for row in report["audits"]:
        result = "passed" if row["passed"] else "stops training" if row["blocks"] else "warning"
        style = "" if row["passed"] else "bold red" if row["blocks"] else "yellow"
        value = "none" if row["value"] is None else f"{row['value']:.4g}"
        asked = (result, value, f"{row['threshold']:.4g}") if row["count"] is not None else ("not asked", "", "")
        table.add_row(*(Text(cell, style=style) for cell in (row["audit"], *asked, row["note"])))
    failed = [row for row in report["audits"] if not row["passed"]]
    advice = [Text(f"{row['audit']} ({measured(row)}): {RULES[row['audit']].advice}.") for row in failed]
    counts = report["pairs"]
    made, reused = (sum(report[one][what] for one in ("judging", "audit_judging")) for what in ("computed", "reused"))
    told = (
        f"{counts['read']} rows read, {counts['refused']} refused; {counts['judged']} of {counts['pairs']} pairs "
        f"judged ({made} judgements made, {reused} reused, those of the audits among them)"
    )
    gate = "The gate is open." if report["passed"] else "The gate is closed: no model would be trained on such labels."
    return Group(table, *advice, Text(f"{told}. {gate}"))
