"""The `rlaif` command. Every verb reads its options, calls one function and prints; what happens belongs to others.

Exit codes: 0 done, 1 it failed, 2 the options or settings are wrong, 3 skipped because another run relabels this home,
130 stopped by Ctrl-C.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from rlaif_assets.instance import QUIET
from rlaif_assets.settings import MAX_SEED, SettingsError

app = typer.Typer(
    name="rlaif",
    help="RLAIF and Constitutional AI as Dagster assets: run the steps, read the results, look at them in the browser.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
WIDE = 2000  # columns of what is piped: nothing is wrapped or cut off
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def _named(value: str | Path | None) -> str | Path | None:
    """An empty variable in a script is a mistake, not the current folder or the default."""
    if value == "":
        raise typer.BadParameter("it is empty")
    return value


def _folder(value: str) -> Path:
    return Path(str(_named(value)))


Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        metavar="DIR",
        parser=_folder,
        help="Where everything is kept; default DAGSTER_HOME, else dagster_home.",
    ),
]
ProfileName = Annotated[
    str | None,
    typer.Option(
        "--profile",
        callback=_named,
        metavar="P",
        help="A packaged profile or a YAML file; default RLAIF_PROFILE, else pocket.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="Override a setting, e.g. red_team_prompts.limit=200."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show Dagster's log and the traceback of an error.")]


@app.command()
def run(
    profile: ProfileName = None,
    select: Annotated[
        str | None,
        typer.Option(metavar="ASSETS", help="Assets to materialize, separated by commas, or Dagster selections."),
    ] = None,
    overrides: Overrides = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, max=MAX_SEED, help="For every stage that has one.")
    ] = None,
    force: Annotated[
        str | None, typer.Option(metavar="ASSETS", help="Make these again even where nothing changed.")
    ] = None,
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Materialize the assets; what has not changed is reused, and a run that died goes on where it stopped."""
    with plain_errors(debug):
        from rlaif_assets.instance import home_folder, prepare_home, use_profile
        from rlaif_assets.settings import apply_overrides, load_profile

        settings = apply_overrides(load_profile(profile), overrides or [], seed)
        use_profile(profile)
        from rlaif_assets.pipeline import chosen_assets, rlaif_all, run_pipeline, with_bars

        chosen_assets(rlaif_all(), select, force)  # a wrong name leaves no home behind
        folder = prepare_home(home_folder(home), profile)
        bars = out.is_terminal and settings.compute.progress == "log"
        with dagster_instance() as instance:
            _mark_dead_runs(instance, folder)
            run_pipeline(instance, with_bars(settings) if bars else settings, select, force, _line, debug)
        _show_results(folder, quiet=select is not None)
        out.print(f"\nAll of it is in {escape(_short(folder))}.", soft_wrap=True)
        option = f" --home {escape(_short(folder))}" if home else ""
        out.print(
            f"Next: [bold]{escape(_command())} report{option}[/] for the numbers, "
            f"[bold]{escape(_command())} ui{option}[/] for graph and runs.",
            soft_wrap=True,
        )


