"""How two policies differ: in what they were made from, and in what they do. Reads the warehouse alone."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlaif_assets.evaluation.report import SUBJECTS
from rlaif_assets.records import PASSPORT
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.lineage import ancestry
from rlaif_assets.store.trace import find_snapshot
from rlaif_assets.store.warehouse import Row, SnapshotRecord, Warehouse

# What a row is, beside what may be said anew of the same one: asset, table, its id, and the columns that may change.
TABLES: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("red_team_prompts", "prompts", "prompt_id", ("split", "kind")),
    ("helpful_prompts", "prompts", "prompt_id", ("split", "kind")),
    ("critique_constitution", "critique_examples", "example_id", ()),
    ("judging_constitution", "judging_examples", "example_id", ()),
    ("community_votes", "community_pairs", "pair_id", ()),
    ("helpfulness_preferences", "comparisons", "comparison_id", ("p_a", "split")),
    ("human_verdicts", "human_verdicts", "verdict_id", ("p_a",)),
    ("revised_responses", "revisions", "revision_id", ()),
    ("sl_cai_checkpoint", "answers", "answer_id", ()),
    ("sl_cai_checkpoint", "training_rows", "row_id", ("role",)),
    ("response_pairs", "pairs", "pair_id", ()),
    ("harmlessness_preferences", "labels", "pair_id", ("p_a", "principle_id", "annotator")),
)
CONSTITUTIONS = (
    ("critique_constitution", "critique_principles", ("critique_request", "revision_request")),
    ("judging_constitution", "judging_principles", ("text", "counter")),
)
RANK = {"incoherent": 0, "harmful": 1, "evasive": 2, "engaged": 3}
NO_SETTING = "(none)"
ASKED = ("samples", "temperature", "max_new_tokens", "max_prompts", "seed")  # how an evaluation got its answers
FINGERPRINT = 32  # digits of one that a checkpoint's folder is named by


def diff_policies(warehouse: Warehouse, a: str, b: str, split: str, answers: int = 5) -> dict[str, Any]:
    """{a, b, same, only, versions, content, weights, settings, code_versions, constitution, judge, rows, evaluations,
    results, answers, notes}.

    versions: {asset: [a's, b's]}, snapshot ids of the assets of both that differ; an ancestry may hold several of one
    asset. content: the same, of those whose settings, inputs and code version are equal. weights: {asset: [a's, b's]},
    the first 32 digits of models' fingerprints, external ones too, where they differ. settings: {asset: {field: [a's,
    b's]}} of what both have; code_versions: {asset: [a's, b's]}; of several versions with different values a list of
    these. constitution: one entry per principle (by name) that was added, removed or changed, {principle, table,
    change, words}; judge: {a, b} where the judges differ; rows: {asset: {table: {added, removed, changed}}} of assets
    whose snapshots differ, over all their versions, changed being those of which something else is said (another label,
    split or role); evaluations: {a, b}, ids of those whose results and answers are told: the newest two that were made
    with equal settings, else the newest; results: {measure: {a, b}} with [value, low, high]; answers: the prompts whose
    answers differ most, side by side. notes say what could not be compared, or not well. Raises StoreError.
    """
    sides = find_snapshot(warehouse, a), find_snapshot(warehouse, b)
    if sides[0].asset != sides[1].asset:
        kinds = " and ".join(f"{one.snapshot_id} is of {one.asset}" for one in sides)
        raise StoreError(f"{kinds}: name two of one asset")
    made = tuple(_versions(warehouse, side.snapshot_id) for side in sides)
    found: dict[str, Any] = {"a": _named(sides[0]), "b": _named(sides[1]), "notes": []}
    both = sorted(made[0].keys() & made[1].keys())
    found["only"] = {"a": sorted(made[0].keys() - made[1].keys()), "b": sorted(made[1].keys() - made[0].keys())}
    ids = {name: [[one.snapshot_id for one in side[name]] for side in made] for name in both}
    found["versions"] = {name: two for name, two in ids.items() if set(two[0]) != set(two[1])}
    found["same"] = [name for name in both if name not in found["versions"]]
    pairs = {name: (made[0][name], made[1][name]) for name in found["versions"]}
    found["content"] = {name: found["versions"][name] for name, two in pairs.items() if _made_alike(*two)}
    found["weights"] = {
        name: told
        for name, two in pairs.items()
        if (told := _differing(*([_weights(warehouse, one) for one in side] for side in two)))
    }
    found["settings"] = {name: told for name, two in pairs.items() if (told := _settings(*two))}
    found["code_versions"] = {
        name: versions
        for name, two in pairs.items()
        if (versions := _differing(*([one.code_version for one in side] for side in two)))
    }
    found["constitution"] = [
        entry
        for asset, table, columns in CONSTITUTIONS
        if asset in pairs
        for entry in _principles(warehouse, pairs[asset], table, columns)
    ]
    found["judge"] = _judges(made)
    found["rows"] = {}
    for asset, table, column, changeable in TABLES:
        if asset in pairs:
            found["rows"].setdefault(asset, {})[table] = _rows(warehouse, pairs[asset], table, column, changeable)
    found |= _results(warehouse, sides, split, answers, found["notes"])
    return found


def _named(record: SnapshotRecord) -> dict[str, str]:
    return {"snapshot_id": record.snapshot_id, "asset": record.asset, "created_at": record.created_at}


def _versions(warehouse: Warehouse, snapshot_id: str) -> dict[str, list[SnapshotRecord]]:
    """The ancestry by asset; models of one policy may have been trained on different versions of an input."""
    found: dict[str, list[SnapshotRecord]] = {}
    for record in ancestry(warehouse, snapshot_id):
        found.setdefault(record.asset, []).append(record)
    return found


def _differing(a: Sequence[Any], b: Sequence[Any]) -> list[Any] | None:
    """[a's, b's] where they have different values, in any order; the value itself where a side has one."""
    sides = [[value for place, value in enumerate(side) if value not in side[:place]] for side in (a, b)]
    if all(value in sides[1] for value in sides[0]) and len(sides[0]) == len(sides[1]):
        return None
    return [side[0] if len(side) == 1 else side for side in sides]


def _settings(a: Sequence[SnapshotRecord], b: Sequence[SnapshotRecord]) -> dict[str, list[Any]]:
    names = sorted({name for one in (*a, *b) for name in one.settings})
    two = {
        name: _differing(*([one.settings.get(name, NO_SETTING) for one in side] for side in (a, b))) for name in names
    }
    return {name: values for name, values in two.items() if values}


def _made_alike(a: Sequence[SnapshotRecord], b: Sequence[SnapshotRecord]) -> bool:
    how = [[(one.settings, one.inputs, one.code_version) for one in side] for side in (a, b)]
    return _differing(*how) is None


def _weights(warehouse: Warehouse, record: SnapshotRecord) -> str | None:
    """The fingerprint of the snapshot's model, also of one that was removed; None where it is of none."""
    if "external_models" in record.row_counts:
        return warehouse.rows("external_models", record.snapshot_id)[0]["fingerprint"][:FINGERPRINT]
    return record.path.rpartition("/")[2] if record.path else None


