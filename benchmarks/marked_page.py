"""A page that holds a benchmark's results between two marker comments, which it was given by hand."""

from pathlib import Path


class MarkerError(ValueError):
    """The page has no place for the results."""


def markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def around_results(page: Path, name: str) -> tuple[str, str]:
    """The page's text up to and from the markers, both with them. Raises MarkerError where it has none."""
    begin, end = markers(name)
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise MarkerError(f"{page} has no place for the table: give it the lines {begin} and {end}")
    return before + begin, end + after


def put_results(page: Path, name: str, results: str) -> None:
    """Puts the results between the markers and leaves the rest as it is. Raises MarkerError."""
    before, after = around_results(page, name)
    page.write_text(f"{before}\n\n{results}\n\n{after}", encoding="utf-8")
