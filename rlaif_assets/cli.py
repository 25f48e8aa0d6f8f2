"""The `rlaif` command. Every verb reads its options, calls one function and prints; what happens belongs to others.

Exit codes: 0 done, 1 it failed, 2 the options or settings are wrong, 3 skipped because another run relabels this home,
130 stopped by Ctrl-C.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from rlaif_assets.cli_common import (
    Debug,
    Home,
    Overrides,
    ProfileName,
    dagster_instance,
    folder_of,
    out,
    plain_errors,
    show,
    show_aside,
    show_error,
)
from rlaif_assets.cli_lineage import lineage
from rlaif_assets.cli_registry import policies
from rlaif_assets.settings import MAX_SEED, SettingsError

app = typer.Typer(
    name="rlaif",
    help="RLAIF and Constitutional AI as Dagster assets: run the steps, read the results, look at them in the browser.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(lineage)
app.add_typer(policies)


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
            run_pipeline(instance, with_bars(settings) if bars else settings, select, force, show, debug)
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
                _mark_dead_runs(instance, folder, show_aside)
                found = relabel_home(instance, folder, settings, show_aside, debug)
        if as_json:
            print(json.dumps(found, indent=2))
        else:
            show(relabel_text(found))
        if found.get("stopped"):
            show_error(found["stopped"])
            raise typer.Exit(1)


@app.command()
def report(
    homes: Annotated[
        list[Path] | None,
        typer.Argument(metavar="HOME...", parser=folder_of, help="Homes; several give mean and spread."),
    ] = None,
    split: Annotated[Literal["dev", "test"], typer.Option(help="The held-out prompts to read the rates on.")] = "test",
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY", help="A policy of one home, as in `rlaif trace`; default the one last evaluated."
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", parser=folder_of, help="Write the policy's report as a page."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Print the results of one or several homes: base, SL-CAI and PPO side by side; or write a policy's page."""
    with plain_errors(debug):
        from rlaif_assets.evaluation.report import (
            ReportError,
            build_report,
            combine_reports,
            named_policy,
            report_table,
        )
        from rlaif_assets.instance import home_folder
        from rlaif_assets.store.warehouse import Warehouse

        named = [*(homes or []), *([home] if home else [])] or [None]
        folders = list({found.resolve(): found for found in map(home_folder, named)}.values())  # each counts once
        if (policy or page) and len(folders) > 1:
            raise SettingsError(f"--policy and --html go with one home, and {len(folders)} are named")
        record, evaluation = named_policy(Warehouse(folders[0]), policy) if policy or page else (None, None)
        if record is not None and page is not None:
            from rlaif_assets.evaluation.policy_report import policy_page

            if not page.absolute().parent.is_dir():
                raise SettingsError(f"--html {page}: there is no folder {page.absolute().parent}")
            page.write_text(policy_page(Warehouse(folders[0]), record, evaluation, split), encoding="utf-8")
            show(f"written to {page}")
            return
        if record is not None and evaluation is None:
            raise ReportError(f"{policy} was never evaluated; --html writes what it was made from")
        reports = [build_report(Warehouse(folder), split, evaluation) for folder in folders]
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
                show(line)


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
        store = JudgementStore(Warehouse(prepare_home(folder, profile)), show_aside)
        progress = make_progress("bar" if out.is_terminal and not as_json else "none", show, "audit")
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
            show(line)
        serve(folder, settings.tracking.uri, settings.tracking.ui_url, port, show)


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
            show(line)
        if not (found.failed or found.freed or removed):
            show(f"nothing to repair in {_short(folder)}")


def main() -> None:
    """The console script."""
    app()


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


def _mark_dead_runs(instance: Any, home: Path, tell: Callable[[str], None] = show) -> tuple[Any, list[str]]:
    """What was found of dead runs, and the work folders that were removed; both are told."""
    from rlaif_assets.instance import mark_dead_runs, set_gpu_slots
    from rlaif_assets.store.checkpoint_files import remove_dead_work

    found = mark_dead_runs(instance)
    set_gpu_slots(instance)
    removed = [] if found.left else remove_dead_work(home)
    work = [f"unfinished weights of a dead process removed: {name}" for name in removed]
    for line in [*found.failed, *found.freed, *work]:
        tell(line)
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
