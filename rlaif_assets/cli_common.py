"""What the verbs of the `rlaif` command share: consoles, options, errors as messages and exit codes."""

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from rlaif_assets.evaluation.terminal import visible
from rlaif_assets.instance import QUIET
from rlaif_assets.settings import SettingsError

WIDE = 2000  # columns of what is piped: nothing is wrapped or cut off
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def not_empty(value: str | Path | None) -> str | Path | None:
    """An empty variable in a script is a mistake, not the current folder or the default."""
    if value == "":
        raise typer.BadParameter("it is empty")
    return value


def folder_of(value: str) -> Path:
    return Path(str(not_empty(value)))


Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        metavar="DIR",
        parser=folder_of,
        help="Where everything is kept; default DAGSTER_HOME, else dagster_home.",
    ),
]
ProfileName = Annotated[
    str | None,
    typer.Option(
        "--profile",
        callback=not_empty,
        metavar="P",
        help="A packaged profile or a YAML file; default RLAIF_PROFILE, else pocket.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="Override a setting, e.g. red_team_prompts.limit=200."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show Dagster's log and the traceback of an error.")]


def user_name() -> str:
    """Who types, for what is recorded with a name; the number of a user without one, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


@contextmanager
def dagster_instance() -> "Iterator[Any]":
    """The Dagster instance of DAGSTER_HOME. Opened under a lock: two processes that make its databases break them."""
    import dagster as dg
    from filelock import FileLock

    with FileLock(Path(os.environ["DAGSTER_HOME"]) / "dagster.lock"):
        opened = dg.DagsterInstance.get()
        _ = (opened.run_storage, opened.event_log_storage, opened.schedule_storage)  # made when they are asked for
    with opened as instance:
        yield instance


@contextmanager
def plain_errors(debug: bool) -> Iterator[None]:
    """Every error as one message and an exit code; with `debug` as its traceback. Nothing that starts here sends
    telemetry."""
    os.environ.update(QUIET)
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        err.print("stopped")
        raise typer.Exit(130) from None
    except Exception as error:
        from rlaif_assets.pipeline import RunSkippedError

        if isinstance(error, RunSkippedError):
            show(f"skipped: {error}")
            raise typer.Exit(3) from None
        if debug:
            raise
        show_error(str(error) or type(error).__name__)
        if not _expected(error):
            err.print("This was not foreseen; --debug shows where it happened.")
        raise typer.Exit(2 if isinstance(error, SettingsError) else 1) from None


def _expected(error: Exception) -> bool:
    """Errors whose message says what to do; their modules are loaded already if one of them was raised."""
    if isinstance(error, SettingsError):
        return True
    return type(error).__module__.startswith("rlaif_assets.")


def show(text: str) -> None:
    out.print(Text(visible(text)), soft_wrap=True)


def show_error(text: str) -> None:
    err.print(Text.assemble(("error:", "bold red"), f" {visible(text)}"), soft_wrap=True)


def show_aside(text: str) -> None:
    """A line beside the results: with --json these alone are on stdout."""
    err.print(Text(visible(text)), soft_wrap=True)
