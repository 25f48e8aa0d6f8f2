"""How far a long stage has come: lines in Dagster's log, or bars in the terminal. The stages only call `report`."""

import time
from collections.abc import Callable
from typing import Literal

Progress = Callable[[str, int, int], None]
SECONDS_BETWEEN_LINES = 10.0


def make_progress(
    kind: Literal["log", "bar", "none"],
    write: Callable[[str], None],
    name: str,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """`write` takes the lines of kind `log`; `name` (the asset's) begins every line and bar; `clock` is in seconds."""
    if kind == "bar":
        return _Bars(name)
    return _Lines(write, name, clock) if kind == "log" else lambda phase, done, total: None


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


class _Bars:
    """One bar per phase; a finished phase keeps its bar."""

    def __init__(self, name: str) -> None:
        self.name, self.phase = name, ""

    def __call__(self, phase: str, done: int, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if phase != self.phase:
            self.phase = phase
            columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bars = Progress(*columns)
            self.bars.start()
            self.task = self.bars.add_task(f"{self.name}: {phase}", total=total)
        self.bars.update(self.task, completed=done, total=total)
        if done >= total:
            self.bars.stop()
            self.phase = ""
