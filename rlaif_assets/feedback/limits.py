"""What each audit is for, its limit, and what to do; and the limits applied to what was measured, also long ago.

What is measured belongs to `audits`. Another limit needs no new judgement and no new model, so gates apply the current
ones to stored rows. Nothing heavy is imported here: checks are declared from RULES, and a gate asks even where all is
reused.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlaif_assets.settings import AuditsSettings


@dataclass(frozen=True)
class Rule:
    """One audit. `limit` is a number or the name of the setting that holds it; `at_least` says on which side to be, and
    `above` that the limit itself does not do.

    Its failure stops training `always`, `never` (it warns), from so many rows on (`blocks_from`, a setting), or past a
    second limit (`blocks_past`, a setting).
    """

    shows: str
    advice: str
    limit: float | str
    at_least: bool = False
    above: bool = False
    blocks: Literal["always", "never"] = "always"
    blocks_from: str | None = None
    blocks_past: str | None = None

    @property
    def may_block(self) -> bool:
        return self.blocks == "always" or self.blocks_from is not None or self.blocks_past is not None


RULES_SINCE = 10
"""The code version of the preference set from which its stored verdicts are of these rules."""
OLDER_RULES = "it was audited by older rules: materialize it anew (nothing is judged again)"
ADVICE = "To train nevertheless move the limit, or --set audits.enforce=false (recorded with the model)."

RULES: dict[str, Rule] = {
    "enough_pairs": Rule(
        "Number of labelled pairs.",
        "give more prompts or more pairs per prompt, and see why pairs were rejected",
        "min_pairs",
        at_least=True,
    ),
    "letter_mass": Rule(
        "Mean probability that the judge puts on the two letters together.",
        "the judge does not answer with a letter: give it worked examples (few_shot), or take another model",
        "min_mass",
        at_least=True,
    ),
    "position_flip_rate": Rule(
        "Share of labels whose two orders choose different responses, weighted by certainty: the upper end of its 95% "
        "interval. A judge that looks at the position alone has 1, one that answers by chance 0.5. Not measured where "
        "an order chooses neither response in more than half of the labels.",
        "take a stronger judge, move the principle (principle_position), give it worked examples (few_shot), or give "
        "more pairs where the interval is wide; where many orders choose neither, ask for more votes, an odd number",
        "max_flip_rate",
    ),
    "both_orders": Rule(
        "Share of labels made from one judgement in each order.",
        "judge both orders: a single one carries the judge's liking for a position into the label",
        1.0,
        at_least=True,
    ),
    "labels_vary": Rule(
        "Standard deviation of p_a over labels: constant labels teach nothing.",
        "the judge sees no difference between responses: read some; the responses or the judge may be at fault",
        0.005,
        at_least=True,
    ),
    "verdict_reaches_label": Rule(
        "Largest distance between a label and what its judgements' log-probabilities make of it.",
        "the code between judgement and label is wrong: nothing that was trained on such labels is to be trusted",
        1e-6,
    ),
    "texts_swap": Rule(
        "Share of labels that stay the same when the pair is judged anew with its two texts exchanged, weighted by "
        "certainty. Labels that follow the texts have 0, constant ones 1, chance 0.5.",
        "the verdict does not reach the label (a bug), or the judge answers otherwise each time (ask it more often)",
        "max_unswapped",
    ),
    "counter_principle": Rule(
        "Share of the surest labels that turn when a principle is replaced by the opposite that the constitution "
        "declares for it, weighted by certainty: the lower end of its 95% interval. A judge that ignores the principle "
        "has 0, chance 0.5.",
        "the judge does not read the principle: move it (principle_position), take another judge, or ask about more "
        "pairs (probe_pairs) where the interval is wide; where it refuses to answer (rejected_rows), declare an "
        "opposite that it answers",
        "min_turned",
        at_least=True,
    ),
    "other_principle": Rule(
        "Mean change of p_a under another principle; asked where the constitution declares no opposite.",
        "the judge may ignore the principle: declare the opposite of one (inverted) in the constitution to be sure",
        "min_principle_shift",
        at_least=True,
        blocks="never",
    ),
    "agreement": Rule(
        "Agreement with people's labels less that of the better rule of 'the shorter wins' and 'the longer wins': the "
        "lower end of its 95% interval.",
        "the labels tell no more than a ruler would: see what the principles ask for and what people were asked, then "
        "try another judge; without people's labels name some (audits.reference) or give verdicts (human_verdicts)",
        "min_margin",
        at_least=True,
        above=True,
        blocks="never",
        blocks_from="min_reference",
    ),
    "agreement_verdicts": Rule(
        "As agreement: what the judge said about pairs of this home, against people's verdicts (human_verdicts).",
        "people contradict the judge on the pairs that it labels: read some of them; try another judge or principles",
        "min_margin",
        at_least=True,
        above=True,
        blocks="never",
        blocks_from="min_reference",
    ),
    "calibration": Rule(
        "Expected calibration error against people's labels.",
        "the judge is surer, or less sure, than it is right: soft labels carry that into the reward model",
        "max_ece",
        blocks="never",
    ),
    "calibration_verdicts": Rule(
        "As calibration, against people's verdicts on pairs of this home.",
        "the judge is surer, or less sure, than it is right: soft labels carry that into the reward model",
        "max_ece",
        blocks="never",
    ),
    "length_correlation": Rule(
        "Rank correlation, without its sign, of p_a and how much longer response A is.",
        "see whether length is what the principle asks for; a policy trained on these labels will grow or shrink",
        "max_length_correlation",
        blocks="never",
    ),
    "undecided_labels": Rule(
        "Share of labels within 0.45-0.55.",
        "the judge sees little difference: pairs too alike, a weak judge, or two orders that cancel out",
        "warn_undecided",
        blocks="never",
        blocks_past="max_undecided",
    ),
    "rejected_pairs": Rule(
        "Share of drawn pairs that were refused before they were judged.",
        "read the reasons in rejected_rows of response_pairs: identical or unfinished answers want other settings",
        "warn_rejected",
        blocks="never",
        blocks_past="max_rejected",
    ),
    "failed_judgements": Rule(
        "Share of pairs, those of the reference among them, that were put to the judge and have no label.",
        "read the reasons in rejected_rows: too long for the judge, no finite log-probability, an endpoint's errors",
        "warn_failed",
        blocks="never",
        blocks_past="max_failed",
    ),
    "judge_in_ancestry": Rule(
        "Number of models that the policy was made from and that are the judge itself: it may favour its own kind.",
        "take another judge, or accept it with audits.accept_shared_ancestry=true",
        0.0,
        blocks="never",
    ),
}


def make_verdict(
    audit: str, value: float | None, count: int | None, note: str, limits: AuditsSettings
) -> dict[str, Any]:
    """One row {audit, passed, value, threshold, note, count, blocks}. `blocks`: a failure would stop training.

    `count` is the number of rows behind the value; None where there is nothing to audit (no people's labels are given,
    no opposite is declared), which passes. A value that is None or not finite fails.
    """
    rule = RULES[audit]
    limit = _number(rule.limit, limits)
    if value is not None and not math.isfinite(value):
        value = None
    passed = value is not None and (value >= limit if rule.at_least else value <= limit)
    passed = passed and not (rule.above and value == limit)
    blocks = rule.blocks == "always"
    if audit == "judge_in_ancestry":
        passed = passed or (value is not None and limits.accept_shared_ancestry)
    if rule.blocks_from is not None:
        blocks = count is not None and count >= _number(rule.blocks_from, limits)
    if rule.blocks_past is not None:
        last = _number(rule.blocks_past, limits)
        blocks = value is None or value > last
        limit = last if blocks else limit
        passed = passed and not blocks
    if count is None:
        passed, blocks = True, False
    return {
        "audit": audit,
        "passed": passed,
        "value": value,
        "threshold": limit,
        "note": note,
        "count": count,
        "blocks": blocks,
    }


def under_limits(verdicts: Sequence[Mapping[str, Any]], settings: AuditsSettings) -> list[dict[str, Any]]:
    """Stored rows of `audits.audit` as they would be under these settings, in the order of RULES.

    An audit that is missing among them was never made, and fails. Without any row there is none to tell.
    """
    stored = {row["audit"]: row for row in verdicts}
    never = {"value": None, "count": 0, "note": "never audited"}
    found = {name: stored.get(name, never) for name in RULES} if stored else {}
    return [make_verdict(name, row["value"], row["count"], row["note"], settings) for name, row in found.items()]


def failed_audits(verdicts: Iterable[Mapping[str, Any]]) -> str:
    """The blocking failures, each with what was measured, the limit and the setting that moves it; empty if none."""
    return ", ".join(f"{row['audit']} ({measured(row)})" for row in verdicts if row["blocks"] and not row["passed"])


def refusal(stored: Sequence[Mapping[str, Any]], code_version: int, settings: AuditsSettings) -> str:
    """Why no model may be trained on a preference set of this code version and these stored verdicts; empty where one
    may. Whether that is enforced is the caller's."""
    if not stored:
        return "it was never audited; materialize it anew"
    if code_version < RULES_SINCE:
        return OLDER_RULES
    failed = failed_audits(under_limits(stored, settings))
    return f"failed audits: {failed}" if failed else ""


def measured(row: Mapping[str, Any]) -> str:
    """`0.61, limit 0.4 by audits.max_flip_rate`."""
    value = "nothing to measure" if row["value"] is None else f"{row['value']:.6g}"
    name = setting(row)
    return f"{value}, limit {row['threshold']:.6g}" + (f" by audits.{name}" if name else "")


def setting(row: Mapping[str, Any]) -> str | None:
    """The setting that holds the limit which this row was held against; None for a fixed one."""
    rule = RULES[row["audit"]]
    if rule.blocks_past is not None and row["blocks"]:
        return rule.blocks_past
    return rule.limit if isinstance(rule.limit, str) else None


def _number(limit: float | str, limits: AuditsSettings) -> float:
    return float(getattr(limits, limit)) if isinstance(limit, str) else limit