def _principles(
    warehouse: Warehouse, two: Sequence[Sequence[SnapshotRecord]], table: str, columns: Sequence[str]
) -> Iterable[dict[str, Any]]:
    """Reworded principles are those of one name; a name that several share is compared as a whole."""
    texts: list[dict[str, str]] = []
    for records in two:
        by_name: dict[str, list[str]] = {}
        for row in _all_rows(warehouse, table, records):
            text = " / ".join(str(row[column]) for column in columns if row[column])
            if text not in by_name.setdefault(row["name"], []):
                by_name[row["name"]].append(text)
        texts.append({name: " | ".join(found) for name, found in by_name.items()})
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


def _judges(made: Sequence[Mapping[str, Sequence[SnapshotRecord]]]) -> dict[str, Any] | None:
    """Fingerprint, template and settings of a passport of each, where any differs."""
    told: list[list[dict[str, Any]]] = []
    for side in made:
        passports = [record.metrics.get(PASSPORT) or {} for record in side.get("harmlessness_preferences", ())] or [{}]
        told.append(
            [
                {name: one.get(name) for name in ("passport_id", "judge", "template", "settings", "model")}
                for one in passports
            ]
        )
    what = [[{**one, "passport_id": None} for one in side] for side in told]
    if _differing(*what) is None:
        return None
    own = [[one for one, content in zip(told[i], what[i], strict=True) if content not in what[1 - i]] for i in (0, 1)]
    return {side: (own[i] or told[i])[-1] for i, side in enumerate("ab")}


