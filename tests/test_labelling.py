"""The labelling benchmark at a tiny size: sides that agree give a table, sides that differ give none. Times are not
looked at."""

import json
import re
import sys
from pathlib import Path

import pytest

from benchmarks import labelling
from benchmarks.labelling import BenchmarkError, Timed
from benchmarks.marked_page import markers


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "comparisons.jsonl"
    rows = []
    for i in range(9):
        context = f"\n\nHuman: How do I water plant {i}?" + " It is dry." * i + "\n\nAssistant:"
        rows.append({"chosen": f"{context} Early, {i} cups.", "rejected": f"{context} I would not know, sorry {i}."})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_a_tiny_race(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    begin, end = markers("labelling")
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n", encoding="utf-8")
    # An environment without distilabel: the pipeline takes its place and is named so.
    other = tmp_path / "python"
    other.write_text(f"#!{sys.executable}\nimport distilabel_is_not_here\n", encoding="utf-8")
    other.chmod(0o755)
    sizes = ["--geometry", "tiny", "--threads", "1", "--pairs", "3", "--peer-pairs", "1", "--one-token-questions", "3"]
    options = ["--scenarios", "zero-shot,principle-last", "--distilabel-python", str(other), "--markdown", str(page)]
    labelling.main(["--data", str(data), *sizes, *options])
    table = capsys.readouterr().out.strip()
    assert page.read_text(encoding="utf-8") == f"before\n{begin}\n\n{table}\n\n{end}\nafter\n"
    sides = [
        tuple(cell.strip() for cell in line.split("|")[1:4]) for line in table.splitlines() if line.startswith("|")
    ]
    asked = [side for side in sides if side[0] in ("zero-shot, paper's order", "few-shot, principle last")]
    assert [(name[:4], questions) for _, name, questions in asked] == [
        ("ours", "96"),
        ("(a) ", "32"),
        ("(b) ", "32"),
        ("(c) ", "3"),
    ] * 2
    assert "transformers pipeline, batch 1 (distilabel could not run: ModuleNotFoundError" in table
    assert len(re.findall(r"\bmet\b", table)) == 6 and "tiny geometry" in table and "transformers 5" in table


def test_sides_that_differ() -> None:
    def sides(a: list[float], b: list[float], verdicts: list[str]) -> dict[str, Timed]:
        return {"a": Timed(2, 9, 1, a), "b": Timed(2, 9, 1, b), "c": Timed(3, 9, 1, verdicts=verdicts)}

    mine, few = [0.2, 0.7], [0.2, 0.7, 0.5001]
    # The third question is a tie: any verdict goes.
    labelling.compare(sides([0.2005, 0.7], [0.2, 0.6995], ["B", "A", "B"]), mine, few, 1e-3)
    with pytest.raises(BenchmarkError, match=r"\(a\) and ours differ by 0.002"):
        labelling.compare(sides([0.202, 0.7], [0.2, 0.7], ["B", "A", "B"]), mine, few, 1e-3)
    with pytest.raises(BenchmarkError, match=r"\(b\) and ours differ by nan"):
        labelling.compare(sides([0.2, 0.7], [0.2, float("nan")], ["B", "A", "B"]), mine, few, 1e-3)
    with pytest.raises(BenchmarkError, match=r"\(c\) chose 'A' where ours gives the first option 0.2"):
        labelling.compare(sides([0.2, 0.7], [0.2, 0.7], ["A", "A", "B"]), mine, few, 1e-3)


def test_pairs_are_of_all_lengths(data: Path) -> None:
    pairs = labelling.read_pairs(data)
    drawn = labelling.draw_pairs(pairs, 3)
    assert [pairs.index(pair) for pair in drawn] == [1, 4, 7]
    assert labelling.middle(drawn, 1) == [pairs[4]] and labelling.middle(drawn, 9) == drawn
    with pytest.raises(BenchmarkError, match="10 pairs are wanted and the file has 9"):
        labelling.draw_pairs(pairs, 10)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--data", "nowhere.jsonl"], "nowhere.jsonl is not a file: name one .* with --data"),
        (["--distilabel-python", "nowhere/python"], "nowhere/python does not exist"),
        (["--markdown", "nowhere.md"], "nowhere.md has no place for the table"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_timed(arguments: list[str], problem: str) -> None:
    with pytest.raises(SystemExit, match=problem):
        labelling.main(arguments)


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        labelling.main(["--scenarios", "zero-shot,one-shot"])
    assert "there is no one-shot" in capsys.readouterr().err
