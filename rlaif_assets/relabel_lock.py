"""Two relabels never run at once: a lock in the home, which names who holds it.

The lock itself is the operating system's (`relabel.lock`), so a holder that dies, in any way, holds it no more. Who
holds it stands beside it (`relabel.holder.json`): a name that is left behind tells of a dead holder. What is done under
the lock belongs to the assets, when a relabel is begun to `automation`. Light: filelock and psutil are imported late.
"""

import dataclasses
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rlaif_assets.instance import boot_id

if TYPE_CHECKING:
    from filelock import BaseFileLock

RELABEL_TAGS = {"rlaif/pipeline": "relabel"}  # of a run that makes nothing but a preference set
LOCK, NAME = "relabel.lock", "relabel.holder.json"
PEEK_SECONDS = 1.0  # a look at the lock holds it for a moment: who wants it waits that long


@dataclass(frozen=True)
class Holder:
    """Who relabels. `since` is ISO, UTC."""

    run_id: str
    host: str
    boot_id: str
    pid: int
    since: str

    def __str__(self) -> str:
        return f"run {self.run_id[:8]} in process {self.pid} on {self.host} since {self.since}"


class RelabelHeldError(RuntimeError):
    """Another run relabels this home. The message names it."""


@contextmanager
def relabel_lock(home: Path, run_id: str, log: Callable[[str], None]) -> Iterator[None]:
    """Holds the home's lock in the name of this run; `log` is told when it was taken over from a dead holder.

    Raises RelabelHeldError where another process (or another run of this one) holds it.
    """
    home.mkdir(parents=True, exist_ok=True)
    lock = _acquire(home)
    if lock is None:
        raise RelabelHeldError(_told(_read(home)))
    try:
        dead = _read(home)
        if dead is not None:
            log(f"the relabel lock is taken over from {dead}, which ended without giving it back")
        _write(home, Holder(run_id, socket.gethostname(), boot_id(), os.getpid(), _now()))
        yield
    finally:
        (home / NAME).unlink(missing_ok=True)
        lock.release()


def relabelling(home: Path) -> str | None:
    """A sentence that names who holds the lock of this home; None where nobody does."""
    if not (home / LOCK).exists():
        return None
    lock = _acquire(home)
    if lock is None:
        return _told(_read(home))
    lock.release()
    return None


def _acquire(home: Path) -> "BaseFileLock | None":
    import filelock

    lock = filelock.FileLock(home / LOCK, timeout=PEEK_SECONDS, poll_interval=0.01)
    try:
        lock.acquire()
    except filelock.Timeout:
        return None
    return lock


def _told(holder: Holder | None) -> str:
    return f"{holder or 'a process that has not yet said its name'} relabels this home"


def _read(home: Path) -> Holder | None:
    """The name beside the lock, which may be a dead holder's; None where there is none or it cannot be read."""
    try:
        return Holder(**json.loads((home / NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write(home: Path, holder: Holder) -> None:
    temporary = home / f".{NAME}.{os.getpid()}"
    temporary.write_text(json.dumps(dataclasses.asdict(holder)), encoding="utf-8")
    temporary.replace(home / NAME)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
