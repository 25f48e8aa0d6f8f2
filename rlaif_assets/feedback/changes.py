"""What a relabelling changed: the labels of two snapshots side by side. Why they changed is told by `relabelling`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlaif_assets.records import Judgement, Label, LabelChange, LabelFlip, Pair, Prompt

UNKNOWN = "unknown"
SHOWN = 1500  # characters of a text that the markdown shows
Scope = Literal["all", "principle", "category"]


@dataclass(frozen=True)
class Labelled:
    """A snapshot's labels, their judgements by id, and by id the names of the principles that it was made under."""

    labels: Sequence[Label]
    judgements: Mapping[str, Judgement]
    principles: Mapping[str, str]


def compare(
    old: Labelled, new: Labelled, pairs: Sequence[Pair], prompts: Mapping[str, Prompt], largest: int
) -> tuple[list[LabelChange], list[LabelFlip]]:
    """Changes of all labels, by principle and by harm category, and the `largest` flips, those that moved most first.

    Compared are the pairs that both snapshots label. A label is flipped when it is on the other side of 0.5. By
    principle the judge's answers under it are compared, over the principle's orders, so people's labels do not count
    there; a reworded principle is the one of its name.
    """
    before = {label.pair_id: label for label in old.labels}
    both = [(before[label.pair_id], label) for label in new.labels if label.pair_id in before]
    by_id = {pair.pair_id: pair for pair in pairs}
    categories: dict[str, list[tuple[float, float]]] = {}
    for was, now in both:
        category = prompts[by_id[now.pair_id].prompt_id].category or UNKNOWN
        categories.setdefault(category, []).append((was.p_a, now.p_a))
    changes = [_change("all", "", [(was.p_a, now.p_a) for was, now in both])]
    principles = _by_principle(old, new)
    changes += [_change("principle", name, principles[name]) for name in sorted(principles)]
    changes += [_change("category", name, categories[name]) for name in sorted(categories)]
    flips = [(was, now) for was, now in both if flipped(was.p_a, now.p_a)]
    flips.sort(key=lambda pair: (-abs(pair[1].p_a - pair[0].p_a), pair[1].pair_id))
    return changes, [_flip(was, now, old, new, by_id, prompts) for was, now in flips[:largest]]


def change_metrics(changes: Sequence[LabelChange], old: Labelled, new: Labelled) -> dict[str, Any]:
    """{labels, flipped, flipped_share, mean_change} of the compared labels, and how many labels came and went."""
    whole = next(change for change in changes if change.scope == "all")
    was, now = ({label.pair_id for label in side.labels} for side in (old, new))
    return {
        "labels": whole.labels,
        "flipped": whole.flipped,
        "flipped_share": whole.flipped / whole.labels if whole.labels else None,
        "mean_change": whole.mean_change,
        "added": len(now - was),
        "removed": len(was - now),
    }


def flips_markdown(flips: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `label_flips` for a person: old and new side by side, with the texts below. Texts are shown as code."""
    if not flips:
        return "No label flipped."
    return "\n\n".join(_shown(number, flip) for number, flip in enumerate(flips, 1))


def _by_principle(old: Labelled, new: Labelled) -> dict[str, list[tuple[float, float]]]:
    """(old p_a, new p_a) of the pairs that both judged under a principle, by its name."""
    was, now = _p_a_by_principle(old), _p_a_by_principle(new)
    found: dict[str, list[tuple[float, float]]] = {}
    for (name, pair_id), p_a in now.items():
        if (name, pair_id) in was:
            found.setdefault(name, []).append((was[name, pair_id], p_a))
    return found


def _p_a_by_principle(side: Labelled) -> dict[tuple[str, str], float]:
    values: dict[tuple[str, str], list[float]] = {}
    for label in side.labels:
        for row in (side.judgements[one] for one in label.judgement_ids if label.source == "ai"):
            name = side.principles.get(row.principle_id, row.principle_id)
            values.setdefault((name, label.pair_id), []).append(row.p_a)
    return {key: math.fsum(found) / len(found) for key, found in values.items()}


def _change(scope: Scope, name: str, values: Sequence[tuple[float, float]]) -> LabelChange:
    moved = [abs(new - old) for old, new in values]
    count = sum(flipped(old, new) for old, new in values)
    return LabelChange(scope, name, len(values), count, math.fsum(moved) / len(moved) if moved else None)


def flipped(old: float, new: float) -> bool:
    """Whether two p_a are on different sides of 0.5."""
    return (old - 0.5) * (new - 0.5) < 0


def _flip(
    was: Label,
    now: Label,
    old: Labelled,
    new: Labelled,
    pairs: Mapping[str, Pair],
    prompts: Mapping[str, Prompt],
) -> LabelFlip:
    pair = pairs[now.pair_id]
    prompt = prompts[pair.prompt_id]
    return LabelFlip(
        pair_id=pair.pair_id,
        prompt="\n\n".join(f"{message['role']}: {message['content']}" for message in prompt.messages),
        response_a=pair.response_a,
        response_b=pair.response_b,
        category=prompt.category,
        old_principle=old.principles.get(was.principle_id or "", was.principle_id),
        new_principle=new.principles.get(now.principle_id or "", now.principle_id),
        old_source=was.source,
        new_source=now.source,
        old_p_a=was.p_a,
        new_p_a=now.p_a,
    )


def _shown(number: int, flip: Mapping[str, Any]) -> str:
    rows = [
        f"| {side} | {flip[f'{side}_p_a']:.3f} | {'A' if flip[f'{side}_p_a'] > 0.5 else 'B'} | "
        f"{_cell(flip[f'{side}_principle'])} | {flip[f'{side}_source']} |"
        for side in ("old", "new")
    ]
    table = ["| | p(A) | better | principle | by |", "| --- | ---: | --- | --- | --- |", *rows]
    parts = [f"**{number}.** pair `{flip['pair_id']}`", "\n".join(table)]
    parts += [f"{name}:\n\n{_code(flip[key])}" for name, key in TEXTS]
    return "\n\n".join(parts)


TEXTS = (("Prompt", "prompt"), ("Response A", "response_a"), ("Response B", "response_b"))


def _cell(text: str | None) -> str:
    return (text or "several").replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    """Indented, so that nothing in a model's text is read as markup."""
    cut = text if len(text) <= SHOWN else text[:SHOWN] + " ..."
    return "\n".join(f"    {line}" for line in cut.splitlines() or [""])
