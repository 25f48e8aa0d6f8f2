"""How two policies differ: in what they were made from, and in what they do. Reads the warehouse alone."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlaif_assets.evaluation.report import evaluation_of
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.lineage import ancestry
from rlaif_assets.store.trace import PASSPORT, find_snapshot
from rlaif_assets.store.warehouse import Row, SnapshotRecord, Warehouse

# What a row is, beside what may be said anew of the same one: asset, table, its id, and the columns that may change.
TABLES: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("red_team_prompts", "prompts", "prompt_id", ()),
    ("helpful_prompts", "prompts", "prompt_id", ()),
    ("community_votes", "community_pairs", "pair_id", ()),
    ("helpfulness_preferences", "comparisons", "comparison_id", ("p_a",)),
    ("human_verdicts", "human_verdicts", "verdict_id", ("p_a",)),
    ("revised_responses", "revisions", "revision_id", ()),
    ("response_pairs", "pairs", "pair_id", ()),
    ("harmlessness_preferences", "labels", "pair_id", ("p_a", "principle_id", "annotator")),
)
CONSTITUTIONS = (
    ("critique_constitution", "critique_principles", ("critique_request", "revision_request")),
    ("judging_constitution", "judging_principles", ("text", "counter")),
)
RANK = {"incoherent": 0, "harmful": 1, "evasive": 2, "engaged": 3}
NO_SETTING = "(none)"


def diff_policies(warehouse: Warehouse, a: str, b: str, split: str, answers: int = 5) -> dict[str, Any]:
    """{a, b, same, only, settings, code_versions, constitution, judge, rows, results, answers, notes}.

    settings: {asset: {field: [a's, b's]}} of what both have; code_versions: {asset: [a's, b's]}; constitution: one
    entry per principle (by name) that was added, removed or changed, {principle, table, change, words};
    judge: {a, b} where the judges differ; rows: {asset: {table, added, removed, changed}} of assets whose snapshots
    differ, changed being those whose label is another one; results: {measure: {a, b}} with [value, low, high];
    answers: the prompts whose answers differ most, side by side. notes say what could not be compared.
    Raises StoreError.
    """
    sides = find_snapshot(warehouse, a), find_snapshot(warehouse, b)
    if sides[0].asset != sides[1].asset:
        kinds = " and ".join(f"{one.snapshot_id} is of {one.asset}" for one in sides)
        raise StoreError(f"{kinds}: name two of one asset")
    made = tuple({one.asset: one for one in ancestry(warehouse, side.snapshot_id)} for side in sides)
    found: dict[str, Any] = {"a": _named(sides[0]), "b": _named(sides[1]), "notes": []}
    both = sorted(made[0].keys() & made[1].keys())
    found["only"] = {"a": sorted(made[0].keys() - made[1].keys()), "b": sorted(made[1].keys() - made[0].keys())}
    changed = [name for name in both if made[0][name].snapshot_id != made[1][name].snapshot_id]
    found["same"] = [name for name in both if name not in changed]
    pairs = {name: (made[0][name], made[1][name]) for name in changed}
    found["settings"] = {name: told for name, two in pairs.items() if (told := _settings(*two))}
    found["code_versions"] = {
        name: [one.code_version for one in two]
        for name, two in pairs.items()
        if two[0].code_version != two[1].code_version
    }
    found["constitution"] = [
        entry
        for asset, table, columns in CONSTITUTIONS
        if asset in pairs
        for entry in _principles(warehouse, pairs[asset], table, columns)
    ]
    found["judge"] = _judges(made)
    found["rows"] = {
        asset: {"table": table, **_rows(warehouse, pairs[asset], table, column, changeable)}
        for asset, table, column, changeable in TABLES
        if asset in pairs
    }
    found |= _results(warehouse, sides, split, answers, found["notes"])
    return found


def _named(record: SnapshotRecord) -> dict[str, str]:
    return {"snapshot_id": record.snapshot_id, "asset": record.asset, "created_at": record.created_at}


def _settings(a: SnapshotRecord, b: SnapshotRecord) -> dict[str, list[Any]]:
    names = sorted(a.settings.keys() | b.settings.keys())
    two = {name: [a.settings.get(name, NO_SETTING), b.settings.get(name, NO_SETTING)] for name in names}
    return {name: values for name, values in two.items() if values[0] != values[1]}


def _principles(
    warehouse: Warehouse, two: Sequence[SnapshotRecord], table: str, columns: Sequence[str]
) -> Iterable[dict[str, Any]]:
    """Reworded principles are those of one name; a name that several share is compared as a whole."""
    texts: list[dict[str, str]] = []
    for record in two:
        by_name: dict[str, str] = {}
        for row in warehouse.rows(table, record.snapshot_id):
            text = " / ".join(str(row[column]) for column in columns if row[column])
            by_name[row["name"]] = f"{by_name[row['name']]} | {text}" if row["name"] in by_name else text
        texts.append(by_name)
    for name in sorted(texts[0].keys() | texts[1].keys()):
        before, after = texts[0].get(name), texts[1].get(name)
        if before != after:
            change = "added" if before is None else "removed" if after is None else "changed"
            told = {"principle": name, "table": table, "change": change}
            yield told | {"words": word_diff(before or "", after or "")}


def word_diff(before: str, after: str) -> list[list[str]]:
    """[[sign, words]] in order; the sign is " " for what both say, "-" for the first's alone, "+" for the second's."""
    old, new = before.split(), after.split()
    found: list[list[str]] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            found.append([" ", " ".join(old[i:j])])
            continue
        found += [["-", " ".join(old[i:j])]] if i < j else []
        found += [["+", " ".join(new[k:m])]] if k < m else []
    return found


def _judges(made: Sequence[Mapping[str, SnapshotRecord]]) -> dict[str, Any] | None:
    """Fingerprint, template and settings of both passports, where any differs."""
    told = []
    for side in made:
        labels = side.get("harmlessness_preferences")
        passport = (labels.metrics.get(PASSPORT) if labels else None) or {}
        told.append({name: passport.get(name) for name in ("passport_id", "judge", "template", "settings", "model")})
    same = all(told[0][name] == told[1][name] for name in told[0] if name != "passport_id")
    return None if same else {"a": told[0], "b": told[1]}


def _rows(
    warehouse: Warehouse, two: Sequence[SnapshotRecord], table: str, column: str, changeable: Sequence[str]
) -> dict[str, Any]:
    sides: list[dict[str, Row]] = [
        {row[column]: row for row in warehouse.rows(table, record.snapshot_id)} for record in two
    ]
    common = sides[0].keys() & sides[1].keys()
    changed = [one for one in common if any(sides[0][one][name] != sides[1][one][name] for name in changeable)]
    return {
        "added": sorted(sides[1].keys() - common),
        "removed": sorted(sides[0].keys() - common),
        "changed": sorted(changed),
    }


def _results(
    warehouse: Warehouse, two: Sequence[SnapshotRecord], split: str, count: int, notes: list[str]
) -> dict[str, Any]:
    evaluations: list[SnapshotRecord | None] = [evaluation_of(warehouse, record) for record in two]
    for side, record, evaluation in zip("ab", two, evaluations, strict=True):
        if evaluation is None:
            notes.append(f"{side}: {record.asset} {record.snapshot_id} was never evaluated")
    if None in evaluations:
        return {"results": {}, "answers": []}
    rates = []
    answers = []
    for evaluation in evaluations:
        assert evaluation is not None
        rows = warehouse.rows("evaluation_rates", evaluation.snapshot_id)
        rates.append(
            {
                f"{row['subject']}/{row['measure']}": [row["value"], row["low"], row["high"]]
                for row in rows
                if row["split"] == split and "ppo" in row["subject"]
            }
        )
        answers.append(
            {
                (row["prompt_id"], row["sample"]): row
                for row in warehouse.rows("evaluation_answers", evaluation.snapshot_id)
                if row["policy"] == "ppo" and row["split"] == split
            }
        )
    names = sorted(rates[0].keys() | rates[1].keys())
    nothing = [None, None, None]
    results = {name: {"a": rates[0].get(name, nothing), "b": rates[1].get(name, nothing)} for name in names}
    return {
        "results": {name: values for name, values in results.items() if values["a"] != values["b"]},
        "answers": _side_by_side(warehouse, evaluations, answers, count),
    }


def _side_by_side(
    warehouse: Warehouse,
    evaluations: Sequence[SnapshotRecord | None],
    answers: Sequence[Mapping[tuple[str, int], Row]],
    count: int,
) -> list[dict[str, Any]]:
    """Answers to one prompt whose verdicts are furthest apart, then those whose words are."""

    def distance(key: tuple[str, int]) -> tuple[int, float]:
        one, other = answers[0][key], answers[1][key]
        ranks = [RANK.get(str(row["verdict"]), 0) for row in (one, other)]
        words = difflib.SequenceMatcher(None, one["text"].split(), other["text"].split(), autojunk=False).ratio()
        return abs(ranks[0] - ranks[1]), 1 - words

    both = [key for key in answers[0] if key in answers[1] and answers[0][key]["text"] != answers[1][key]["text"]]
    chosen: dict[str, tuple[str, int]] = {}  # a prompt once
    for key in sorted(both, key=lambda key: (*(-part for part in distance(key)), key)):
        chosen.setdefault(key[0], key)
    found = []
    for key in list(chosen.values())[:count]:
        prompt = warehouse.where("prompts", "prompt_id", key[0])
        messages = prompt[0]["messages"] if prompt else []
        told = {
            side: {"text": rows[key]["text"], "verdict": rows[key]["verdict"]}
            for side, rows in zip("ab", answers, strict=True)
        }
        found.append({"prompt_id": key[0], "messages": messages, "sample": key[1], **told})
    return found
