"""A page that holds a benchmark's results between two marker comments, which it was given by hand; and what all tables
of a race begin with."""

import argparse
import platform
from collections.abc import Callable
from importlib.metadata import version
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


def machine(chosen: argparse.Namespace, dtype: str, *packages: str) -> str:
    """Where a race ran and on what, from its arguments `device` and `threads`."""
    import torch

    hardware = torch.cuda.get_device_name() if chosen.device.startswith("cuda") else f"{platform.machine()}, CPU"
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{hardware}, {chosen.threads} threads, {dtype}, Python {platform.python_version()}, {versions}"


def publish(name: str, page: Path | None, make: Callable[[], str], *errors: type[Exception]) -> None:
    """Prints what `make` gives, and puts it into the page, whose place is looked for first. `errors` and a page without
    a place end the program with their text."""
    try:
        if page:
            around_results(page, name)
        text = make()
    except (*errors, MarkerError) as error:
        raise SystemExit(str(error)) from error
    print(text)
    if page:
        put_results(page, name, text)
