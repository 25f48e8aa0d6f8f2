"""What an audit has judged again: swapped pairs, pairs under an opposite principle, pairs that people labelled.

Judging goes the way that makes all other labels, so that a fault anywhere on it shows. What the answers are worth
belongs to `audits` and `agreement`.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, NamedTuple

from rlaif_assets.feedback.constitution import draw_principle
from rlaif_assets.feedback.generation import Progress
from rlaif_assets.feedback.judge import Judge
from rlaif_assets.feedback.judging import JudgeQuestion, judge_questions, whole_pairs
from rlaif_assets.feedback.labels import make_labels
from rlaif_assets.feedback.relabelling import answer_missing
from rlaif_assets.records import (
    AuditProbe,
    Comparison,
    JudgingConstitution,
    JudgingPrinciple,
    Label,
    Pair,
    Prompt,
    Rejection,
)
from rlaif_assets.settings import HarmlessnessPreferencesSettings
from rlaif_assets.store.fingerprint import draw_seed, row_id
from rlaif_assets.store.judgements import JudgementStore


@dataclass(frozen=True)
class Probing:
    """Pairs to have judged for an audit under a constitution's principles; the prompts by id. `side`: the number of
    `AuditProbe` that their labels give."""

    audit: str
    side: Literal["p_a", "other"]
    constitution: JudgingConstitution
    prompts: Mapping[str, Prompt]
    pairs: Sequence[Pair]

    def questions(self, judge: str, settings: HarmlessnessPreferencesSettings) -> list[JudgeQuestion]:
        return judge_questions(judge, self.constitution, self.prompts, self.pairs, settings)


Labelling = Callable[[Sequence[Probing]], list[list[Label]]]
"""The labels of each probing's pairs; pairs that could not be judged have none."""


class Reference(NamedTuple):
    """Pairs that people labelled: prompts and pairs by id, and what people said (p_a) by pair id."""

    prompts: dict[str, Prompt]
    pairs: dict[str, Pair]
    people: dict[str, float]

    @property
    def decided(self) -> dict[str, Pair]:
        """The pairs about which people were not at 0.5."""
        return {pair_id: pair for pair_id, pair in self.pairs.items() if self.people[pair_id] != 0.5}


class Labeller:
    """Has probings judged, all in one go. Answers are kept and only what was never asked is asked (see `relabelling`).

    `metrics`: those of `relabelling.Answered`; `rejections`: pairs that could not be judged, the audit in the reason.
    """

    def __init__(
        self,
        judge: Judge,
        settings: HarmlessnessPreferencesSettings,
        progress: Progress,
        store: JudgementStore,
        dagster_run_id: str | None = None,
    ) -> None:
        self.judge, self.settings, self.progress = judge, settings, progress
        self.store, self.dagster_run_id = store, dagster_run_id
        self.metrics: dict[str, Any] = {"reused": 0, "computed": 0, "tokens": 0, "seconds": 0.0}
        self.rejections: list[Rejection] = []

    def __call__(self, probings: Sequence[Probing]) -> list[list[Label]]:
        groups = [probing.questions(self.judge.fingerprint, self.settings) for probing in probings]
        questions = [question for group in groups for question in group]
        answered = answer_missing(self.judge, questions, self.store, self.settings, self.dagster_run_id, self.progress)
        self.metrics = answered.metrics
        found = iter(answered.found)
        labels: list[list[Label]] = []
        for probing, group in zip(probings, groups, strict=True):
            judgements, refused = whole_pairs(group, list(islice(found, len(group))))
            labels.append(make_labels(judgements, self.settings.average, self.settings.orders))
            self.rejections += [replace(row, reason=f"audit {probing.audit}: {row.reason}") for row in refused]
        return labels


def probe_judge(
    label: Labelling,
    constitution: JudgingConstitution,
    prompts: Mapping[str, Prompt],
    pairs: Sequence[Pair],
    labels: Sequence[Label],
    count: int,
    reference: Reference | None = None,
) -> list[AuditProbe]:
    """What `plan_probes` has judged, beside the labels that are there; and the reference, beside what people said."""
    probings = plan_probes(constitution, prompts, pairs, labels, count)
    if reference is not None:
        probings.append(reference_probing(constitution, reference))
    found = list(zip(probings, label(probings), strict=True))
    own = [row for row in labels if row.source == "ai"]
    rows: list[AuditProbe] = []
    for audit in dict.fromkeys(probing.audit for probing in probings):
        before, after = (
            [row for probing, made in found if (probing.audit, probing.side) == (audit, side) for row in made]
            for side in ("p_a", "other")
        )
        both_asked = any((probing.audit, probing.side) == (audit, "p_a") for probing in probings)
        if audit == "agreement" and reference is not None:
            rows += against_people(audit, reference.people, after)
        else:
            rows += _compared(audit, before if both_asked else own, after)
    return rows


