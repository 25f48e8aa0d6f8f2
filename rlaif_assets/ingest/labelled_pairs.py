"""Pairs of responses that people labelled, for audits: the judge is held against them and nothing is trained on them.

Two layouts, told apart row by row. Chosen and rejected transcripts, as in hh-rlhf, are read by `comparisons`. Rows
`input, output_1, output_2, label` (LLMBar's) have a prompt and two responses, and as label the number of the better
one, 1 or 2, or 0 for a tie. JSONL, CSV (either may be .gz) and `datasets:ID` as in `files`, and a JSON file with
a list. `pocket` is the pocket world's own: pairs on its harmful train prompts, labelled by its gold annotator.
"""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from rlaif_assets.ingest.comparisons import ANNOTATOR, comparison_of
from rlaif_assets.ingest.conversations import checked, conversation, fit, is_transcript, normalise, user_message
from rlaif_assets.ingest.errors import IngestError, RowError
from rlaif_assets.ingest.files import SourceRow, check_limit, read_rows, read_text, rejection, require_rows, source_name
from rlaif_assets.records import Comparison, Rejection
from rlaif_assets.settings import HelpfulnessPreferencesSettings
from rlaif_assets.store.fingerprint import row_id

MAX_CHARACTERS = 1_000_000  # the judge says itself what is too long for it
LABELS = {"0": 0.5, "1": 1.0, "2": 0.0}


def read_labelled_pairs(path: str, limit: int | None = None) -> tuple[list[Comparison], list[Rejection]]:
    """Kept pairs in the order of the source, and refused rows: rows read = kept + rejected.

    Raises IngestError, also where no row is kept.
    """
    if path == "pocket":
        from rlaif_assets.pocket import world

        check_limit(limit)
        return world.reference_comparisons()[:limit], []
    kept: dict[str, Comparison] = {}
    rejected: list[Rejection] = []
    for row in _rows(path, limit):
        try:
            found = _labelled(row, path)
            if found.comparison_id in kept:
                raise RowError("a duplicate of an earlier row")
            kept[found.comparison_id] = found
        except RowError as problem:
            rejected.append(rejection(row, problem, "input", "chosen", "prompt"))
    require_rows(path, len(kept), rejected)
    return list(kept.values()), rejected


def _rows(path: str, limit: int | None) -> Iterator[SourceRow]:
    if not path.lower().endswith((".json", ".json.gz")):
        return read_rows(path, limit)
    check_limit(limit)
    return islice(_listed_rows(path), limit)


def _listed_rows(path: str) -> Iterator[SourceRow]:
    try:
        values = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise IngestError(f"{path}:{error.lineno}: invalid JSON: {error.msg}; repair that line") from error
    except RecursionError as error:
        raise IngestError(f"{path}: invalid JSON: nested too deeply") from error
    if not isinstance(values, list):
        raise IngestError(f"{path}: expected a list of rows, found {type(values).__name__}; JSONL has one row a line")
    for number, value in enumerate(values, 1):
        where = f"{source_name(path)}: entry {number}"
        if isinstance(value, dict):
            yield SourceRow(where, value)
        else:
            yield SourceRow(where, {}, f"expected an object with fields, found {type(value).__name__}")


def _labelled(row: SourceRow, path: str) -> Comparison:
    if row.problem:
        raise RowError(row.problem)
    if "chosen" in row.fields or "rejected" in row.fields:
        return comparison_of(row.fields, HelpfulnessPreferencesSettings(path=path, max_characters=MAX_CHARACTERS))
    missing = [name for name in ("input", "output_1", "output_2", "label") if row.fields.get(name) is None]
    if missing:
        raise RowError(f"no {', '.join(missing)}; give input, output_1, output_2, label, or chosen and rejected")
    label = str(row.fields["label"]).strip().removesuffix(".0")  # as pandas writes it beside missing ones
    if label not in LABELS:
        raise RowError(f"label is {row.fields['label']!r}; write 1 or 2 for the better output, 0 for a tie")
    given = row.fields["input"]
    transcript = not isinstance(given, str) or is_transcript(given)
    messages = fit(normalise(conversation(given) if transcript else [user_message(given)]), MAX_CHARACTERS)
    first, second = (_response(row.fields[name], name) for name in ("output_1", "output_2"))
    if first == second:
        raise RowError("output_1 and output_2 are identical")
    return Comparison(
        comparison_id=row_id("comparison", messages, first, second),
        messages=messages,
        response_a=first,
        response_b=second,
        p_a=LABELS[label],
        source=source_name(path),
        annotator=ANNOTATOR,
    )


def _response(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{name} must be a text that is not empty, found {value!r:.80}")
    return checked(value.strip())
