"""What the registry holds, in the home's own record: which snapshot a version is, and which version an alias names.

MLflow has the same (`tracking`); this copy answers without it, also where the home was copied. Rows are only added.
"""

from dataclasses import dataclass

from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.warehouse import Warehouse, now

POLICY = "rlaif-policy"
CHAMPION = "champion"


@dataclass(frozen=True)
class Version:
    """A registered version. `aliases`: those that name it now."""

    name: str
    version: int
    snapshot_id: str
    created_at: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Move:
    """An alias was given to a version, by whom and why."""

    alias: str
    version: int
    who: str
    why: str
    created_at: str


def add_version(warehouse: Warehouse, name: str, version: int, snapshot_id: str) -> None:
    """Nothing where it is there already. An MLflow database that was made anew counts from 1 again: from then on the
    version is the snapshot that was registered last."""
    with warehouse.connection(read_only=False) as connection:
        current = connection.execute(
            "SELECT arg_max(snapshot_id, position) FROM registrations WHERE name = ? AND version = ?", [name, version]
        ).fetchall()[0][0]
        if current != snapshot_id:
            connection.execute(
                "INSERT INTO registrations SELECT count(*), ?, ?, ?, ? FROM registrations",
                [name, version, snapshot_id, now()],
            )


def set_alias(warehouse: Warehouse, name: str, alias: str, version: int, who: str, why: str) -> None:
    """From now on `alias` names this version; nothing where it does."""
    with warehouse.connection(read_only=False) as connection:
        current = connection.execute(
            "SELECT arg_max(version, position) FROM aliases WHERE name = ? AND alias = ?", [name, alias]
        ).fetchall()[0][0]
        if current != version:
            connection.execute(
                "INSERT INTO aliases SELECT count(*), ?, ?, ?, ?, ?, ? FROM aliases",
                [name, alias, version, who, why, now()],
            )


def versions(warehouse: Warehouse, name: str | None = None) -> list[Version]:
    """All versions, oldest first; of one model where it is named."""
    with warehouse.connection(read_only=True) as connection:
        named = connection.execute(
            "SELECT name, alias, arg_max(version, position) FROM aliases GROUP BY name, alias ORDER BY alias"
        ).fetchall()
        rows = connection.execute(
            "SELECT name, version, snapshot_id, created_at FROM registrations"
            " QUALIFY row_number() OVER (PARTITION BY name, version ORDER BY position DESC) = 1 ORDER BY position"
        ).fetchall()
    found = []
    for model, version, snapshot_id, created_at in rows:
        aliases = tuple(alias for owner, alias, pointed in named if (owner, pointed) == (model, version))
        found.append(Version(model, version, snapshot_id, created_at, aliases))
    return [one for one in found if name is None or one.name == name]


def named(warehouse: Warehouse, name: str, alias: str) -> Version | None:
    """The version that an alias names now."""
    return next((one for one in versions(warehouse, name) if alias in one.aliases), None)


def moves(warehouse: Warehouse, name: str) -> list[Move]:
    """Every time that an alias of this model was given to a version, oldest first."""
    with warehouse.connection(read_only=True) as connection:
        rows = connection.execute(
            "SELECT alias, version, who, why, created_at FROM aliases WHERE name = ? ORDER BY position", [name]
        ).fetchall()
    return [Move(*row) for row in rows]


def promote(warehouse: Warehouse, version: int, who: str, why: str) -> None:
    """Makes a version of the policy the champion. Raises StoreError where there is none, or its weights are gone."""
    found = {one.version: one for one in versions(warehouse, POLICY)}
    if version not in found:
        there = ", ".join(map(str, found)) or "none"
        raise StoreError(f"{warehouse.home} has no {POLICY}/{version}: there are the versions {there}")
    warehouse.weights(warehouse.get(found[version].snapshot_id))
    set_alias(warehouse, POLICY, CHAMPION, version, who, why)