def plan_probes(
    constitution: JudgingConstitution,
    prompts: Mapping[str, Prompt],
    pairs: Sequence[Pair],
    labels: Sequence[Label],
    count: int,
) -> list[Probing]:
    """Swapped pairs, and pairs under a counter-principle, or under another one where none is declared.

    Each on at most `count` pairs that have a label of the judge. Those for a counter-principle are the surest, for a
    judge that does not care which response is the better one turns by chance; the others are drawn by hash.
    """
    labelled = {row.pair_id: row for row in labels if row.source == "ai"}
    drawn = sorted(
        (pair for pair in pairs if pair.pair_id in labelled), key=lambda pair: draw_seed(pair.pair_id, 0, "audit")
    )
    some = drawn[:count]
    swapped = Probing("texts_swap", "other", constitution, prompts, [_exchanged(pair) for pair in some])
    if has_counter(constitution):
        surest = sorted(drawn, key=lambda pair: -abs(labelled[pair.pair_id].p_a - 0.5))[:count]
        others = _under_counters(constitution, prompts, surest)
    else:
        others = _under_others(constitution, prompts, some, labelled)
    return [probing for probing in (swapped, *others) if probing.pairs]


def reference_probing(constitution: JudgingConstitution, reference: Reference) -> Probing:
    """Labelled pairs, judged as all pairs are."""
    return Probing("agreement", "other", constitution, reference.prompts, list(reference.pairs.values()))


def has_counter(constitution: JudgingConstitution) -> bool:
    return any(principle.counter for principle in constitution.principles)


def _exchanged(pair: Pair) -> Pair:
    """Its texts exchanged, under its id, so that it draws the principle that it had."""
    return replace(
        pair,
        response_a=pair.response_b,
        response_b=pair.response_a,
        response_a_id=pair.response_b_id,
        response_b_id=pair.response_a_id,
    )


def _under_counters(
    constitution: JudgingConstitution, prompts: Mapping[str, Prompt], pairs: Sequence[Pair]
) -> list[Probing]:
    """Each pair under one of the principles that have a counter, drawn by hash, and under that counter."""
    declared = [principle for principle in constitution.principles if principle.counter]
    probings: list[Probing] = []
    for principle, members in _drawn(declared, pairs).items():
        text = str(principle.counter)
        counter = JudgingPrinciple(row_id("judging_principle", text), f"counter of {principle.name}", text)
        sides: tuple[tuple[Literal["p_a", "other"], JudgingPrinciple], ...] = (("p_a", principle), ("other", counter))
        probings += [
            Probing("counter_principle", side, replace(constitution, principles=(one,)), prompts, members)
            for side, one in sides
        ]
    return probings


def _under_others(
    constitution: JudgingConstitution,
    prompts: Mapping[str, Prompt],
    pairs: Sequence[Pair],
    labelled: Mapping[str, Label],
) -> list[Probing]:
    """Each pair under a principle that is not its label's, drawn by hash; none where there is one principle."""
    groups: dict[str | None, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[labelled[pair.pair_id].principle_id].append(pair)
    probings: list[Probing] = []
    for principle_id, members in groups.items():
        others = [principle for principle in constitution.principles if principle.principle_id != principle_id]
        probings += [
            Probing("other_principle", "other", replace(constitution, principles=(principle,)), prompts, chosen)
            for principle, chosen in (_drawn(others, members).items() if others else ())
        ]
    return probings


def draw_reference(comparisons: Sequence[Comparison], count: int) -> Reference:
    """At most `count` of them, drawn by hash."""
    return as_reference(sorted(comparisons, key=lambda row: draw_seed(row.comparison_id, 0, "audit"))[:count])


def as_reference(comparisons: Sequence[Comparison]) -> Reference:
    """Of a pair that is there twice the first counts."""
    found = Reference({}, {}, {})
    for row in comparisons:
        prompt = Prompt(row_id("prompt", row.messages), row.messages, row.split, "unknown", row.source)
        a, b = row.response_a, row.response_b
        id_a, id_b = (row_id("answer", prompt.prompt_id, text) for text in (a, b))
        pair = Pair(row_id("pair", prompt.prompt_id, a, b), prompt.prompt_id, id_a, id_b, a, b, 0, 0, 0)
        found.prompts[prompt.prompt_id] = prompt
        found.pairs.setdefault(pair.pair_id, pair)
        found.people.setdefault(pair.pair_id, row.p_a)
    return found


def against_people(audit: str, people: Mapping[str, float], labels: Sequence[Label]) -> list[AuditProbe]:
    """The judge's labels of the pairs about which people said something (p_a by pair id)."""
    return [
        AuditProbe(audit, row.pair_id, row.principle_id, people[row.pair_id], row.p_a)
        for row in labels
        if row.pair_id in people
    ]


def _drawn(principles: Sequence[JudgingPrinciple], pairs: Sequence[Pair]) -> dict[JudgingPrinciple, list[Pair]]:
    groups: dict[JudgingPrinciple, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[draw_principle(principles, pair.pair_id, 0, "audit-principle")].append(pair)
    return groups


def _compared(audit: str, before: Sequence[Label], after: Sequence[Label]) -> list[AuditProbe]:
    """Pairs that have both labels. Exchanged texts count only under the same principle."""
    again = {row.pair_id: row for row in after}
    return [
        AuditProbe(audit, row.pair_id, row.principle_id, row.p_a, again[row.pair_id].p_a)
        for row in before
        if row.pair_id in again and (audit != "texts_swap" or again[row.pair_id].principle_id == row.principle_id)
    ]
