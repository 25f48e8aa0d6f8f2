"""Where a snapshot came from, and whether it is still what was published. Reads the warehouse alone."""

import subprocess
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from rlaif_assets.records import Judgement
from rlaif_assets.store.checkpoint_files import folder_problems, marked_fingerprint
from rlaif_assets.store.columns import Row
from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.fingerprint import combine_hashes, folder_fingerprint, sha256_text, table_hash
from rlaif_assets.store.judgements import JudgementStore, judgements_hash
from rlaif_assets.store.warehouse import SnapshotRecord, Warehouse, removal_text


def ancestry(warehouse: Warehouse, snapshot_id: str) -> list[SnapshotRecord]:
    """The snapshot and all that it was made from, each once, inputs before what reads them; the snapshot is last.

    Raises StoreError where the snapshot or one of its inputs is not in the warehouse.
    """
    known = warehouse.with_inputs(snapshot_id)
    found: dict[str, SnapshotRecord] = {}

    def visit(wanted: str, reader: str) -> None:
        if wanted in found:
            return
        if wanted not in known:
            raise StoreError(f"no snapshot {wanted} ({reader}) in {warehouse.path}")
        for asset, upstream in sorted(known[wanted].inputs.items()):
            visit(upstream, f"{asset}, read by {known[wanted].asset} {wanted}")
        found[wanted] = known[wanted]

    visit(snapshot_id, "asked for")
    return list(found.values())


def weights_in_ancestry(warehouse: Warehouse, snapshot_id: str) -> dict[str, str]:
    """Fingerprints of all models that a snapshot was made from, by asset, external models among them."""
    found: dict[str, str] = {}
    for record in ancestry(warehouse, snapshot_id):
        external = warehouse.rows("external_models", record.snapshot_id)
        if external:
            found[record.asset] = external[0]["fingerprint"]
        elif record.path is not None and (marked := marked_fingerprint(warehouse.home / record.path)):
            found[record.asset] = marked
    return found


def verify(warehouse: Warehouse, snapshot_id: str) -> list[str]:
    """Reads every row and weight file of one snapshot again and hashes them; returns what differs, empty if nothing.

    Missing rows are named by table and position, changed ones by table, weights by file, and labels whose judgements
    (rows of no snapshot) are missing, changed or of another question by their ids. Weights that were
    removed on purpose are named as that.
    For the inputs too, verify each of `ancestry`. Raises StoreError where there is no such snapshot.
    """
    with warehouse.one_opening():
        record = warehouse.get(snapshot_id)
        tables = record.row_counts.keys() | record.table_hashes.keys() | warehouse.counts(snapshot_id).keys()
        found = {table: warehouse.positioned_rows(table, snapshot_id) for table in sorted(tables)}
        records = len(warehouse.named(snapshot_id))
    problems = [] if records == 1 else [f"the warehouse has {records} records of it, and must have one"]
    hashes: dict[str, str] = {}
    for table, rows in found.items():
        places = [row["position"] if row["position"] is not None else -1 for row in rows]
        problems += _position_problems(table, places, record.row_counts.get(table, 0))
        if table == "rejected_rows":
            continue
        hashes[table] = table_hash(rows)
        if hashes[table] != record.table_hashes.get(table):
            problems.append(f"{table}: the rows' hash differs from the one published")
        if table == "labels":
            problems += _judgement_problems(warehouse, rows)
    weights = None
    if record.path is not None:
        if removal := warehouse.removals([record]).get(snapshot_id):
            problems.append(f"the weights were {removal_text(removal)}, on purpose; what they were cannot be verified")
        else:
            folder = warehouse.home / record.path
            problems += folder_problems(folder)
            try:
                weights = folder_fingerprint(folder)
            except OSError as error:
                problems.append(f"{record.path}: {error}")
    if not problems and combine_hashes(hashes, weights) != record.content_hash:
        problems.append("the content hash of rows and weights differs from the one published")
    if sha256_text(record.key + record.content_hash)[:32] != snapshot_id:
        problems.append("the snapshot's id does not follow from its key and content hash")
    return [f"{record.asset} {snapshot_id}: {problem}" for problem in problems]


