"""Verdicts on a preference set: may a model be trained on it? Limits and what to do belong to `limits`.

Pure functions of labels, judgements and what the judge said when it was asked again (`probes`). Enforcing the verdicts
belongs to the assets and their checks. Nothing here needs gold; people's labels are used where they are given.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from rlaif_assets.feedback.agreement import agreement_metrics
from rlaif_assets.feedback.judging import ORDERS
from rlaif_assets.feedback.labels import Average
from rlaif_assets.feedback.limits import RULES, make_verdict
from rlaif_assets.records import AuditProbe, Judgement, Label, Pair
from rlaif_assets.settings import AuditsSettings

MAX_GAP = float(RULES["verdict_reaches_label"].limit)
UNDECIDED = (0.45, 0.55)
# Labels of the judge among people's, below which there is nothing to tell a judge by.
FEW, FEW_SHARE, TOO_FEW = 20, 0.05, 8
FEW_PROMPTS = 10  # below which a bootstrap over prompts is too narrow
PEOPLE = {
    "": "no labels of people are given (audits.reference)",
    "_verdicts": "no verdict of a person is about a pair of this home (human_verdicts)",
}
NOBODY = "nothing tells a sound judge from an inverted one: "
OF_THE_JUDGE = (
    "letter_mass",
    "position_flip_rate",
    "both_orders",
    "labels_vary",
    "verdict_reaches_label",
    "texts_swap",
    "counter_principle",
    "undecided_labels",
)
Measured = tuple[float | None, int | None, str]
"""Value, number of rows behind it (None: there is nothing to audit), note."""


@dataclass(frozen=True)
class Evidence:
    """What an audit is made from. `pairs`: all that were put to the judge; `refused`: draws that gave no pair.

    `people`: by audit (agreement: the reference; agreement_verdicts: people's verdicts on pairs of the home) the pairs
    by id that people decided and that were put to the judge; an audit is missing where people said nothing.
    `has_counter`: the constitution declares an opposite of a principle. `shared`: the assets that the policy was made
    from and that are the judge itself, None where that is not known. `average`: how labels are made of judgements.
    """

    labels: Sequence[Label]
    judgements: Sequence[Judgement]
    pairs: Sequence[Pair]
    refused: int = 0
    probes: Sequence[AuditProbe] = ()
    has_counter: bool = False
    people: Mapping[str, Mapping[str, Pair]] = field(default_factory=dict)
    shared: Sequence[str] | None = field(default=None)
    average: Average = "probability"


def audit(evidence: Evidence, settings: AuditsSettings) -> list[dict[str, Any]]:
    """One row {audit, passed, value, threshold, note, count, blocks} per rule of `limits.RULES`, in their order.

    `value` is None where no row gives one (a failure). What each audit measures is said by its rule. Judgements by the
    model are audited; labels that people gave are not.
    """
    by_id = {row.judgement_id: row for row in evidence.judgements}
    labels = [label for label in evidence.labels if label.source == "ai"]
    probes = {name: [probe for probe in evidence.probes if probe.audit == name] for name in RULES}
    masses = [math.exp(row.logprob_first) + math.exp(row.logprob_second) for row in evidence.judgements]
    complete = [_has_its_orders(label, by_id) for label in labels]
    undecided = [UNDECIDED[0] <= label.p_a <= UNDECIDED[1] for label in labels]
    unlabelled = {pair.pair_id for pair in evidence.pairs} - {label.pair_id for label in evidence.labels}
    reference = evidence.people.get("agreement", {}).keys() - {pair.pair_id for pair in evidence.pairs}
    silent = reference - {probe.pair_id for probe in probes["agreement"]}
    put, failed = len(evidence.pairs) + len(reference), len(unlabelled) + len(silent)
    drawn = len(evidence.pairs) + evidence.refused
    asked = min(settings.probe_pairs, len({label.pair_id for label in labels}))
    found: dict[str, Measured] = {
        "enough_pairs": _value(len({label.pair_id for label in evidence.labels}), len(evidence.pairs), "pairs"),
        "letter_mass": _value(_mean(masses), len(masses), "judgements"),
        "position_flip_rate": _sure_flips(labels, by_id),
        "both_orders": _value(_mean(complete), len(complete), "labels"),
        "labels_vary": _value(float(np.std([row.p_a for row in labels])) if labels else None, len(labels), "labels"),
        "verdict_reaches_label": _largest_gap(labels, by_id, evidence.average),
        "texts_swap": _swapped(probes["texts_swap"], asked),
        "counter_principle": _turned(probes["counter_principle"], asked)
        if evidence.has_counter
        else (None, None, "not asked: the constitution declares no opposite of a principle (inverted, counter)"),
        "other_principle": (None, None, "not asked: counter_principle tells more")
        if evidence.has_counter
        else _shift(probes["other_principle"]),
        **_against_people("", probes, evidence),
        **_against_people("_verdicts", probes, evidence),
        "length_correlation": _length_correlation(labels, evidence.pairs),
        "undecided_labels": _value(_mean(undecided), len(undecided), "labels"),
        "rejected_pairs": _value(evidence.refused / drawn if drawn else None, drawn, "draws"),
        "failed_judgements": (
            failed / put if put else None,
            put,
            f"{len(unlabelled)} of {len(evidence.pairs)} pairs, {len(silent)} of {len(reference)} of the reference",
        ),
        "judge_in_ancestry": (None, None, "not asked: no policy is known")
        if evidence.shared is None
        else (float(len(evidence.shared)), 1, f"the judge is {', '.join(evidence.shared) or 'none of them'}"),
    }
    people = len(evidence.labels) - len(labels)
    if people and (len(labels) < min(FEW, FEW_SHARE * len(evidence.labels)) or len(labels) < min(TOO_FEW, people)):
        few = f"not asked: of {len(evidence.labels)} labels {len(labels)} are the judge's, the others people's"
        found |= dict.fromkeys(OF_THE_JUDGE, (None, None, few))
    elif labels and all(label.orders == "single" for label in labels):
        found["position_flip_rate"] = (None, None, "not asked: one order was judged, as the settings want it")
    return [make_verdict(name, *found[name], settings) for name in RULES]


def _value(value: float | None, count: int, what: str) -> Measured:
    return value, count, f"of {count} {what}"


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _sure_flips(labels: Sequence[Label], by_id: Mapping[str, Judgement]) -> Measured:
    """Nothing is measured, which fails, where more than half of the labels have an order that chooses neither."""
    sure = [label for label in labels if label.flipped is not None]
    certainty, hits = [_certainty(label, by_id) for label in sure], [bool(label.flipped) for label in sure]
    told = f"{_shares(hits, certainty)} with a choice in both orders flipped"
    asked = sum(label.orders == "both" for label in labels)
    if 2 * len(sure) < asked:
        return None, len(sure), f"{told}; only {len(sure)} of {asked} have one"
    return _interval(certainty, hits)[1], len(sure), told


def _certainty(label: Label, by_id: Mapping[str, Judgement]) -> float:
    """Mean |2 p - 1| of its judgements."""
    rows = [by_id[i] for i in label.judgement_ids if i in by_id]
    return math.fsum(abs(math.tanh((r.logprob_first - r.logprob_second) / 2)) for r in rows) / max(len(rows), 1)


def _has_its_orders(label: Label, by_id: Mapping[str, Judgement]) -> bool:
    """One judgement in each order for every principle, or one in all where the label says that it has a single one."""
    rows = [by_id[i] for i in label.judgement_ids if i in by_id]
    wanted = list(ORDERS) if label.orders != "single" else None
    orders = [
        sorted(row.order for row in rows if row.principle_id == one) for one in {row.principle_id for row in rows}
    ]
    return bool(orders) and all(found == wanted if wanted else len(found) == 1 for found in orders)


def _largest_gap(labels: Sequence[Label], by_id: Mapping[str, Judgement], average: Average) -> Measured:
    gaps = [_gap(label, by_id, average) for label in labels]
    failing = [label for label, gap in zip(labels, gaps, strict=True) if gap > MAX_GAP]
    note = f"{len(failing)} labels differ, first {failing[0].label_id}" if failing else f"of {len(labels)} labels"
    return max(gaps, default=None), len(labels), note


def _gap(label: Label, by_id: Mapping[str, Judgement], average: Average) -> float:
    """1, the largest there can be, where a judgement is missing or of another pair or principle."""
    rows = [by_id[i] for i in label.judgement_ids if i in by_id]
    if not rows or len(rows) < len(label.judgement_ids) or not 0 <= label.p_a <= 1:
        return 1.0
    if any(row.pair_id != label.pair_id or label.principle_id not in (None, row.principle_id) for row in rows):
        return 1.0
    for_a = [(1 if row.order == "ab" else -1) * (row.logprob_first - row.logprob_second) for row in rows]
    if average == "log_odds":
        gap = abs(label.p_a - (1 + math.tanh(math.fsum(for_a) / len(rows) / 2)) / 2)
    else:
        gap = abs(label.p_a - math.fsum((1 + math.tanh(margin / 2)) / 2 for margin in for_a) / len(rows))
    return gap if math.isfinite(gap) else 1.0


def _swapped(probes: Sequence[AuditProbe], asked: int) -> Measured:
    """The second number belongs to the other response, so that a label that follows the texts turns."""
    stayed, certainty = _choices(probes, turned=False)
    value = _weighted(certainty, stayed) if 2 * len(probes) >= asked else None
    told = f"{_shares(stayed, certainty)} stayed with exchanged texts{_answered(probes, asked)}"
    return value, len(probes), told


def _turned(probes: Sequence[AuditProbe], asked: int) -> Measured:
    turned, certainty = _choices(probes, turned=True)
    low = _interval(certainty, turned)[0] if 2 * len(probes) >= asked else None
    return low, len(probes), f"{_shares(turned, certainty)} turned under the opposite{_answered(probes, asked)}"


def _answered(probes: Sequence[AuditProbe], asked: int) -> str:
    few = ", fewer than half: see why in rejected_rows" if 2 * len(probes) < asked else ""
    return f", {asked} asked{few}"


def _choices(probes: Sequence[AuditProbe], turned: bool) -> tuple[list[bool], list[float]]:
    """Whether the two numbers choose different (`turned`) or the same responses, and the sum of both |2 p - 1|."""
    counted = [((probe.p_a > 0.5) != (probe.other > 0.5)) == turned for probe in probes]
    return counted, [abs(2 * probe.p_a - 1) + abs(2 * probe.other - 1) for probe in probes]


def _weighted(weights: Sequence[float], hits: Sequence[bool]) -> float | None:
    total = math.fsum(weights)
    return math.fsum(w for w, hit in zip(weights, hits, strict=True) if hit) / total if total > 1e-9 else None


def _interval(weights: Sequence[float], hits: Sequence[bool]) -> tuple[float | None, float | None]:
    """Jeffreys' 95% interval of the weighted share; of as many rows as equal weights would make as certain (Kish)."""
    share = _weighted(weights, hits)
    if share is None:
        return None, None
    rows = math.fsum(weights) ** 2 / math.fsum(weight**2 for weight in weights)
    found = stats.beta(share * rows + 0.5, (1 - share) * rows + 0.5)
    return (float(found.ppf(0.025)) if share > 0 else 0.0), (float(found.ppf(0.975)) if share < 1 else 1.0)


def _shift(probes: Sequence[AuditProbe]) -> Measured:
    return _value(
        _mean([abs(probe.p_a - probe.other) for probe in probes]), len(probes), "labels under another principle"
    )


def _against_people(which: str, probes: Mapping[str, Sequence[AuditProbe]], evidence: Evidence) -> dict[str, Measured]:
    """Counted are the pairs that people decided, those too that the judge did not answer; where it answered fewer than
    half, nothing is measured, which fails."""
    agreement, calibration = f"agreement{which}", f"calibration{which}"
    pairs = evidence.people.get(agreement)
    if pairs is None:
        nobody = not which and not evidence.people
        none: Measured = (None, 0, NOBODY + PEOPLE[which]) if nobody else (None, None, f"not asked: {PEOPLE[which]}")
        return {agreement: none, calibration: (None, None, f"not asked: {PEOPLE[which]}")}
    found = agreement_metrics(probes[agreement], pairs)
    told = f"{len(pairs)} pairs that people decided, {found['decided']} with a label"
    if found["decided"]:
        low, high = found["interval"]
        told += f": {found['agreement']:.1%} [{low:.1%}, {high:.1%}] agree; the shorter text wins on "
        told += f"{found['shorter']:.1%}, the longer on {found['longer']:.1%}"
        if found["prompts"] < FEW_PROMPTS:
            told += f"; of {found['prompts']} prompts, too few for the interval to be trusted"
    enough = found["decided"] and 2 * found["decided"] >= len(pairs)
    margin = found["margin_interval"][0] if enough else None
    calibrated = f"Brier score {found['brier']:.3f} of {found['pairs']} labels" if found["pairs"] else "no label"
    return {agreement: (margin, len(pairs), told), calibration: (found["ece"], found["pairs"], calibrated)}


def _length_correlation(labels: Sequence[Label], pairs: Sequence[Pair]) -> Measured:
    """Spearman's, with its 95% interval by Fisher's transformation; none of fewer than four labels or constant ones."""
    longer = {pair.pair_id: len(pair.response_a) - len(pair.response_b) for pair in pairs}
    rows = [(label.p_a, longer[label.pair_id]) for label in labels if label.pair_id in longer]
    rows = [row for row in rows if math.isfinite(row[0])]
    if len(rows) < 4 or len({p for p, _ in rows}) == 1 or len({length for _, length in rows}) == 1:
        return None, len(rows), f"of {len(rows)} labels"
    found: Any = stats.pearsonr(*(stats.rankdata(column) for column in zip(*rows, strict=True)))
    low, high = found.confidence_interval(0.95)
    note = f"{found.statistic:+.3f} [{low:+.3f}, {high:+.3f}], p = {found.pvalue:.2g}, of {len(rows)} labels"
    return abs(float(found.statistic)), len(rows), note


def _shares(hits: Sequence[bool], certainty: Sequence[float]) -> str:
    share = _weighted(certainty, hits)
    return _of(sum(hits), len(hits)) + ("" if share is None else f", {share:.1%} by certainty,")


def _of(count: int, total: int) -> str:
    """`12 of 40 labels (30.0% [18.1%, 45.4%])`, with Wilson's 95% interval."""
    if not total:
        return "none of 0 labels"
    low, high = stats.binomtest(count, total).proportion_ci(0.95, "wilson")
    return f"{count} of {total} labels ({count / total:.1%} [{low:.1%}, {high:.1%}])"
