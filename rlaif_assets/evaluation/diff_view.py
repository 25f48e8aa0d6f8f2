"""What `policy_diff` found, for a person in the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlaif_assets.evaluation.terminal import visible

STYLES = {" ": "", "-": "red strike", "+": "green"}
SHOWN_IDS = 3


def diff_view(found: Mapping[str, Any]) -> RenderableType:
    """Ancestry first, then results, then answers side by side. Colours are beside the words, never instead of them."""
    parts: list[RenderableType] = list(_ancestry(found))
    if found["results"]:
        parts += [_results(found["results"]), Text()]
    if found["answers"]:
        parts.append(_answers(found["answers"]))
    return Group(*parts, *(Text(visible(f"note: {note}")) for note in found["notes"]))


def _ancestry(found: Mapping[str, Any]) -> Iterator[Text]:
    for side in "ab":
        yield _line(side, f" {found[side]['asset']} {found[side]['snapshot_id']}, {found[side]['created_at'][:19]}")
    yield _line("", f"the same: {', '.join(found['same']) or 'nothing'}")
    for side, names in found["only"].items():
        if names:
            yield _line("", f"only in {side}: {', '.join(names)}")
    for asset, (a, b) in found["versions"].items():
        if len(a) > 1 or len(b) > 1:
            yield _line("versions", f" of {asset}: {', '.join(a)} -> {', '.join(b)}")
    for asset, (a, b) in found["content"].items():
        yield _line("content", f" alone of {asset} differs: {', '.join(a)} -> {', '.join(b)}")
    for asset, (a, b) in found["weights"].items():
        yield _line("weights", f" of {asset}: {_listed(a)} -> {_listed(b)}")
    for asset, fields in found["settings"].items():
        told = ", ".join(f"{name} {_value(a)} -> {_value(b)}" for name, (a, b) in fields.items())
        yield _line("settings", f" of {asset}: {told}")
    for asset, (a, b) in found["code_versions"].items():
        yield _line("code version", f" of {asset}: {a} -> {b}")
    for one in found["constitution"]:
        line = _line("principle", f" {one['principle']} {one['change']}:")
        for sign, text in one["words"]:
            line.append(" ").append(visible(f"{sign}{text}".strip()), STYLES[sign])
        yield line
    if found["judge"]:
        yield _line("judge", f": {' -> '.join(str(found['judge'][side]['judge']) for side in 'ab')}")
    for asset, tables in found["rows"].items():
        for table, rows in tables.items():
            counts = ", ".join(
                f"{len(rows[change]):,} {change}" for change in ("added", "removed", "changed") if rows[change]
            )
            some = ", ".join(rows["changed"][:SHOWN_IDS])
            first = f", changed first {some}" if some else ""
            yield _line("rows", f" of {asset} ({table}): {counts or 'the same'}{first}")
    yield Text()


def _line(head: str, rest: str) -> Text:
    return Text.assemble((head, "bold"), visible(rest))


def _results(results: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Table:
    table = Table(title="results that differ [95% interval]")
    for name in ("measure", "a", "b"):
        table.add_column(name, justify="left" if name == "measure" else "right")
    for name, values in results.items():
        table.add_row(Text(visible(name)), *(_interval(values[side]) for side in "ab"))
    return table


def _interval(values: Sequence[float | None]) -> str:
    value, low, high = values
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else "")


def _answers(answers: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="answers that differ most", show_lines=True)
    for name in ("prompt", "a", "b"):
        table.add_column(name, ratio=1)
    for one in answers:
        said = " / ".join(message["content"] for message in one["messages"])
        sides = [f"({one[side]['verdict'] or 'no verdict'}) {one[side]['text']}" for side in "ab"]
        table.add_row(*(Text(visible(text)) for text in (said, *sides)))
    return table


def _listed(values: str | Sequence[str] | None) -> str:
    return ", ".join([values] if isinstance(values, str) else map(str, values or ["none"]))


def _value(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:39]}…"
