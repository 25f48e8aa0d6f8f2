"""What the registry holds, in the home's own record: which snapshot a version is, and which version an alias names.

MLflow is told the same (`tracking`); this record decides, also where MLflow is away, was made anew or the home was
copied. Rows are only added.
"""

from dataclasses import dataclass

from rlaif_assets.store.errors import StoreError
from rlaif_assets.store.warehouse import Warehouse, now

POLICY = "rlaif-policy"
CHAMPION = "champion"
CANDIDATE = "candidate"  # the newest policy
ALIASES = "SELECT name, alias, arg_max(version, position) FROM aliases GROUP BY name, alias ORDER BY name, alias"


@dataclass(frozen=True)
class Version:
    """A registered version. `mlflow_version`: its number in MLflow, None where MLflow was away. `aliases`: those that
    name it now."""

    name: str
    version: int
    snapshot_id: str
    mlflow_version: int | None
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


def add_version(warehouse: Warehouse, name: str, snapshot_id: str, mlflow_version: int | None = None) -> int:
    """The snapshot's version, given to it once. It is MLflow's number where that is free: an MLflow database that was
    made anew counts from 1 again, and a number that has named a snapshot never names another."""
    known = versions(warehouse, name)
    own = next((one for one in known if one.snapshot_id == snapshot_id), None)
    taken = {one.version for one in known}
    if own is not None:
        version = own.version
    elif mlflow_version is not None and mlflow_version not in taken:
        version = mlflow_version
    else:
        version = max(taken, default=0) + 1
    if own is None or mlflow_version not in (None, own.mlflow_version):
        with warehouse.connection(read_only=False) as connection:
            connection.execute(
                "INSERT INTO registrations (position, name, version, snapshot_id, mlflow_version, created_at)"
                " SELECT count(*), ?, ?, ?, ?, ? FROM registrations",
                [name, version, snapshot_id, mlflow_version, now()],
            )
    return version


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
        named = connection.execute(ALIASES).fetchall()
        rows = connection.execute(
            "SELECT name, version, arg_min(snapshot_id, position),"
            " arg_max(mlflow_version, position) FILTER (WHERE mlflow_version IS NOT NULL), min(created_at)"
            " FROM registrations GROUP BY name, version ORDER BY min(position)"
        ).fetchall()
    found = []
    for model, version, snapshot_id, mlflow_version, created_at in rows:
        aliases = tuple(alias for owner, alias, pointed in named if (owner, pointed) == (model, version))
        found.append(Version(model, version, snapshot_id, mlflow_version, created_at, aliases))
    return [one for one in found if name is None or one.name == name]


def aliases(warehouse: Warehouse) -> list[tuple[str, str, int]]:
    """(model, alias, version) of every alias now, also where the version is not there."""
    with warehouse.connection(read_only=True) as connection:
        return connection.execute(ALIASES).fetchall()


def named(warehouse: Warehouse, name: str, alias: str) -> Version | None:
    """The version that an alias names now."""
    return next((one for one in versions(warehouse, name) if alias in one.aliases), None)


def unknown_in_mlflow(champion: Version) -> str:
    """What is said where MLflow could not be told of this champion, since it has no version of that snapshot."""
    return (
        f"MLflow has no version that is {champion.name}/{champion.version} (snapshot {champion.snapshot_id}), so its "
        f"alias {CHAMPION} names none now"
    )


def moves(warehouse: Warehouse, name: str) -> list[Move]:
    """Every time that an alias of this model was given to a version, oldest first."""
    with warehouse.connection(read_only=True) as connection:
        rows = connection.execute(
            "SELECT alias, version, who, why, created_at FROM aliases WHERE name = ? ORDER BY position", [name]
        ).fetchall()
    return [Move(*row) for row in rows]


def promote(warehouse: Warehouse, version: int, who: str, why: str) -> Version:
    """Makes a version of the policy the champion, and returns it. Raises StoreError where it is not there, or its
    weights are gone."""
    found = {one.version: one for one in versions(warehouse, POLICY)}
    if version not in found:
        there = ", ".join(map(str, found)) or "none"
        raise StoreError(f"{warehouse.home} has no {POLICY}/{version}: there are the versions {there}")
    warehouse.weights(warehouse.get(found[version].snapshot_id))
    set_alias(warehouse, POLICY, CHAMPION, version, who, why)
    return found[version]
