"""The judge asked again: with the texts exchanged, under another principle, about pairs that people labelled.

Labels are made by the path that makes all others, so that a fault anywhere on it shows. What the answers are worth
belongs to `audits` and `agreement`.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rlaif_assets.feedback.constitution import draw_principle
from rlaif_assets.feedback.generation import Progress
from rlaif_assets.feedback.judge import Judge
from rlaif_assets.feedback.judging import judge_questions
from rlaif_assets.feedback.labels import make_labels
from rlaif_assets.feedback.relabelling import judge_missing
from rlaif_assets.records import AuditProbe, Comparison, JudgingConstitution, JudgingPrinciple, Label, Pair, Prompt
from rlaif_assets.settings import HarmlessnessPreferencesSettings
from rlaif_assets.store.fingerprint import draw_seed, row_id
from rlaif_assets.store.judgements import JudgementStore

Labeller = Callable[[JudgingConstitution, Mapping[str, Prompt], Sequence[Pair]], list[Label]]
"""Judges pairs under a constitution; the prompts by id. Pairs that could not be judged have no label."""


def labeller(
    judge: Judge,
    settings: HarmlessnessPreferencesSettings,
    progress: Progress,
    store: JudgementStore,
    dagster_run_id: str | None = None,
) -> Labeller:
    """Answers are kept and only what was never asked is asked (see `relabelling`)."""

    def label(constitution: JudgingConstitution, prompts: Mapping[str, Prompt], pairs: Sequence[Pair]) -> list[Label]:
        questions = judge_questions(judge.fingerprint, constitution, prompts, pairs, settings)
        judgements = judge_missing(judge, questions, store, settings, dagster_run_id, progress).judgements
        return make_labels(judgements, settings.average, settings.orders)

    return label


def probe_judge(
    label: Labeller,
    constitution: JudgingConstitution,
    prompts: Mapping[str, Prompt],
    pairs: Sequence[Pair],
    labels: Sequence[Label],
    count: int,
) -> list[AuditProbe]:
    """Swapped pairs, and pairs under a counter-principle, or under another one where none is declared.

    Each on at most `count` pairs that have a label. Those for a counter-principle are the surest, for a judge that does
    not care which response is the better one turns by chance; the others are drawn by hash.
    """
    labelled = {row.pair_id: row for row in labels if row.source == "ai"}
    drawn = sorted(
        (pair for pair in pairs if pair.pair_id in labelled), key=lambda pair: draw_seed(pair.pair_id, 0, "audit")
    )
    some = drawn[:count]
    known = [labelled[pair.pair_id] for pair in some]
    probes = swap_probes(label, constitution, prompts, some, known)
    if has_counter(constitution):
        surest = sorted(drawn, key=lambda pair: -abs(labelled[pair.pair_id].p_a - 0.5))[:count]
        return probes + counter_probes(label, constitution, prompts, surest)
    return probes + other_probes(label, constitution, prompts, some, known)


def has_counter(constitution: JudgingConstitution) -> bool:
    return any(principle.counter for principle in constitution.principles)


def swap_probes(
    label: Labeller,
    constitution: JudgingConstitution,
    prompts: Mapping[str, Prompt],
    pairs: Sequence[Pair],
    labels: Sequence[Label],
) -> list[AuditProbe]:
    """Each pair judged with its texts exchanged, under its id, so that it draws the principle that it had."""
    exchanged = [
        replace(
            pair,
            response_a=pair.response_b,
            response_b=pair.response_a,
            response_a_id=pair.response_b_id,
            response_b_id=pair.response_a_id,
        )
        for pair in pairs
    ]
    return _compared("texts_swap", labels, label(constitution, prompts, exchanged))


def counter_probes(
    label: Labeller, constitution: JudgingConstitution, prompts: Mapping[str, Prompt], pairs: Sequence[Pair]
) -> list[AuditProbe]:
    """Each pair judged under one of the principles that have a counter, drawn by hash, and under that counter."""
    declared = [principle for principle in constitution.principles if principle.counter]
    probes: list[AuditProbe] = []
    for principle, members in _drawn(declared, pairs).items():
        text = str(principle.counter)
        counter = JudgingPrinciple(row_id("judging_principle", text), f"counter of {principle.name}", text)
        before, after = (
            label(replace(constitution, principles=(one,)), prompts, members) for one in (principle, counter)
        )
        probes += _compared("counter_principle", before, after)
    return probes


def other_probes(
    label: Labeller,
    constitution: JudgingConstitution,
    prompts: Mapping[str, Prompt],
    pairs: Sequence[Pair],
    labels: Sequence[Label],
) -> list[AuditProbe]:
    """Each pair judged under a principle that is not its label's, drawn by hash; none where there is one principle."""
    groups: dict[str | None, list[Pair]] = defaultdict(list)
    used = {row.pair_id: row.principle_id for row in labels}
    for pair in pairs:
        groups[used[pair.pair_id]].append(pair)
    again: list[Label] = []
    for principle_id, members in groups.items():
        others = [principle for principle in constitution.principles if principle.principle_id != principle_id]
        for principle, chosen in _drawn(others, members).items() if others else ():
            again += label(replace(constitution, principles=(principle,)), prompts, chosen)
    return _compared("other_principle", labels, again)


def reference_probes(
    label: Labeller, constitution: JudgingConstitution, comparisons: Sequence[Comparison], count: int
) -> tuple[list[AuditProbe], list[Pair]]:
    """At most `count` of the comparisons, drawn by hash, judged as all pairs are; and their pairs."""
    drawn = sorted(comparisons, key=lambda row: draw_seed(row.comparison_id, 0, "audit"))[:count]
    prompts, pairs, people = as_pairs(drawn)
    return against_people(people, label(constitution, prompts, pairs)), pairs


def against_people(people: Mapping[str, float], labels: Sequence[Label]) -> list[AuditProbe]:
    """`people`: what people said (p_a) by pair id."""
    return [
        AuditProbe("agreement", row.pair_id, row.principle_id, people[row.pair_id], row.p_a)
        for row in labels
        if row.pair_id in people
    ]


def as_pairs(comparisons: Sequence[Comparison]) -> tuple[dict[str, Prompt], list[Pair], dict[str, float]]:
    """Prompts by id, pairs, and people's p_a by pair id. Of a pair that is there twice the first counts."""
    prompts: dict[str, Prompt] = {}
    pairs: dict[str, Pair] = {}
    people: dict[str, float] = {}
    for row in comparisons:
        prompt = Prompt(row_id("prompt", row.messages), row.messages, row.split, "unknown", row.source)
        a, b = row.response_a, row.response_b
        id_a, id_b = (row_id("answer", prompt.prompt_id, text) for text in (a, b))
        pair = Pair(row_id("pair", prompt.prompt_id, a, b), prompt.prompt_id, id_a, id_b, a, b, 0, 0, 0)
        prompts[prompt.prompt_id] = prompt
        pairs.setdefault(pair.pair_id, pair)
        people.setdefault(pair.pair_id, row.p_a)
    return prompts, list(pairs.values()), people


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
