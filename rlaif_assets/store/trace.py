"""What a policy was made from, where a row came from, and what a principle reached: read from the warehouse alone.

Neither Dagster nor MLflow is asked; their run ids are in the snapshots. Everything returned can be written as JSON.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif_assets.records import PASSPORT
from rlaif_assets.settings import nearest
from rlaif_assets.store import registry
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.fingerprint import row_id as id_of
from rlaif_assets.store.lineage import ancestry
from rlaif_assets.store.mlflow_links import database_missing, missing_runs
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse, rows_where

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as Connection

POLICY = "ppo_policy"
# The tables that hold rows with an id of their own, and its column; rows of the others are named by what they are of.
ROW_TABLES = {
    "prompts": "prompt_id",
    "revisions": "revision_id",
    "answers": "answer_id",
    "pairs": "pair_id",
    "labels": "label_id",
    "human_verdicts": "verdict_id",
    "comparisons": "comparison_id",
    "community_pairs": "pair_id",
    "community_answers": "answer_id",
    "evaluation_answers": "answer_id",
}
ID_COLUMNS = ROW_TABLES | {"judgements": "judgement_id", "responses": "response_id"}
# Of labels; a judgement is of its label's pair, and by that column the most are left out before a list is read.
NAMES_JUDGEMENT = "pair_id = $pair_id AND list_contains(from_json(judgement_ids, '[\"VARCHAR\"]'), $id)"
PMP_PARTS = ("better", "worse")  # the two examples of a community pair, see `training.pmp`
PRINCIPLES = {"judging_principles": "judging", "critique_principles": "critique"}  # what each table's are called


def find_snapshot(warehouse: Warehouse, name: str) -> SnapshotRecord:
    """A snapshot id, or its beginning (8 digits or more); a version of the registry (`rlaif-policy/3`, `@champion`,
    `rlaif-policy@champion`); an asset's name for its current snapshot; or the folder of a checkpoint in this home, from
    the current folder or from the home, also of one that was removed.

    Raises StoreError with the nearest names.
    """
    if not warehouse.path.exists():
        raise StoreError(f"{warehouse.home} holds no snapshots yet: run `rlaif run --home {warehouse.home}` first")
    known = registry.versions(warehouse)
    for version in known:
        names = {f"{version.name}/{version.version}", *(f"{version.name}@{alias}" for alias in version.aliases)}
        if name in names or name in {f"@{alias}" for alias in version.aliases}:
            return warehouse.get(version.snapshot_id)
    found = warehouse.named(name)
    if not found:
        found = _of_folder(warehouse, name)
        if len(found) > 1:
            ids = ", ".join(one.snapshot_id for one in found)
            raise StoreError(f"{name} is the folder of {len(found)} snapshots with equal weights; give an id: {ids}")
    if len(found) == 1:
        return found[0]
    if found:
        raise StoreError(f"{name} is the beginning of {len(found)} snapshot ids: give more of it")
    current = warehouse.current(name)
    if current is not None:
        return current
    names = [f"{one.name}/{one.version}" for one in known] + [f"@{alias}" for one in known for alias in one.aliases]
    raise StoreError(
        f"no policy {name!r} in {warehouse.path}: {nearest(name, names) if names else 'none is registered'}; or give "
        "a snapshot id, an asset's name, or a checkpoint folder of this home"
    )


def _of_folder(warehouse: Warehouse, name: str) -> list[SnapshotRecord]:
    """The snapshots of the first of these folders that has any: as it is named from here, and from the home."""
    home = warehouse.home.resolve()
    try:
        folders = [Path(name).expanduser().resolve(), (home / name).resolve()]
    except (OSError, RuntimeError):  # a user that is not there, a name too long, a loop of links
        return []
    inside = [str(folder.relative_to(home)) for folder in folders if folder.is_relative_to(home)]
    return next((found for folder in inside if (found := warehouse.of_folder(folder))), [])


def trace_policy(warehouse: Warehouse, name: str, dagster_url: str | None = None) -> dict[str, Any]:
    """{asked, snapshot_id, registry, mlflow_missing, snapshots}: the snapshot and all its ancestors, what is read
    before what reads it.

    Each has the fields of `SnapshotRecord`; `learned`: rows by source where it trained; `passport`: the judge's, on
    labels; `removed`: see `Warehouse.removals`; `links`: {dagster, mlflow, mlflow_missing}, the runs' pages or None
    (`dagster_url`: base of Dagster's), and why there is none of MLflow's, see `mlflow_links`.
    `registry`: the versions that are this snapshot, with their aliases. `mlflow_missing`: why no link to MLflow is
    given at all, where the home's own database is gone.
    """
    asked = find_snapshot(warehouse, name)
    records = ancestry(warehouse, asked.snapshot_id)
    removed = warehouse.removals(records)
    missing = missing_runs(warehouse.home, records)
    with warehouse.connection(read_only=True) as connection:
        learned = _learned_by_source(connection, [record.snapshot_id for record in records])
    return {
        "asked": name,
        "snapshot_id": asked.snapshot_id,
        "registry": [
            {"version": f"{one.name}/{one.version}", "aliases": list(one.aliases), "created_at": one.created_at}
            for one in registry.versions(warehouse)
            if one.snapshot_id == asked.snapshot_id
        ],
        "mlflow_missing": database_missing(warehouse.home),
        "snapshots": [
            dataclasses.asdict(record)
            | {
                "learned": learned.get(record.snapshot_id, {}),
                PASSPORT: record.metrics.get(PASSPORT),
                "removed": removed.get(record.snapshot_id),
                "links": _links(record, dagster_url, missing.get(record.snapshot_id)),
            }
            for record in records
        ],
    }


def _links(record: SnapshotRecord, dagster_url: str | None, mlflow_missing: str | None) -> dict[str, str | None]:
    run = record.dagster_run_id
    return {
        "dagster": f"{dagster_url}/runs/{run}" if dagster_url and run else None,
        "mlflow": None if mlflow_missing else record.metrics.get("mlflow_url"),
        "mlflow_missing": mlflow_missing,
    }


def _learned_by_source(connection: "Connection", snapshot_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Training rows by "source/role", of each of these snapshots that trained."""
    query = (
        "SELECT snapshot_id, source || '/' || role AS what, count(*) FROM training_rows"
        " WHERE snapshot_id IN (SELECT unnest(?)) GROUP BY ALL ORDER BY ALL"
    )
    found: dict[str, dict[str, int]] = {}
    for snapshot_id, what, count in _select(connection, query, [list(snapshot_ids)]):
        found.setdefault(snapshot_id, {})[what] = count
    return found


def trace_row(warehouse: Warehouse, row_id: str) -> dict[str, Any]:
    """{row_id, table, chain, snapshots, learned, policies} of a prompt, response, revision, pair, label, judgement,
    comparison, verdict, or an answer of the community or an evaluation; an id of pre-training, which makes two examples
    of a community pair, is told as that pair.

    chain: the rows that it was made of, [{table, id, ...their columns}], first the prompt and last the row itself, with
    the principles' texts; {table, id, missing: True} in the place of one that is named and not there. snapshots: those
    that hold it. learned: the trained models that were given it, or a row made of it, {asset, snapshot_id, role, rows}.
    policies: ids of the policies made from any of these.
    Raises StoreError where no row has this id.
    """
    with warehouse.connection(read_only=True) as connection:
        kind, row = _find_row(connection, row_id)
        if kind in ROW_TABLES:
            row_id = row[ROW_TABLES[kind]]
        made_of_it = _rows_made_of(connection, kind, row_id, row)
        learned = _learned(connection, made_of_it, row_id if kind == "prompts" else None)
        chain = {(one["table"], one["id"]): one for one in _chain(connection, kind, row)}.values()
        unused = kind in ("judgements", "human_verdicts") and len(made_of_it) == 1
        return {
            "row_id": row_id,
            "table": kind,
            # What audits ask a judge about is in no table, nor must be what a verdict that no label took names.
            "chain": [one for one in chain if not (unused and one.get("missing"))],
            "snapshots": _holders(connection, kind, row_id, row),
            "learned": learned,
            "policies": _policies_from(connection, {one["snapshot_id"] for one in learned}),
        }


def trace_principle(warehouse: Warehouse, name: str) -> dict[str, Any]:
    """{principle_id, name, text, kind, missing, judgements, labels, revisions, later_revisions, the ids of each as
    judgement_ids and so on, learned, policies} of a principle, by id or name.

    Counts are of distinct rows: judgements under it, labels that one of these is in, revisions that it asked for, and
    later ones that were made of these under other principles. learned and policies: as of `trace_row`, over all of
    these labels and revisions. Where the principle's own row is missing, name and text are None; `missing`: kind by id
    of such principles, of which one may have had the name that was asked for. Raises StoreError.
    """
    with warehouse.connection(read_only=True) as connection:
        principle = _find_principle(connection, name)
        one = [principle["principle_id"]]
        judgements = _ids(connection, "SELECT DISTINCT judgement_id FROM judgements WHERE principle_id = ?", one)
        labels = _labels_under(connection, principle["principle_id"])
        revisions = _ids(connection, "SELECT DISTINCT revision_id FROM revisions WHERE principle_id = ?", one)
        revised = _revised_from(connection, revisions)
        later = sorted(set(revised) - set(revisions))
        learned = _learned(connection, [*labels, *revised])
        return principle | {
            "judgements": len(judgements),
            "labels": len(labels),
            "revisions": len(revisions),
            "later_revisions": len(later),
            "judgement_ids": judgements,
            "label_ids": labels,
            "revision_ids": revisions,
            "later_revision_ids": later,
            "learned": learned,
            "policies": _policies_from(connection, {found["snapshot_id"] for found in learned}),
        }


# Rows


def _find_row(connection: "Connection", row_id: str) -> tuple[str, dict[str, Any]]:
    for table, column in ROW_TABLES.items():
        if rows := rows_where(connection, table, column, row_id):
            return table, rows[0]
    if rows := rows_where(connection, "judgements", "judgement_id", row_id):
        return "judgements", rows[0]
    for side in ("a", "b"):
        if rows := rows_where(connection, "pairs", f"response_{side}_id", row_id):
            pair = rows[0]
            response = {"response_id": row_id, "prompt_id": pair["prompt_id"], "text": pair[f"response_{side}"]}
            return "responses", response | {"seed": pair[f"seed_{side}"], "pair_id": pair["pair_id"]}
    if rows := _pair_of_example(connection, row_id):
        return "community_pairs", rows[0]
    raise StoreError(f"no prompt, response, revision, pair, label, judgement, comparison, verdict or answer {row_id}")


def _pair_of_example(connection: "Connection", example_id: str) -> list[dict[str, Any]]:
    """The community pair that pre-training made this example of; the id alone does not tell it."""
    if not _select(
        connection, "SELECT 1 FROM training_rows WHERE row_id = ? AND source = 'votes' LIMIT 1", [example_id]
    ):
        return []
    pairs = _ids(connection, "SELECT DISTINCT pair_id FROM community_pairs", [])
    wanted = next((pair for pair in pairs if example_id in _pmp_examples([pair])), None)
    return rows_where(connection, "community_pairs", "pair_id", wanted) if wanted else []


def _pmp_examples(pair_ids: Iterable[str]) -> list[str]:
    return [id_of("pmp_example", pair_id, part) for pair_id in pair_ids for part in PMP_PARTS]


def _chain(connection: "Connection", kind: str, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What a row was made of, oldest first, and the row itself."""
    if kind in ("revisions", "answers", "pairs", "responses", "evaluation_answers"):
        parents = list(_link(connection, "revisions", row["parent_id"])) if row.get("parent_id") else []
        if len(parents) < 2:  # none, or a missing one, which does not tell its prompt
            yield from _link(connection, "prompts", row["prompt_id"])
        yield from parents
    elif kind in ("labels", "judgements", "human_verdicts") and row["pair_id"]:
        yield from _link(connection, "pairs", row["pair_id"])
    elif kind == "community_pairs":
        for part in PMP_PARTS:
            yield from _link(connection, "community_answers", row[f"{part}_id"])
    if kind == "labels":
        for table in ("judgements", "human_verdicts"):
            for row_id in row["judgement_ids" if table == "judgements" else "verdict_ids"] or ():
                found = rows_where(connection, table, ID_COLUMNS[table], row_id)
                yield from _with_principle(connection, table, found[0]) if found else [_missing(table, row_id)]
    yield from _with_principle(connection, kind, row)


def _link(connection: "Connection", table: str, row_id: str) -> Iterator[dict[str, Any]]:
    found = rows_where(connection, table, ID_COLUMNS[table], row_id)
    yield from _chain(connection, table, found[0]) if found else [_missing(table, row_id)]


def _missing(table: str, row_id: str) -> dict[str, Any]:
    return {"table": table, "id": row_id, "missing": True}


def _with_principle(connection: "Connection", table: str, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The row with its principle's name and what it says, after that principle where it is missing."""
    told = {"table": table, "id": row[ID_COLUMNS[table]], **row}
    if principle_id := row.get("principle_id"):
        found = [one for kind in PRINCIPLES for one in rows_where(connection, kind, "principle_id", principle_id)]
        if found:
            told |= {"principle": found[0]["name"], "principle_text": _text_of(found[0])}
        else:
            yield _missing("critique_principles" if table == "revisions" else "judging_principles", principle_id)
    yield told


def _text_of(principle: Mapping[str, Any]) -> str:
    return principle.get("text") or f"{principle['critique_request']} / {principle['revision_request']}"


def _rows_made_of(connection: "Connection", kind: str, row_id: str, row: Mapping[str, Any]) -> list[str]:
    """Ids that trainers were told of: the row's own and those of the labels and revisions made of it."""
    one = [row_id]
    if kind == "judgements":
        query = f"SELECT DISTINCT label_id FROM labels WHERE {NAMES_JUDGEMENT}"
        return [*one, *_ids(connection, query, {"id": row_id, "pair_id": row["pair_id"]})]
    if kind == "human_verdicts":
        query = "SELECT DISTINCT label_id FROM labels WHERE list_contains(from_json(verdict_ids, '[\"VARCHAR\"]'), ?)"
        return [*one, *_ids(connection, query, one)]
    if kind == "responses":
        query = (
            "SELECT DISTINCT label_id FROM labels SEMI JOIN"
            " (SELECT pair_id FROM pairs WHERE ? IN (response_a_id, response_b_id)) USING (pair_id)"
        )
        return [*one, *_ids(connection, query, one)]
    if kind == "community_pairs":
        return [*one, *_pmp_examples(one)]
    if kind == "community_answers":
        query = "SELECT DISTINCT pair_id FROM community_pairs WHERE ? IN (better_id, worse_id)"
        return [*one, *_pmp_examples(_ids(connection, query, one))]
    if kind == "pairs":
        return [*one, *_ids(connection, "SELECT DISTINCT label_id FROM labels WHERE pair_id = ?", one)]
    if kind == "revisions":
        return _revised_from(connection, one)
    if kind == "prompts":
        query = (
            "SELECT DISTINCT revision_id FROM revisions WHERE prompt_id = $id UNION SELECT DISTINCT answer_id FROM"
            " answers WHERE prompt_id = $id UNION SELECT DISTINCT label_id FROM labels SEMI JOIN"
            " (SELECT pair_id FROM pairs WHERE prompt_id = $id) USING (pair_id)"
        )
        return [*one, *_ids(connection, query, {"id": row_id})]
    return one


def _revised_from(connection: "Connection", revision_ids: Sequence[str]) -> list[str]:
    """These revisions and those of later rounds that were made of them."""
    query = (
        "WITH RECURSIVE later(id) AS (SELECT unnest(?::VARCHAR[]) UNION SELECT revision_id FROM revisions JOIN later"
        " ON parent_id = id) SELECT id FROM later"
    )
    return _ids(connection, query, [list(revision_ids)])


def _holders(connection: "Connection", kind: str, row_id: str, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The snapshots that hold the row; of a judgement those whose labels name it."""
    values = {"id": row_id}
    if kind == "judgements":
        where, values = f"labels WHERE {NAMES_JUDGEMENT}", values | {"pair_id": row["pair_id"]}
    elif kind == "responses":
        where = "pairs WHERE $id IN (response_a_id, response_b_id)"
    else:
        where = f'"{kind}" WHERE "{ROW_TABLES[kind]}" = $id'
    query = (
        "SELECT asset, snapshot_id, created_at FROM snapshots SEMI JOIN"
        f" (SELECT snapshot_id FROM {where}) USING (snapshot_id) ORDER BY position"
    )
    names = ("asset", "snapshot_id", "created_at")
    return [dict(zip(names, row, strict=True)) for row in _select(connection, query, values)]


# Principles


def _find_principle(connection: "Connection", name: str) -> dict[str, Any]:
    """{principle_id, name, text, kind, missing}, see `trace_principle`."""
    for column in ("principle_id", "name"):
        found: dict[str, dict[str, Any]] = {}
        for table, kind in PRINCIPLES.items():
            for row in rows_where(connection, table, column, name):
                told = {"principle_id": row["principle_id"], "name": row["name"], "text": _text_of(row), "kind": kind}
                found.setdefault(row["principle_id"], told)
        if len(found) > 1:
            ids = ", ".join(f"{one} ({told['kind']})" for one, told in found.items())
            raise StoreError(f"{len(found)} principles were called {name!r}; give an id: {ids}")
        if found:
            missing = _missing_principles(connection) if column == "name" else {}
            return next(iter(found.values())) | {"missing": missing}
    missing = _missing_principles(connection)
    if name in missing:
        return {"principle_id": name, "name": None, "text": None, "kind": missing[name], "missing": {}}
    names = {one for table in PRINCIPLES for one in _ids(connection, f'SELECT DISTINCT name FROM "{table}"', [])}
    ids = ", ".join(f"{one} ({kind})" for one, kind in missing.items())
    told = f"; and labels or revisions name these, whose rows are missing: {ids}" if missing else ""
    raise StoreError(f"no principle {name!r}: {nearest(name, sorted(names))}{told}")


def _missing_principles(connection: "Connection") -> dict[str, str]:
    """Kind by id of the principles that labels, their judgements or revisions name and no constitution has."""
    query = (
        "SELECT DISTINCT principle_id, kind FROM (SELECT principle_id, 'judging' AS kind FROM labels"
        " UNION ALL SELECT principle_id, 'judging' FROM judgements SEMI JOIN"
        " (SELECT unnest(from_json(judgement_ids, '[\"VARCHAR\"]')) AS judgement_id FROM labels"
        " WHERE principle_id IS NULL) USING (judgement_id)"
        " UNION ALL SELECT principle_id, 'critique' FROM revisions)"
        " ANTI JOIN (SELECT principle_id FROM judging_principles UNION SELECT principle_id FROM critique_principles)"
        " USING (principle_id) WHERE principle_id IS NOT NULL ORDER BY ALL"
    )
    return dict(_select(connection, query, []))


def _labels_under(connection: "Connection", principle_id: str) -> list[str]:
    """Labels of one principle, and those averaged over several of which this was one."""
    query = (
        "SELECT DISTINCT label_id FROM labels WHERE principle_id = $id UNION SELECT DISTINCT label_id FROM"
        " (SELECT label_id, unnest(from_json(judgement_ids, '[\"VARCHAR\"]')) AS judgement_id FROM labels"
        " WHERE principle_id IS NULL) SEMI JOIN (SELECT judgement_id FROM judgements WHERE principle_id = $id)"
        " USING (judgement_id)"
    )
    return _ids(connection, query, {"id": principle_id})


# What learned from rows


def _learned(connection: "Connection", row_ids: Sequence[str], prompt_id: str | None = None) -> list[dict[str, Any]]:
    """The models that trained on these rows or held them out, and those that answered the prompt in their training."""
    import pyarrow as pa

    query = (
        "SELECT asset, snapshot_id, role, rows FROM (SELECT snapshot_id, role, count(DISTINCT row_id) AS rows"
        " FROM training_rows SEMI JOIN wanted ON training_rows.row_id = wanted.id GROUP BY ALL"
        " UNION ALL SELECT snapshot_id, 'train', count(DISTINCT prompt_id) FROM rollouts WHERE prompt_id = ?"
        " GROUP BY snapshot_id)"
        " JOIN snapshots USING (snapshot_id) ORDER BY snapshots.position, role"
    )
    connection.register("wanted", pa.table({"id": pa.array(list(row_ids), pa.string())}))
    found = _select(connection, query, [prompt_id])
    return [dict(zip(("asset", "snapshot_id", "role", "rows"), row, strict=True)) for row in found]


def _policies_from(connection: "Connection", sources: set[str]) -> list[str]:
    """Ids of the policies that have one of these snapshots among their ancestors, oldest first."""
    rows = _select(connection, "SELECT snapshot_id, asset, inputs FROM snapshots ORDER BY position", [])
    reached = set(sources)
    policies = []
    for snapshot_id, asset, inputs in rows:  # inputs are published before what reads them
        if snapshot_id in reached or reached & set(json.loads(inputs).values()):
            reached.add(snapshot_id)
            if asset == POLICY:
                policies.append(snapshot_id)
    return policies


def _select(connection: "Connection", query: str, values: Sequence[Any] | dict[str, Any]) -> list[tuple[Any, ...]]:
    return connection.execute(query, values).fetchall()


def _ids(connection: "Connection", query: str, values: Sequence[Any] | dict[str, Any]) -> list[str]:
    return sorted(str(row[0]) for row in _select(connection, query, values))