def _all_rows(warehouse: Warehouse, table: str, records: Sequence[SnapshotRecord]) -> Iterable[Row]:
    return (row for record in records for row in warehouse.rows(table, record.snapshot_id))


def _rows(
    warehouse: Warehouse,
    two: Sequence[Sequence[SnapshotRecord]],
    table: str,
    column: str,
    changeable: Sequence[str],
) -> dict[str, Any]:
    sides: list[dict[str, set[tuple[Any, ...]]]] = [{}, {}]  # what is said of each row
    for said, records in zip(sides, two, strict=True):
        for row in _all_rows(warehouse, table, records):
            said.setdefault(row[column], set()).add(tuple(row[name] for name in changeable))
    common = sides[0].keys() & sides[1].keys()
    return {
        "added": sorted(sides[1].keys() - common),
        "removed": sorted(sides[0].keys() - common),
        "changed": sorted(one for one in common if sides[0][one] != sides[1][one]),
    }


def _results(
    warehouse: Warehouse, two: Sequence[SnapshotRecord], split: str, count: int, notes: list[str]
) -> dict[str, Any]:
    nothing = {"evaluations": {}, "results": {}, "answers": []}
    subject = SUBJECTS.get(two[0].asset)
    if subject is None:
        notes.append(f"{two[0].asset} is no policy: there are no results to compare")
        return nothing
    evaluations = _evaluations(warehouse, two, notes)
    if len(evaluations) < len(two):
        return nothing
    rates = []
    answers = []
    for evaluation in evaluations:
        rows = warehouse.rows("evaluation_rates", evaluation.snapshot_id)
        rates.append(
            {
                f"{row['subject']}/{row['measure']}": [row["value"], row["low"], row["high"]]
                for row in rows
                if row["split"] == split and row["subject"].partition("_vs_")[0] == subject
            }
        )
        answers.append(
            {
                (row["prompt_id"], row["sample"]): row
                for row in warehouse.rows("evaluation_answers", evaluation.snapshot_id)
                if row["policy"] == subject and row["split"] == split
            }
        )
    names = sorted(rates[0].keys() | rates[1].keys())
    none = [None, None, None]
    results = {name: {"a": rates[0].get(name, none), "b": rates[1].get(name, none)} for name in names}
    return {
        "evaluations": {side: one.snapshot_id for side, one in zip("ab", evaluations, strict=True)},
        "results": {name: values for name, values in results.items() if values["a"] != values["b"]},
        "answers": _side_by_side(warehouse, answers, count),
    }


def _evaluations(warehouse: Warehouse, two: Sequence[SnapshotRecord], notes: list[str]) -> list[SnapshotRecord]:
    """The newest of each that were made with equal settings, else the newest; of one alone that was evaluated."""
    every = list(reversed(warehouse.list("policy_evaluation")))
    of = [[one for one in every if one.inputs.get(side.asset) == side.snapshot_id] for side in two]
    for side, record, found in zip("ab", two, of, strict=True):
        if not found:
            notes.append(f"{side}: {record.asset} {record.snapshot_id} was never evaluated")
    newest: dict[tuple[Any, ...], SnapshotRecord] = {}
    for evaluation in of[1]:
        newest.setdefault(_asked(evaluation), evaluation)
    for evaluation in of[0]:
        if other := newest.get(_asked(evaluation)):
            return [evaluation, other]
    chosen = [found[0] for found in of if found]
    if len(chosen) == len(two):
        values = zip(ASKED, *map(_asked, chosen), strict=True)
        told = ", ".join(f"{name} {a} -> {b}" for name, a, b in values if a != b)
        notes.append(f"the evaluations were made with different settings, which changes results too: {told}")
    return chosen


def _asked(evaluation: SnapshotRecord) -> tuple[Any, ...]:
    return tuple(evaluation.settings.get(name, NO_SETTING) for name in ASKED)


def _side_by_side(
    warehouse: Warehouse,
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
