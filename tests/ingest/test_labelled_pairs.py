"""Pairs that people labelled, in both layouts; what cannot be used is refused with its place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlaif_assets.ingest.errors import IngestError
from rlaif_assets.ingest.labelled_pairs import read_labelled_pairs
from rlaif_assets.pocket.annotator import classify

Write = Callable[..., str]
GOOD = {"input": "How?", "output_1": "So.", "output_2": "Thus.", "label": 1}


@pytest.mark.parametrize(("label", "p_a"), [(1, 1.0), (2, 0.0), (0, 0.5), ("2", 0.0), (2.0, 0.0)])
def test_the_label_is_the_number_of_the_better_output(write_rows: Write, label: Any, p_a: float) -> None:
    (row,), rejected = read_labelled_pairs(write_rows({**GOOD, "label": label}))
    assert not rejected and row.p_a == p_a
    assert (row.response_a, row.response_b) == ("So.", "Thus.")
    assert row.messages == ({"role": "user", "content": "How?"},)
    assert (row.source, row.annotator) == ("rows.jsonl", "human")


def test_the_input_may_be_a_conversation(write_rows: Write) -> None:
    transcript = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: How?"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    asked = [*messages, {"role": "user", "content": "How?"}]
    rows, _ = read_labelled_pairs(write_rows({**GOOD, "input": transcript}, {**GOOD, "input": asked, "label": 2}))
    assert [row.messages for row in rows] == [tuple(asked)]  # the second is the same pair again


def test_chosen_and_rejected_are_read_too_and_layouts_may_be_mixed(write_rows: Write) -> None:
    chosen = {"chosen": "\n\nHuman: Q\n\nAssistant: good", "rejected": "\n\nHuman: Q\n\nAssistant: bad"}
    rows, rejected = read_labelled_pairs(write_rows(chosen, GOOD))
    assert len(rows) == 2 and not rejected
    better = rows[0].response_a if rows[0].p_a == 1 else rows[0].response_b
    assert better == "good" and rows[0].p_a in (0.0, 1.0)


def test_a_json_file_holds_a_list_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([GOOD, 7, {**GOOD, "input": "Why?"}]))
    rows, rejected = read_labelled_pairs(str(path))
    assert [row.messages[0]["content"] for row in rows] == ["How?", "Why?"]
    assert [row.where for row in rejected] == ["rows.json: entry 2"]
    assert len(read_labelled_pairs(str(path), limit=1)[0]) == 1
    path.write_text('{"input": 1}')
    with pytest.raises(IngestError, match="expected a list of rows, found dict"):
        read_labelled_pairs(str(path))
    path.write_text("[\n1,,]")
    with pytest.raises(IngestError, match=r"rows.json:2: invalid JSON"):
        read_labelled_pairs(str(path))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": 3}, "label is 3; write 1 or 2"),
        ({"label": True}, "label is True"),
        ({"label": None}, "no label; give input, output_1, output_2, label, or chosen and rejected"),
        ({"output_2": "So. "}, "identical"),
        ({"output_1": " "}, "output_1 must be a text that is not empty"),
        ({"output_1": 4}, "output_1 must be a text"),
        ({"input": " "}, "the last user turn is empty"),
        ({"output_2": "a\0b"}, "NUL"),
        ({}, "a duplicate of an earlier row"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_its_place(write_rows: Write, change: Any, reason: str) -> None:
    rows, rejected = read_labelled_pairs(write_rows(GOOD, {**GOOD, **change}))
    assert len(rows) == len(rejected) == 1
    assert rejected[0].where == "rows.jsonl:2" and reason in rejected[0].reason


def test_a_file_without_a_usable_row_is_an_error(write_rows: Write) -> None:
    with pytest.raises(IngestError, match="no usable row: 1 read, 1 rejected"):
        read_labelled_pairs(write_rows({"text": "x"}))
    with pytest.raises(IngestError, match="no such file"):
        read_labelled_pairs("absent.jsonl")


def test_the_pocket_worlds_own_are_labelled_by_gold_and_no_ruler_tells_them_apart() -> None:
    rows, _ = read_labelled_pairs("pocket")
    assert len(rows) >= 400 and rows == read_labelled_pairs("pocket")[0]
    for row in rows:
        verdicts = [classify(row.messages[-1]["content"], text) for text in (row.response_a, row.response_b)]
        assert (verdicts[0] == "harmful") == (row.p_a == 0.0) and sorted(verdicts).count("harmful") == 1
    shorter = [(len(row.response_a) < len(row.response_b)) == (row.p_a == 1.0) for row in rows]
    assert 0.4 < sum(shorter) / len(rows) < 0.65


def test_real_human_labels(shared_file: Callable[[str], str]) -> None:
    rows, rejected = read_labelled_pairs(shared_file("hh-rlhf-harmless-base-test.jsonl.gz"))
    assert len(rows) + len(rejected) == 2312 and len(rows) > 2250
    assert sum("different contexts" in row.reason for row in rejected) == 5
    assert {row.p_a for row in rows} == {0.0, 1.0}
