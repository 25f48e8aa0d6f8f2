"""How far a long stage has come: lines in Dagster's log, or bars in the terminal. The stages only call it."""

import time
from collections.abc import Callable
from typing import Literal, Protocol

SECONDS_BETWEEN_LINES = 10.0


class Progress(Protocol):
    """Called with a phase, how much of it is done, and how much there is; closed when the stage ends, in any way."""

    def __call__(self, phase: str, done: int, total: int) -> None: ...

    def close(self) -> None: ...


def make_progress(
    kind: Literal["log", "bar", "none"],
    write: Callable[[str], None],
    name: str,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """`write` takes the lines of kind `log`; `name` (the asset's) begins every line and bar; `clock` is in seconds."""
    if kind == "bar":
        return _Bars(name)
    return _Lines(write if kind == "log" else lambda line: None, name, clock)


class _Lines:
    """At most a line every ten seconds and phase, with an estimate of the time left; nothing for what is quick."""

    def __init__(self, write: Callable[[str], None], name: str, clock: Callable[[], float]) -> None:
        self.write, self.name, self.clock = write, name, clock
        self.phase = ""
        self.started = self.written = 0.0
        self.first = 0

    def __call__(self, phase: str, done: int, total: int) -> None:
        now = self.clock()
        if phase != self.phase:
            self.phase, self.started, self.written, self.first = phase, now, now, done
        if now - self.written >= SECONDS_BETWEEN_LINES:
            self.written = now
            left = (now - self.started) / max(1, done - self.first) * (total - done)
            self.write(f"{self.name}: {phase} {done}/{total}, about {left:.0f} s left")

    def close(self) -> None:
        pass


class _Bars:
    """One bar per phase; a finished phase keeps its bar, and an unfinished one stays as far as it came."""

    def __init__(self, name: str) -> None:
        self.name, self.phase = name, ""

    def __call__(self, phase: str, done: int, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if phase != self.phase:
            self.close()
            columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bars = Progress(*columns)
            self.phase = phase
            self.bars.start()
            self.task = self.bars.add_task(f"{self.name}: {phase}", total=total)
        self.bars.update(self.task, completed=done, total=total)
        if done >= total:
            self.close()

    def close(self) -> None:
        if self.phase:
            self.bars.stop()
            self.phase = ""