@app.command()
def relabel(
    profile: ProfileName = None,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be judged; judge nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Judge what a changed constitution, judge, template or age asks for, make new labels, and tell what changed."""
    with plain_errors(debug):
        from rlaif_assets.instance import existing_home, prepare_home
        from rlaif_assets.relabel import forecast
        from rlaif_assets.relabel import relabel as relabel_home
        from rlaif_assets.settings import apply_overrides, load_profile

        settings = apply_overrides(load_profile(profile), overrides or [])
        folder = prepare_home(existing_home(home), profile)
        if dry_run:
            found = forecast(folder, settings)
        else:
            with dagster_instance() as instance:
                _mark_dead_runs(instance, folder, _note)
                found = relabel_home(instance, folder, settings, _note, debug)
        if as_json:
            print(json.dumps(found, indent=2))
        else:
            out.print(escape(relabel_text(found)), soft_wrap=True)
        if found.get("stopped"):
            _fail(found["stopped"])
            raise typer.Exit(1)


@app.command()
def report(
    homes: Annotated[
        list[Path] | None,
        typer.Argument(metavar="HOME...", parser=_folder, help="Homes; several give mean and spread."),
    ] = None,
    split: Annotated[Literal["dev", "test"], typer.Option(help="The held-out prompts to read the rates on.")] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Print the results of one or several homes: base, SL-CAI and PPO side by side."""
    with plain_errors(debug):
        from rlaif_assets.evaluation.report import build_report, combine_reports, report_table
        from rlaif_assets.instance import home_folder
        from rlaif_assets.store.warehouse import Warehouse

        named = [*(homes or []), *([home] if home else [])] or [None]
        folders = list({found.resolve(): found for found in map(home_folder, named)}.values())  # each counts once
        reports = [build_report(Warehouse(folder), split) for folder in folders]
        if len(reports) == 1:
            whole, table = reports[0], report_table(reports[0])
        else:
            whole = combine_reports(reports, [str(folder) for folder in folders])
            table = report_table({"split": split, **whole["mean"], "mixed": whole["mixed"]}, whole["spread"])
        if as_json:
            print(json.dumps(whole, indent=2))
        else:
            out.print(table)
            for line in whole.get("left_out", ()):
                _line(line)


@app.command()
def trace(
    policy: Annotated[
        str | None,
        typer.Argument(
            metavar="POLICY",
            help="A registry version (rlaif-policy/3, @candidate), snapshot id, asset name or checkpoint folder.",
        ),
    ] = None,
    row: Annotated[
        str | None, typer.Option(metavar="ID", help="A prompt, revision, pair, label, judgement or verdict.")
    ] = None,
    principle: Annotated[str | None, typer.Option(metavar="ID", help="A principle's id or name.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    page: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", parser=_folder, help="Write a policy's page.")
    ] = None,
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Tell what made a policy, where a row came from and what learned from it, or what a principle reached."""
    with plain_errors(debug):
        from rlaif_assets.evaluation import lineage_view
        from rlaif_assets.instance import existing_home
        from rlaif_assets.store import trace as traces
        from rlaif_assets.store.warehouse import Warehouse

        if sum(one is not None for one in (policy, row, principle)) != 1 or (page and policy is None):
            raise SettingsError("name one of POLICY, --row ID and --principle ID; --html goes with POLICY")
        warehouse = Warehouse(existing_home(home))
        if row is not None:
            found, view = traces.trace_row(warehouse, row), lineage_view.row_view
        elif principle is not None:
            found, view = traces.trace_principle(warehouse, principle), lineage_view.principle_view
        else:
            found, view = traces.trace_policy(warehouse, str(policy)), lineage_view.policy_tree
        if page is not None:
            page.write_text(lineage_view.policy_page(found), encoding="utf-8")
            _line(f"written to {page}")
        elif as_json:
            print(json.dumps(found, indent=2))
        else:
            (out if out.is_terminal else Console(highlight=False, width=WIDE)).print(view(found), crop=False)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A policy, as in `rlaif trace`.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The policy to compare it with.")],
    split: Annotated[Literal["dev", "test"], typer.Option(help="The held-out prompts to compare results on.")] = "test",
    answers: Annotated[int, typer.Option(min=0, metavar="N", help="Prompts to show answers to.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Tell how two policies differ: settings, constitution, judge, rows, results, and answers side by side."""
    with plain_errors(debug):
        from rlaif_assets.evaluation.diff_view import diff_view
        from rlaif_assets.evaluation.policy_diff import diff_policies
        from rlaif_assets.instance import existing_home
        from rlaif_assets.store.warehouse import Warehouse

        found = diff_policies(Warehouse(existing_home(home)), a, b, split, answers)
        if as_json:
            print(json.dumps(found, indent=2))
        else:
            out.print(diff_view(found))


@app.command()
def export(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="A policy, as in `rlaif trace`.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", parser=_folder, help="A new or empty folder.")],
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Write a policy as a folder that transformers and vLLM load, with a model card and its lineage (in-toto, SLSA)."""
    with plain_errors(debug):
        from rlaif_assets.evaluation.export import export_policy
        from rlaif_assets.instance import existing_home
        from rlaif_assets.store.warehouse import Warehouse

        for name in export_policy(Warehouse(existing_home(home)), policy, folder):
            _line(str(folder / name))


@app.command()
def chat(
    policies: Annotated[
        list[str] | None,
        typer.Argument(metavar="[POLICY]...", help="Policies, as in `rlaif trace`; default @candidate."),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of their answers.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="The most tokens of an answer.")] = 256,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=MAX_SEED, help="Draws the answers.")] = 0,
    profile: ProfileName = None,
    overrides: Overrides = None,
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Talk to one or several policies side by side. /reset begins anew, /quit or Ctrl-D ends."""
    with plain_errors(debug):
        from rlaif_assets.evaluation.chat import Chat, talk
        from rlaif_assets.instance import existing_home
        from rlaif_assets.settings import apply_overrides, load_profile
        from rlaif_assets.store.trace import find_snapshot
        from rlaif_assets.store.warehouse import Warehouse

        compute = apply_overrides(load_profile(profile), overrides or []).compute
        warehouse = Warehouse(existing_home(home))
        names = list(dict.fromkeys(policies or ["@candidate"]))
        folders = {name: warehouse.weights(find_snapshot(warehouse, name)) for name in names}
        from rlaif_assets.language_models.local import load_model

        models = {name: load_model(folder, compute) for name, folder in folders.items()}
        for name, answer in talk(Chat(models, max_new_tokens, temperature, seed), _lines()):
            out.print(f"[bold]{escape(name)}[/]: {escape(answer)}", soft_wrap=True)


@app.command()
def verify(
    policy: Annotated[
        str, typer.Argument(metavar="POLICY", help="A policy, as in `rlaif trace`; or the folder of an export.")
    ],
    profile: ProfileName = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Read again every row and file that made a policy, and compare the home's, Dagster's and MLflow's records.

    Exit code 1 where anything is not as it was recorded. Profile and settings say where MLflow is. The folder of an
    export is checked against its own statement, without a home.
    """
    with plain_errors(debug):
        from rlaif_assets.evaluation.export import STATEMENT, verify_export

        if (Path(policy) / STATEMENT).is_file():
            changed = verify_export(Path(policy))
            if as_json:
                print(json.dumps({"asked": policy, "problems": changed}, indent=2))
            else:
                for line in [*changed, f"{policy}: {len(changed)} problems"]:
                    _line(line)
            if changed:
                raise typer.Exit(1)
            return
        from rlaif_assets.instance import existing_home, prepare_home
        from rlaif_assets.settings import apply_overrides, load_profile
        from rlaif_assets.store.tracking import Tracker
        from rlaif_assets.store.warehouse import Warehouse
        from rlaif_assets.verification import missing_databases, verify_policy

        tracking = apply_overrides(load_profile(profile), overrides or []).tracking
        folder = existing_home(home)
        missing = missing_databases(folder)  # before anything is opened, which would make them
        prepare_home(folder, profile)
        tracker = Tracker(tracking.uri, folder, tracking.experiment, tracking.ui_url)
        with nullcontext() if missing else dagster_instance() as instance:
            found = verify_policy(Warehouse(folder), policy, tracker, instance)
        if as_json:
            print(json.dumps(found, indent=2))
        else:
            for problem in found["problems"]:
                _line(problem)
            _line(
                f"{found['snapshot_id']}: {found['snapshots']} snapshots with {found['rows']:,} rows read again, "
                f"{len(found['problems'])} problems"
            )
        if found["problems"]:
            raise typer.Exit(1)


@app.command()
def audit(
    pairs: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="Pairs that people labelled: chosen/rejected, or input, output_1, output_2, label."
        ),
    ],
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="'pocket', a folder, hub id@COMMIT, or endpoint URL@MODEL; default the profile's.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Read at most so many rows.")] = None,
    profile: ProfileName = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Judge pairs that people labelled and print the audits; exit code 1 where one that stops training failed.

    The judgements are kept in the home: what was asked there once is not asked again.
    """
    with plain_errors(debug):
        from rlaif_assets.assets.progress import make_progress
        from rlaif_assets.feedback.file_audit import audit_pairs, audit_table, named_judge, open_judge
        from rlaif_assets.ingest.constitution import read_constitution
        from rlaif_assets.ingest.labelled_pairs import read_labelled_pairs
        from rlaif_assets.instance import new_or_existing_home, prepare_home
        from rlaif_assets.settings import apply_overrides, load_profile
        from rlaif_assets.store.judgements import JudgementStore
        from rlaif_assets.store.warehouse import Warehouse

        settings = apply_overrides(load_profile(profile), overrides or [])
        folder = new_or_existing_home(home)
        comparisons, refused = read_labelled_pairs(pairs, limit)
        _, constitution = read_constitution(settings.constitution.path)
        judging = settings.harmlessness_preferences
        opened, model = open_judge(named_judge(judge, settings.feedback_model), judging, settings.compute)
        store = JudgementStore(Warehouse(prepare_home(folder, profile)), _note)
        progress = make_progress("bar" if out.is_terminal and not as_json else "none", _line, "audit")
        try:
            found = audit_pairs(
                opened, model, constitution, comparisons, refused, judging, settings.audits, store, progress
            )
        finally:
            progress.close()
        if as_json:
            print(json.dumps(found, indent=2))
        else:
            out.print(audit_table(found))
        if settings.audits.enforce and not found["passed"]:
            raise typer.Exit(1)


@app.command()
def ui(
    profile: ProfileName = None,
    overrides: Overrides = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Dagster's port on 127.0.0.1.")] = 3000,
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Open Dagster's UI and MLflow's beside it over the same home, on this machine alone."""
    with plain_errors(debug):
        from rlaif_assets.instance import home_folder, prepare_home
        from rlaif_assets.settings import apply_overrides, load_profile
        from rlaif_assets.ui import check_addresses, serve, use_settings

        settings = apply_overrides(load_profile(profile), overrides or [])
        check_addresses(settings.tracking.ui_url, port)  # before the running UI's settings are replaced
        folder = prepare_home(home_folder(home))
        use_settings(folder, settings)
        with dagster_instance() as instance:
            found, _ = _mark_dead_runs(instance, folder)
        for line in found.left:
            _line(line)
        serve(folder, settings.tracking.uri, settings.tracking.ui_url, port, _line)


@app.command()
def doctor(home: Home = None, debug: Debug = False) -> None:
    """Mark runs failed whose process died, free their pool slots, remove unfinished weights; say what was found."""
    with plain_errors(debug):
        from rlaif_assets.instance import existing_home, prepare_home
        from rlaif_assets.store.checkpoint_files import killed_trainings
        from rlaif_assets.store.warehouse import Warehouse

        folder = prepare_home(existing_home(home))
        with dagster_instance() as instance:
            found, removed = _mark_dead_runs(instance, folder)
        Warehouse(folder).list()  # one that cannot be read says so
        for line in [*found.left, *killed_trainings(folder)]:
            _line(line)
        if not (found.failed or found.freed or removed):
            _line(f"nothing to repair in {_short(folder)}")


def main() -> None:
    """The console script."""
    app()


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
            _line(f"skipped: {error}")
            raise typer.Exit(3) from None
        if debug:
            raise
        _fail(str(error) or type(error).__name__)
        if not _expected(error):
            err.print("This was not foreseen; --debug shows where it happened.")
        raise typer.Exit(2 if isinstance(error, SettingsError) else 1) from None


def _expected(error: Exception) -> bool:
    """Errors whose message says what to do; their modules are loaded already if one of them was raised."""
    if isinstance(error, SettingsError):
        return True
    return type(error).__module__.startswith("rlaif_assets.")


def _lines() -> Iterator[str]:
    """What a person types, with a prompt where there is one to see it."""
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return


def _line(text: str) -> None:
    out.print(escape(text), soft_wrap=True)


def relabel_text(found: dict[str, Any]) -> str:
    """What `rlaif relabel` found or did, for a person."""
    would = "would be " if found["dry_run"] else ""
    lines = [f"{found['reused']} judgements {would}reused, {found['computed']} {would}computed"]
    lines += [f"  {count} for {reason}" for reason, count in found["by_reason"].items()]
    audits = found["audits"]
    lines.append(f"audits: {audits['reused']} {would}reused, {audits['computed']} {would}computed")
    if found["dry_run"]:
        tokens, seconds = found["expected_tokens"], found["expected_seconds"]
        lines.append(f"expected tokens: {'unknown' if tokens is None else f'{tokens:,}'}")
        lines.append(f"expected seconds: {found['unknown'] if seconds is None else f'{seconds:,.0f}'}")
    elif found["changes"]:
        changes = found["changes"]
        lines.append(f"{changes['flipped']} of {changes['labels']} labels flipped")
    return "\n".join(lines)


def _fail(text: str) -> None:
    err.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)


def _note(text: str) -> None:
    """A line beside the results: with --json these alone are on stdout."""
    err.print(escape(text), soft_wrap=True)


def _mark_dead_runs(instance: Any, home: Path, show: Callable[[str], None] = _line) -> tuple[Any, list[str]]:
    """What was found of dead runs, and the work folders that were removed; both are told."""
    from rlaif_assets.instance import mark_dead_runs, set_gpu_slots
    from rlaif_assets.store.checkpoint_files import remove_dead_work

    found = mark_dead_runs(instance)
    set_gpu_slots(instance)
    removed = [] if found.left else remove_dead_work(home)
    work = [f"unfinished weights of a dead process removed: {name}" for name in removed]
    for line in [*found.failed, *found.freed, *work]:
        show(line)
    return found, removed


def _show_results(home: Path, quiet: bool) -> None:
    """The table of results; without an evaluation nothing where that is no surprise (`quiet`)."""
    from rlaif_assets.evaluation.report import ReportError, build_report, report_table
    from rlaif_assets.store.warehouse import Warehouse

    try:
        table = report_table(build_report(Warehouse(home), "test"))
        out.print()
        out.print(table)
    except ReportError:
        if not quiet:
            raise


def _command() -> str:
    """What a person types to start this command again: its name where that finds it, else the path of its script."""
    called = Path(sys.argv[0])
    if called.name != "rlaif":
        return "rlaif"
    found = shutil.which("rlaif")
    if found is not None and Path(found).absolute() == called.absolute():
        return "rlaif"
    return _short(called.absolute())


def _short(folder: Path) -> str:
    """The path relative to the current folder where it lies inside."""
    current = Path.cwd()
    return str(folder.relative_to(current)) if folder.is_relative_to(current) and folder != current else str(folder)


if __name__ == "__main__":
    sys.exit(main())
