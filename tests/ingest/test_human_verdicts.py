from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlaif_assets.ingest.errors import IngestError
from rlaif_assets.ingest.human_verdicts import read_human_verdicts
from rlaif_assets.records import HumanVerdict, Rejection
from rlaif_assets.settings import HumanVerdictsSettings

Write = Callable[..., str]
BY_ID = {"pair_id": "p1", "p_a": 0.8, "annotator": "ann", "time": "2026-01-31T10:30:00+01:00"}
BY_TEXTS = {"prompt": "Why?", "response_a": "Because.", "response_b": " No. ", "p_a": 0, "annotator": "ann"}


def read(path: str | None) -> tuple[list[HumanVerdict], list[Rejection]]:
    return read_human_verdicts(HumanVerdictsSettings(path=path))


def test_without_a_path_there_are_none() -> None:
    assert read(None) == ([], [])


def test_pairs_are_named_by_id_or_by_texts_and_times_are_in_utc(write_rows: Write) -> None:
    (one, two), rejected = read(write_rows(BY_ID, {**BY_TEXTS, "time": "2026-01-31"}))
    assert not rejected
    assert (one.pair_id, one.messages, one.p_a, one.time) == ("p1", None, 0.8, "2026-01-31T09:30:00.000000+00:00")
    assert (two.pair_id, two.messages) == (None, ({"role": "user", "content": "Why?"},))
    assert (two.response_a, two.response_b, two.p_a) == ("Because.", "No.", 0.0)
    assert two.time == "2026-01-31T00:00:00.000000+00:00"


def test_equal_verdicts_have_equal_ids_and_others_do_not(write_rows: Write) -> None:
    rows = [BY_ID, {**BY_ID, "p_a": 0.7}, {**BY_ID, "annotator": "bob"}, {**BY_ID, "time": "2026-01-31"}]
    first, _ = read(write_rows(*rows))
    again, rejected = read(write_rows(*rows, BY_ID))
    assert again == [*first[1:], first[0]] and len({verdict.verdict_id for verdict in first}) == 4
    assert [(row.where, row.reason) for row in rejected] == [("rows.jsonl:1", "said again in rows.jsonl:5")]


def test_a_verdict_that_is_taken_back_counts_as_the_last(write_rows: Write) -> None:
    rows = [BY_ID, {**BY_ID, "p_a": 0.0}, BY_ID]
    kept, rejected = read(write_rows(*rows))
    assert [verdict.p_a for verdict in kept] == [0.0, BY_ID["p_a"]] and len(rejected) == 1


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00+14:00"])
def test_a_time_that_utc_does_not_have_is_refused(write_rows: Write, time: str) -> None:
    kept, rejected = read(write_rows(BY_ID, {**BY_ID, "time": time}))
    assert len(kept) == 1 and "give ISO 8601" in rejected[0].reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"p_a": 1.5}, "p_a is 1.5; give a number from 0 to 1"),
        ({"p_a": True}, "p_a is True"),
        ({"p_a": "high"}, "p_a is 'high'"),
        ({"p_a": float("nan")}, "p_a is nan"),
        ({"p_a": None}, "p_a is None"),
        ({"annotator": ""}, "the field annotator is missing"),
        ({"time": "yesterday"}, "time is 'yesterday'; give ISO 8601"),
        ({"time": 7}, "the field time is missing or no text"),
        ({"pair_id": 7}, "the field pair_id is missing or no text"),
        ({"prompt": "Why?"}, "by pair_id and by texts"),
        ({"pair_id": None}, "none of the fields prompt, messages"),
        ({"pair_id": None, "prompt": "Why?"}, "the field response_a is missing"),
        ({"pair_id": "", "prompt": "Why?", "response_a": "x", "response_b": "x"}, "are identical"),
        ({"annotator": "bad \ud800"}, "lone surrogate"),
    ],
)
def test_a_wrong_row_is_kept_with_its_reason(write_rows: Write, change: dict[str, Any], reason: str) -> None:
    kept, rejected = read(write_rows({**BY_ID, **change}, BY_ID))
    assert len(kept) == 1 and len(rejected) == 1
    assert rejected[0].where == "rows.jsonl:1" and reason in rejected[0].reason


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="no such file"):
        read(str(tmp_path / "absent.jsonl"))
