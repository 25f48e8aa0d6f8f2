"""What the audits of a preference set that is not made yet would ask, from the labels that can be expected."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from rlaif_assets.feedback.human import override
from rlaif_assets.feedback.judge import Failure
from rlaif_assets.feedback.judging import whole_pairs
from rlaif_assets.feedback.labels import make_labels
from rlaif_assets.feedback.probes import draw_reference, plan_probes, reference_probing
from rlaif_assets.feedback.relabelling import Plan, as_asked, plan
from rlaif_assets.ingest.labelled_pairs import read_labelled_pairs
from rlaif_assets.records import HumanVerdict, JudgingConstitution, Label, Pair, Prompt
from rlaif_assets.settings import AuditsSettings, HarmlessnessPreferencesSettings
from rlaif_assets.store.judgements import JudgementStore


def expected_labels(
    planned: Plan,
    earlier: Sequence[Label],
    verdicts: Sequence[HumanVerdict],
    pairs: Sequence[Pair],
    prompts: Mapping[str, Prompt],
    settings: HarmlessnessPreferencesSettings,
) -> list[Label]:
    """The labels of the pairs that the store answers; for the others the earlier set's, else an undecided one."""
    found = [
        as_asked(question, planned.stored[question.key]) if question.key in planned.stored else Failure("not asked yet")
        for question in planned.questions
    ]
    known = {row.pair_id: row for row in earlier if row.source == "ai"}
    known |= {row.pair_id: row for row in make_labels(whole_pairs(planned.questions, found)[0], settings.average)}
    drawn: dict[str, set[str]] = defaultdict(set)
    for question in planned.questions:
        drawn[question.pair.pair_id].add(question.principle.principle_id)
    by_judge = [known.get(pair.pair_id) or _undecided(pair, drawn[pair.pair_id]) for pair in pairs]
    return override(by_judge, verdicts, pairs, prompts).labels


def _undecided(pair: Pair, principles: set[str]) -> Label:
    principle_id = min(principles) if len(principles) == 1 else None
    return Label("", pair.pair_id, principle_id, 0.5, (), None, "ai", "")


def plan_audits(
    judge: str,
    own: Plan,
    constitution: JudgingConstitution,
    prompts: Mapping[str, Prompt],
    pairs: Sequence[Pair],
    labels: Sequence[Label],
    store: JudgementStore,
    settings: HarmlessnessPreferencesSettings,
    audits: AuditsSettings,
) -> Plan:
    """What the audits would ask that the pairs' own questions do not. `judge`: its fingerprint."""
    probings = plan_probes(constitution, prompts, pairs, labels, audits.probe_pairs)
    if audits.reference is not None:
        comparisons, _ = read_labelled_pairs(audits.reference)
        probings.append(reference_probing(constitution, draw_reference(comparisons, audits.reference_pairs)))
    asked = {ask.question.key for ask in own.asks}
    questions = [question for probing in probings for question in probing.questions(judge, settings)]
    return plan(judge, [question for question in questions if question.key not in asked], store, settings)
