"""The lock of relabels, with real processes: who holds it is named, and a dead holder is taken over."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlaif_assets.instance import boot_id
from rlaif_assets.relabel_lock import LOCK, NAME, RelabelHeldError, relabel_lock, relabelling

ROOT = Path(__file__).parent.parent
RUN = "0123456789abcdef"
HOLD = """
import sys
from pathlib import Path
from rlaif_assets.relabel_lock import relabel_lock
with relabel_lock(Path(sys.argv[1]), sys.argv[2], print):
    print("held", flush=True)
    sys.stdin.readline()
"""
CONTEND = """
import os, sys
from pathlib import Path
from rlaif_assets.relabel_lock import RelabelHeldError, relabel_lock
home, count = Path(sys.argv[1]), 0
for turn in range(int(sys.argv[2])):
    try:
        with relabel_lock(home, str(os.getpid()), print):
            inside = os.open(home / "inside", os.O_CREAT | os.O_EXCL)  # fails where two are inside
            os.close(inside)
            (home / "inside").unlink()
            count += 1
    except RelabelHeldError:
        pass
print(count)
"""


def hold(home: Path) -> "subprocess.Popen[str]":
    """A process that holds the lock as run RUN until a line is written to it. The caller ends it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home), RUN],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while line := process.stdout.readline():
        if line == "held\n":
            return process
    raise AssertionError("the process ended without the lock")


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


@pytest.fixture
def holder(tmp_path: Path) -> "Iterator[subprocess.Popen[str]]":
    process = hold(tmp_path)
    yield process
    end(process)


def test_the_second_is_refused_and_told_who_holds_it(holder: "subprocess.Popen[str]", tmp_path: Path) -> None:
    with (
        pytest.raises(RelabelHeldError, match=f"run 01234567 in process {holder.pid} on {socket.gethostname()} since "),
        relabel_lock(tmp_path, "another", print),
    ):
        raise AssertionError("two are inside")
    assert f"process {holder.pid}" in (relabelling(tmp_path) or "")
    name = json.loads((tmp_path / NAME).read_text())
    assert (name["run_id"], name["pid"], name["boot_id"]) == (RUN, holder.pid, boot_id())


def test_it_is_given_back_when_the_work_ends(holder: "subprocess.Popen[str]", tmp_path: Path) -> None:
    holder.communicate("go on\n")
    assert holder.returncode == 0
    assert relabelling(tmp_path) is None
    assert not (tmp_path / NAME).exists()
    told: list[str] = []
    with relabel_lock(tmp_path, "another", told.append):
        assert f"process {os.getpid()}" in (relabelling(tmp_path) or "")
    assert told == []


def test_a_dead_holder_is_noticed_and_taken_over(holder: "subprocess.Popen[str]", tmp_path: Path) -> None:
    end(holder)
    assert relabelling(tmp_path) is None
    told: list[str] = []
    with relabel_lock(tmp_path, "another", told.append):
        assert json.loads((tmp_path / NAME).read_text())["run_id"] == "another"
    assert len(told) == 1 and f"run 01234567 in process {holder.pid}" in told[0]


def test_work_that_fails_gives_it_back(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), relabel_lock(tmp_path / "new", "run", print):
        raise ZeroDivisionError
    assert relabelling(tmp_path / "new") is None
    assert [path.name for path in (tmp_path / "new").iterdir()] == [LOCK]


@pytest.mark.parametrize("name", [None, "", "{", "[1]", '{"run_id": "x"}', "\xff"])
def test_a_name_that_cannot_be_read_neither_frees_nor_blocks_it(
    name: str | None, holder: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    if name is None:
        (tmp_path / NAME).unlink()
    else:
        (tmp_path / NAME).write_text(name, encoding="latin-1")
    assert "not yet said its name" in (relabelling(tmp_path) or "")
    end(holder)
    with relabel_lock(tmp_path, "another", print):
        assert "run another" in (relabelling(tmp_path) or "")


def test_a_home_that_nobody_relabelled_is_left_as_it_is(tmp_path: Path) -> None:
    assert relabelling(tmp_path / "none") is None and relabelling(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_two_processes_are_never_inside_together(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CONTEND, str(tmp_path), "100"]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum(int(output.splitlines()[-1]) for output in outputs) > 100
    assert relabelling(tmp_path) is None
