"""People's verdicts in place of a judge's labels. Reading them belongs to `ingest.human_verdicts`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from rlaif_assets.records import HumanVerdict, Label, Pair, Prompt
from rlaif_assets.store.fingerprint import canonical_json, row_id
from rlaif_assets.store.judgements import judgements_hash


class Overridden(NamedTuple):
    """`labels` in the order of the pairs; `human` of them are people's; `unmatched` verdicts are about no pair here."""

    labels: list[Label]
    human: int
    unmatched: int


def override(
    labels: Sequence[Label], verdicts: Sequence[HumanVerdict], pairs: Sequence[Pair], prompts: Mapping[str, Prompt]
) -> Overridden:
    """Puts people's labels in the place of the judge's, also where the judge gave none.

    `p_a` is the mean over the annotators of each one's last verdict (`time`; of the same time, the later in the file).
    A verdict on the pair's texts with the responses the other way round counts as 1 - p_a.
    """
    found, unmatched = _by_pair(verdicts, pairs, prompts)
    by_judge = {label.pair_id: label for label in labels}
    chosen = [
        _human_label(pair.pair_id, found[pair.pair_id], by_judge.get(pair.pair_id))
        if pair.pair_id in found
        else by_judge.get(pair.pair_id)
        for pair in pairs
    ]
    return Overridden([label for label in chosen if label is not None], len(found), unmatched)


def _by_pair(
    verdicts: Sequence[HumanVerdict], pairs: Sequence[Pair], prompts: Mapping[str, Prompt]
) -> tuple[dict[str, dict[str, HumanVerdict]], int]:
    """By pair id and annotator the last verdict, its p_a that of the pair's response A; and how many had no pair."""
    ids = {pair.pair_id for pair in pairs}
    by_texts: dict[tuple[str, str, str], tuple[str, bool]] = {}
    if any(verdict.pair_id is None for verdict in verdicts):
        for pair in pairs:
            messages = canonical_json(prompts[pair.prompt_id].messages)
            a, b = pair.response_a.strip(), pair.response_b.strip()
            by_texts[messages, b, a] = pair.pair_id, True
            by_texts[messages, a, b] = pair.pair_id, False
    found: dict[str, dict[str, HumanVerdict]] = {}
    unmatched = 0
    for verdict in sorted(verdicts, key=lambda verdict: verdict.time):
        pair_id, swapped = verdict.pair_id, False
        if pair_id is None:
            texts = canonical_json(verdict.messages), verdict.response_a or "", verdict.response_b or ""
            pair_id, swapped = by_texts.get(texts, (None, False))
        if pair_id is None or pair_id not in ids:
            unmatched += 1
            continue
        turned = replace(verdict, p_a=1 - verdict.p_a) if swapped else verdict
        found.setdefault(pair_id, {})[verdict.annotator] = turned
    return found, unmatched


def _human_label(pair_id: str, verdicts: Mapping[str, HumanVerdict], judged: Label | None) -> Label:
    rows = [verdicts[annotator] for annotator in sorted(verdicts)]
    verdict_ids = tuple(row.verdict_id for row in rows)
    return Label(
        label_id=row_id("human_label", pair_id, verdict_ids),
        pair_id=pair_id,
        principle_id=judged.principle_id if judged else None,
        p_a=math.fsum(row.p_a for row in rows) / len(rows),
        judgement_ids=judged.judgement_ids if judged else (),
        flipped=None,
        source="human",
        annotator=", ".join(sorted(verdicts)),
        verdict_ids=verdict_ids,
        judgements_hash=judged.judgements_hash if judged else judgements_hash([]),
    )
