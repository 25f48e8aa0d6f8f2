"""The verbs of `rlaif` that ask where things came from: trace, diff, export, chat, verify; and prune, which keeps that
answerable. Each calls one function."""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from rlaif_assets.cli_common import (
    WIDE,
    Debug,
    Home,
    Overrides,
    ProfileName,
    dagster_instance,
    folder_of,
    not_empty,
    out,
    plain_errors,
    show,
)
from rlaif_assets.evaluation.terminal import visible
from rlaif_assets.settings import MAX_SEED, SettingsError

lineage = typer.Typer()


@lineage.command()
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
        Path | None, typer.Option("--html", metavar="FILE", parser=folder_of, help="Write a policy's page.")
    ] = None,
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Tell what made a policy, where a row came from and what learned from it, or what a principle reached."""
    with plain_errors(debug):
        from rlaif_assets.evaluation import lineage_view
        from rlaif_assets.instance import dagster_url, existing_home
        from rlaif_assets.store import trace as traces
        from rlaif_assets.store.warehouse import Warehouse

        if sum(one is not None for one in (policy, row, principle)) != 1 or (page and policy is None):
            raise SettingsError("name one of POLICY, --row ID and --principle ID; --html goes with POLICY")
        if page is not None:
            if as_json:
                raise SettingsError("name one of --json and --html")
            if page.is_dir():
                raise SettingsError(f"--html {page}: is a folder, name a file")
            if not page.absolute().parent.is_dir():
                raise SettingsError(f"--html {page}: there is no folder {page.absolute().parent}")
        warehouse = Warehouse(existing_home(home))
        if row is not None:
            found, view = traces.trace_row(warehouse, row), lineage_view.row_view
        elif principle is not None:
            found, view = traces.trace_principle(warehouse, principle), lineage_view.principle_view
        else:
            found, view = traces.trace_policy(warehouse, str(policy), dagster_url()), lineage_view.policy_tree
        if page is not None:
            page.write_text(lineage_view.policy_page(found), encoding="utf-8")
            show(f"written to {page}")
        elif as_json:
            print(json.dumps(found, indent=2))
        else:
            (out if out.is_terminal else Console(highlight=False, width=WIDE)).print(view(found), crop=False)


@lineage.command()
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
            (out if out.is_terminal else Console(highlight=False, width=WIDE)).print(diff_view(found), crop=False)


@lineage.command()
def export(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="A policy, as in `rlaif trace`.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", parser=folder_of, help="A new or empty folder.")],
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=folder_of, help="Sign it with this private key (PEM, elliptic curve)."),
    ] = None,
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Write a policy as a folder that transformers and vLLM load, with a model card and its lineage (in-toto, SLSA;
    CycloneDX)."""
    with plain_errors(debug):
        from rlaif_assets.evaluation.export import export_policy
        from rlaif_assets.instance import existing_home
        from rlaif_assets.store.warehouse import Warehouse

        for name in export_policy(Warehouse(existing_home(home)), policy, folder, key):
            show(str(folder / name))


@lineage.command()
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
        from rlaif_assets.store.checkpoint_files import require_language_model
        from rlaif_assets.store.trace import find_snapshot
        from rlaif_assets.store.warehouse import Warehouse

        compute = apply_overrides(load_profile(profile), overrides or []).compute
        warehouse = Warehouse(existing_home(home))
        names = list(dict.fromkeys(policies or ["@candidate"]))
        folders = {name: warehouse.weights(find_snapshot(warehouse, name)) for name in names}
        for name, folder in folders.items():
            require_language_model(folder, name)
        from rlaif_assets.language_models.local import load_model

        models = {name: load_model(folder, compute) for name, folder in folders.items()}
        for name, answer in talk(Chat(models, max_new_tokens, temperature, seed), _lines()):
            out.print(Text.assemble((visible(name), "bold"), f": {visible(answer)}"), soft_wrap=True)


@lineage.command()
def verify(
    policy: Annotated[
        str,
        typer.Argument(
            metavar="POLICY", callback=not_empty, help="A policy, as in `rlaif trace`; or the folder of an export."
        ),
    ],
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", parser=folder_of, help="Check an export's signature with this public key (PEM)."),
    ] = None,
    profile: ProfileName = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Read again every row and file that made a policy, and compare the home's, Dagster's and MLflow's records.

    Exit code 1 where anything is not as it was recorded. Profile and settings say where MLflow is. The folder of an
    export is checked against its own statement, and with --key against its signature, without a home.
    """
    with plain_errors(debug):
        from rlaif_assets.evaluation.export import BOM, STATEMENT
        from rlaif_assets.evaluation.signing import SIGNATURE

        if (Path(policy) / STATEMENT).is_file():
            _verify_folder(Path(policy), key, as_json)
            return
        if any((Path(policy) / name).is_file() for name in (BOM, SIGNATURE)):
            raise SettingsError(f"{policy} is an export without its {STATEMENT}: export it again")
        if key is not None:
            raise SettingsError(f"{policy} is no export (it has no {STATEMENT}): --key goes with one")
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
            for line in (*found["problems"], *found["notes"]):
                show(line)
            show(
                f"{found['snapshot_id']}: {found['snapshots']} snapshots with {found['rows']:,} rows read again, "
                f"{len(found['problems'])} problems"
            )
        if found["problems"]:
            raise typer.Exit(1)


def _verify_folder(folder: Path, key: Path | None, as_json: bool) -> None:
    from rlaif_assets.evaluation.export import verify_export
    from rlaif_assets.evaluation.signing import SIGNATURE, signature_problems

    signed = (folder / SIGNATURE).is_file()
    problems = [*verify_export(folder), *(signature_problems(folder, key) if key else [])]
    if as_json:
        checked = {"signed": signed, "signature_checked": signed and key is not None}
        print(json.dumps({"asked": str(folder), "problems": problems} | checked, indent=2))
    else:
        for line in [*problems, f"{folder}: {len(problems)} problems"]:
            show(line)
        if signed and key is None:
            show(f"{SIGNATURE} was not checked: name the signer's public key with --key")
        elif not problems and key is not None:
            show(f"{SIGNATURE} was made with the key of {key}")
    if problems:
        raise typer.Exit(1)


def _lines() -> Iterator[str]:
    """What a person types, with a prompt where there is one to see it. Bytes that are no text are replaced."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
