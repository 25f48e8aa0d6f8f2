"""People's verdicts on response pairs, from a file. Which pairs of a home they are about belongs to `feedback.human`.

A row has `p_a` (0 to 1: how probable it is that response A is the better one), `annotator`, `time` (ISO 8601; without a
zone UTC), and the pair: `pair_id`, or `prompt` (or `messages`) with `response_a` and `response_b` as they were shown.
"""

from datetime import UTC, datetime
from typing import Any

from rlaif_assets.ingest.conversations import checked, normalise
from rlaif_assets.ingest.errors import RowError
from rlaif_assets.ingest.files import SourceRow, read_rows, rejection
from rlaif_assets.ingest.prompts import context_of
from rlaif_assets.records import HumanVerdict, Message, Rejection
from rlaif_assets.settings import HumanVerdictsSettings
from rlaif_assets.store.fingerprint import row_id

PAIR = ("prompt", "messages", "response_a", "response_b")


def read_human_verdicts(settings: HumanVerdictsSettings) -> tuple[list[HumanVerdict], list[Rejection]]:
    """Kept verdicts in the order of the file, and refused rows: rows read = kept + rejected; none without a path.

    Of a verdict that is there twice the later row is kept: it may take back one between them. Raises IngestError for a
    file that cannot be read.
    """
    if settings.path is None:
        return [], []
    kept: dict[str, tuple[HumanVerdict, SourceRow]] = {}
    rejected: list[Rejection] = []

    def refuse(row: SourceRow, problem: RowError) -> None:
        rejected.append(rejection(row, problem, "pair_id", "prompt", "messages"))

    for row in read_rows(settings.path):
        try:
            if row.problem:
                raise RowError(row.problem)
            verdict = _verdict(row.fields)
        except RowError as problem:
            refuse(row, problem)
            continue
        if verdict.verdict_id in kept:
            refuse(kept.pop(verdict.verdict_id)[1], RowError(f"said again in {row.where}"))
        kept[verdict.verdict_id] = verdict, row
    return [verdict for verdict, _ in kept.values()], rejected


def _verdict(fields: dict[str, Any]) -> HumanVerdict:
    pair_id: str | None = None
    messages: tuple[Message, ...] | None = None
    a: str | None = None
    b: str | None = None
    if fields.get("pair_id"):
        pair_id = _text(fields, "pair_id")
        if any(fields.get(name) for name in PAIR):
            raise RowError("it names the pair by pair_id and by texts; give one of them")
    else:
        messages = tuple(normalise(context_of(fields)))
        a, b = _text(fields, "response_a"), _text(fields, "response_b")
        if a == b:
            raise RowError("response_a and response_b are identical")
    values = pair_id, messages, a, b, _p_a(fields), _text(fields, "annotator"), _time(fields)
    return HumanVerdict(row_id("human_verdict", *values), *values)


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"the field {name} is missing or no text")
    return checked(value).strip()


def _p_a(fields: dict[str, Any]) -> float:
    value = fields.get("p_a")
    try:
        found = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else -1.0
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise RowError(f"p_a is {value!r}; give a number from 0 to 1")
    return found


def _time(fields: dict[str, Any]) -> str:
    """In UTC, so that the texts' order is that of the times."""
    text = _text(fields, "time")
    try:
        found = datetime.fromisoformat(text)
        in_utc = (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise RowError(f"time is {text!r}; give ISO 8601, such as 2026-01-31T09:30:00Z") from error
    return in_utc.isoformat(timespec="microseconds")
