"""The verbs of `rlaif` that decide which policies count and which are kept: promote, prune."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from rlaif_assets.cli_common import (
    Debug,
    Home,
    Overrides,
    ProfileName,
    dagster_instance,
    plain_errors,
    show,
    show_aside,
    user_name,
)

if TYPE_CHECKING:
    from rlaif_assets.store.pruning import Plan

policies = typer.Typer()


@policies.command()
def promote(
    to: Annotated[
        int | None, typer.Option("--to", metavar="N", min=1, help="Make this version the champion; without: list them.")
    ] = None,
    why: Annotated[str, typer.Option(metavar="TEXT", help="Why, for the record.")] = "by hand",
    profile: ProfileName = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Make a version of rlaif-policy the champion, recorded with who and why; without --to tell versions and moves.

    Profile and settings say where MLflow is.
    """
    with plain_errors(debug):
        from rlaif_assets.instance import existing_home
        from rlaif_assets.settings import apply_overrides, load_profile
        from rlaif_assets.store import registry
        from rlaif_assets.store.errors import TrackingError
        from rlaif_assets.store.tracking import Tracker
        from rlaif_assets.store.warehouse import Warehouse

        tracking = apply_overrides(load_profile(profile), overrides or []).tracking
        warehouse = Warehouse(existing_home(home))
        if to is not None:
            champion = registry.promote(warehouse, to, user_name(), why)
            tracker = Tracker(tracking.uri, warehouse.home, tracking.experiment, tracking.ui_url)
            try:
                if not tracker.point(registry.POLICY, registry.CHAMPION, champion.snapshot_id):
                    show_aside(f"recorded in the home; {registry.unknown_in_mlflow(champion)}")
            except TrackingError as error:
                show_aside(f"recorded in the home; MLflow was not told: {error}")
        known, moves = registry.versions(warehouse, registry.POLICY), registry.moves(warehouse, registry.POLICY)
        if as_json:
            print(
                json.dumps({"versions": [vars(one) for one in known], "moves": [vars(one) for one in moves]}, indent=2)
            )
            return
        for one in known:
            aliases = "".join(f" @{alias}" for alias in one.aliases)
            show(f"{one.name}/{one.version}{aliases} {one.snapshot_id} of {one.created_at[:19]}")
        for move in moves:
            show(f"{move.created_at[:19]} @{move.alias} to {move.version} by {move.who}: {move.why}")


@policies.command()
def prune(
    keep: Annotated[int, typer.Option(metavar="N", min=1, help="Keep the weights of the N newest policies.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be removed; remove nothing.")] = False,
    profile: ProfileName = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    home: Home = None,
    debug: Debug = False,
) -> None:
    """Remove weights and MLflow artifacts, but for the newest policies, those that an alias names, and what is current.

    All that these were made from stays too. Rows stay, so `trace` answers. Profile and settings say where MLflow is.
    """
    with plain_errors(debug):
        from rlaif_assets.instance import existing_home, open_runs, prepare_home
        from rlaif_assets.relabel_lock import relabelling
        from rlaif_assets.settings import apply_overrides, load_profile
        from rlaif_assets.store import pruning
        from rlaif_assets.store.errors import StoreError
        from rlaif_assets.store.tracking import Tracker
        from rlaif_assets.store.warehouse import Warehouse
        from rlaif_assets.verification import DAGSTER_DATABASES, missing_databases

        tracking = apply_overrides(load_profile(profile), overrides or []).tracking
        folder = existing_home(home)
        missing = missing_databases(folder)  # before anything is opened, which would make them
        prepare_home(folder, profile)
        warehouse, tracker = Warehouse(folder), Tracker(tracking.uri, folder, tracking.experiment, tracking.ui_url)
        named, who = pruning.named_in_mlflow(warehouse, tracker), user_name()
        if 0 < len(missing) < len(DAGSTER_DATABASES):
            told = " and ".join(missing)
            raise StoreError(f"{told} missing: whether a run is open cannot be told; see `rlaif verify`")
        with nullcontext() if missing else dagster_instance() as instance:

            def busy() -> list[str]:
                told = relabelling(folder)
                return [*(open_runs(instance) if instance is not None else ()), *([told] if told else ())]

            if dry_run:
                found = pruning.plan(warehouse, keep, named)
                aside = [f"prune would be refused now: {line}" for line in busy()]
            else:
                found = pruning.prune(warehouse, keep, named, who, busy)
                untold = pruning.tag_runs(found, tracker, who, keep)
                aside = [f"MLflow was not told: {untold}"] if untold else []
        if as_json:
            removed = [
                {"path": one.path, "bytes": one.size}
                | {name: one.record and getattr(one.record, name) for name in ("asset", "snapshot_id")}
                for one in found.removals
            ]
            whole = {"keep": keep, "dry_run": dry_run, "kept": found.kept, "removed": removed, "bytes": found.size}
            print(json.dumps(whole, indent=2))
        else:
            for line in prune_lines(found, dry_run):
                show(line)
        for line in aside:
            show_aside(line)


def prune_lines(found: "Plan", dry_run: bool) -> Iterator[str]:
    """What `rlaif prune` would remove or removed, for a person: a line per snapshot, and the sum."""
    done = "would be removed" if dry_run else "removed"
    sizes: dict[str, dict[str, int]] = {}
    for one in found.removals:
        record = one.record
        name = (
            f"{record.asset} {record.snapshot_id} of {record.created_at[:10]}" if record else f"{one.path}, left over"
        )
        own = sizes.setdefault(name, {})
        own[one.kind] = own.get(one.kind, 0) + one.size
    for name, own in sizes.items():
        yield f"{name}: {' and '.join(f'{_mb(size)} of {kind}' for kind, size in own.items())} {done}"
    yield f"{_mb(found.size)} {done}; kept: {len(found.kept)} policies, what is current, and what these are made of"


def _mb(size: int) -> str:
    return f"{size / 2**20:.2f} MB"
