"""What `policy_diff` found, for a person in the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

SIGNS = {" ": "{}", "-": "[red strike]{}[/]", "+": "[green]{}[/]"}
SHOWN_IDS = 3


def diff_view(found: Mapping[str, Any]) -> RenderableType:
    """Ancestry first, then results, then answers side by side. Colours are beside the words, never instead of them."""
    parts: list[RenderableType] = [Text.from_markup(line) for line in _ancestry(found)]
    if found["results"]:
        parts += [_results(found["results"]), Text()]
    if found["answers"]:
        parts.append(_answers(found["answers"]))
    return Group(*parts, *(Text(f"note: {note}") for note in found["notes"]))


def _ancestry(found: Mapping[str, Any]) -> Iterator[str]:
    for side in "ab":
        yield f"[bold]{side}[/] {found[side]['asset']} {found[side]['snapshot_id']}, {found[side]['created_at'][:19]}"
    yield f"the same: {', '.join(found['same']) or 'nothing'}"
    for side, names in found["only"].items():
        if names:
            yield f"only in {side}: {', '.join(names)}"
    for asset, (a, b) in found["versions"].items():
        if len(a) > 1 or len(b) > 1:
            yield f"[bold]versions[/] of {asset}: {', '.join(a)} -> {', '.join(b)}"
    for asset, fields in found["settings"].items():
        told = ", ".join(f"{name} {_value(a)} -> {_value(b)}" for name, (a, b) in fields.items())
        yield f"[bold]settings[/] of {asset}: {escape(told)}"
    for asset, (a, b) in found["code_versions"].items():
        yield f"[bold]code version[/] of {asset}: {a} -> {b}"
    for one in found["constitution"]:
        words = " ".join(SIGNS[sign].format(escape(f"{sign}{text}".strip())) for sign, text in one["words"])
        yield f"[bold]principle[/] {escape(one['principle'])} {one['change']}: {words}"
    if found["judge"]:
        judges = [f"{found['judge'][side]['judge']}" for side in "ab"]
        yield f"[bold]judge[/]: {escape(' -> '.join(judges))}"
    for asset, tables in found["rows"].items():
        for table, rows in tables.items():
            counts = ", ".join(
                f"{len(rows[change]):,} {change}" for change in ("added", "removed", "changed") if rows[change]
            )
            some = ", ".join(rows["changed"][:SHOWN_IDS])
            first = f", changed first {some}" if some else ""
            yield f"[bold]rows[/] of {asset} ({table}): {counts or 'the same'}{first}"
    yield ""


def _results(results: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Table:
    table = Table(title="results that differ [95% interval]")
    for name in ("measure", "a", "b"):
        table.add_column(name, justify="left" if name == "measure" else "right")
    for name, values in results.items():
        table.add_row(name, *(_interval(values[side]) for side in "ab"))
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
        table.add_row(*(Text(text) for text in (said, *sides)))
    return table


def _value(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:39]}…"