def _judgement_problems(warehouse: Warehouse, labels: list[Row]) -> list[str]:
    """Labels whose judgements are not, or not as they were when the labels were made of them."""
    damaged = [label for label in labels if not isinstance(label["judgement_ids"], list)]
    problems = [f"labels: the judgements of label {label['label_id']} are not named" for label in damaged]
    labels = [label for label in labels if isinstance(label["judgement_ids"], list)]
    stored = JudgementStore(warehouse).fetch([one for label in labels for one in label["judgement_ids"]])
    asked: list[tuple[Row, Judgement]] = []
    for label in labels:
        missing = [one for one in label["judgement_ids"] if one not in stored]
        if missing:
            problems.append(f"labels: judgement {missing[0]} of label {label['label_id']} is missing")
        elif label["judgements_hash"] != judgements_hash([stored[one] for one in label["judgement_ids"]]):
            problems.append(f"labels: the judgements of label {label['label_id']} have changed")
        else:
            asked += [(label, stored[one]) for one in label["judgement_ids"]]
    return problems + _question_problems(warehouse, asked)


def _question_problems(warehouse: Warehouse, asked: Sequence[tuple[Row, Judgement]]) -> list[str]:
    """Judgements of another pair or principle than their label's. One that was asked before is used again for a pair,
    or under a principle, of the same text."""
    pairs, principles = _Same(warehouse, "pairs", "pair_id"), _Same(warehouse, "judging_principles", "principle_id")
    problems = []
    for label, judgement in asked:
        told = f"labels: judgement {judgement.judgement_id} of label {label['label_id']} is of"
        if not pairs.same(label["pair_id"], judgement.pair_id, ("response_a", "response_b")):
            problems.append(f"{told} pair {judgement.pair_id}")
        if label["principle_id"] and not principles.same(label["principle_id"], judgement.principle_id, ("text",)):
            problems.append(f"{told} principle {judgement.principle_id}")
    return problems


class _Same:
    """Whether two rows of a table, by id, say the same; each is read once."""

    def __init__(self, warehouse: Warehouse, table: str, column: str) -> None:
        self.rows = cache(lambda one: warehouse.where(table, column, one))

    def same(self, one: str, other: str, columns: tuple[str, ...]) -> bool:
        if one == other:
            return True
        known, others = self.rows(one), self.rows(other)
        return bool(known and others) and all(known[0][name] == others[0][name] for name in columns)


def materialized_by(warehouse: Warehouse, snapshot_id: str) -> list[str]:
    """The Dagster runs that made this snapshot current, oldest first."""
    query = "SELECT dagster_run_id FROM materializations WHERE snapshot_id = ? ORDER BY position"
    with warehouse.connection(read_only=True) as connection:
        return [run_id for (run_id,) in connection.execute(query, [snapshot_id]).fetchall()]


def _position_problems(table: str, positions: list[int], expected: int) -> list[str]:
    seen = Counter(positions)
    missing = [position for position in range(expected) if position not in seen]
    extra = sorted(position for position, times in seen.items() if times > 1 or not 0 <= position < expected)
    problems = []
    if missing:
        problems.append(f"{table}: {len(missing)} of {expected} rows are missing, at positions {_some(missing)}")
    if extra:
        problems.append(f"{table}: rows that were not published or are there twice, at positions {_some(extra)}")
    return problems


def _some(positions: list[int]) -> str:
    return ", ".join(map(str, positions[:5])) + (", ..." if len(positions) > 5 else "")


def git_state(folder: Path | None = None) -> tuple[str | None, bool | None]:
    """(commit, dirty) of the work tree that holds this code (or `folder`); (None, None) outside of one.

    A work tree that does not track the folder (a virtual environment in someone's project) is not ours.
    """
    where = folder or Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(where), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD") if git("ls-files", ".") else None
    status = git("status", "--porcelain", "--untracked-files=no") if commit else None
    return commit, (bool(status) if status is not None else None)
