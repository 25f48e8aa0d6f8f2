"""How far a long stage has come: lines in Dagster's log, or bars in the terminal. The stages only call it."""

import threading
import time
from collections.abc import Callable
from typing import Literal, Protocol

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_LOOKS = 0.5


class Progress(Protocol):
    """Called with a phase, how much of it is done, and how much there is; closed when the stage ends, in any way.
    What `start` begins is a watch over stretches in which nothing is called. `expect` says how much there is in all
    phases together, where all are of one kind: what is left is then that of the stage, else of the phase."""

    def start(self) -> None: ...

    def expect(self, total: int) -> None: ...

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
    return Lines(write if kind == "log" else lambda line: None, name, clock)


class Lines:
    """A line every ten seconds, with an estimate of the time left where something of the phase is done; nothing for
    what is quick. A thread writes them, since one batch, or the loading of a model, may take minutes."""

    def __init__(self, write: Callable[[str], None], name: str, clock: Callable[[], float]) -> None:
        self.write, self.name, self.clock = write, name, clock
        self.phase, self.done, self.total, self.first = "", 0, 0, 0
        self.expected, self.before, self.begun = 0, 0, 0.0
        self.started = self.written = self.told = clock()
        self.closed, self.lock = threading.Event(), threading.Lock()

    def start(self) -> None:
        self.started = self.written = self.clock()
        threading.Thread(target=self._watch, name=f"progress of {self.name}", daemon=True).start()

    def expect(self, total: int) -> None:
        self.expected, self.before, self.begun = total, 0, self.clock()

    def _watch(self) -> None:
        while not self.closed.wait(SECONDS_BETWEEN_LOOKS):
            self.tell()

    def __call__(self, phase: str, done: int, total: int) -> None:
        with self.lock:
            if phase != self.phase:
                self.before += self.done
                self.phase, self.started, self.first = phase, self.clock(), done
            self.done, self.total, self.told = done, total, self.clock()
        self.tell()

    def tell(self) -> None:
        """Writes a line where the last one is ten seconds old."""
        with self.lock:
            now = self.clock()
            if self.closed.is_set() or now - self.written < SECONDS_BETWEEN_LINES:
                return
            self.written = now
            done = self.done - self.first
            so_far = f"{self.phase} {self.done}/{self.total}, " if self.phase else ""
            if (whole := self.before + self.done) and self.expected:
                rest = max(self.total - self.done, self.expected - whole)
                left = (self.told - self.begun) / whole * rest - (now - self.told)
                self.write(f"{self.name}: {so_far}about {max(0.0, left):.0f} s left")
            elif done > 0:
                left = (self.told - self.started) / done * (self.total - self.done) - (now - self.told)
                self.write(f"{self.name}: {so_far}about {max(0.0, left):.0f} s left")
            else:
                self.write(f"{self.name}: {so_far}{now - self.started:.0f} s so far")

    def close(self) -> None:
        with self.lock:  # no line after this
            self.closed.set()


class _Bars:
    """One bar per phase; a finished phase keeps its bar, and an unfinished one stays as far as it came."""

    def __init__(self, name: str) -> None:
        self.name, self.phase = name, ""

    def start(self) -> None:
        pass

    def expect(self, total: int) -> None:
        pass

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
