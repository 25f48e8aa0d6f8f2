import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rlaif_assets.ingest.errors import IngestError
from rlaif_assets.ingest.files import excerpt, read_rows

GOOD = b'{"prompt": "one"}\n{"prompt": "two"}\n'


def prompts(path: Path | str, limit: int | None = None) -> list[tuple[str, object]]:
    return [(row.where, row.fields.get("prompt")) for row in read_rows(str(path), limit)]


def written(tmp_path: Path, content: bytes, name: str = "a.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def refused(path: Path | str, limit: int | None = None) -> str:
    with pytest.raises(IngestError) as caught:
        list(read_rows(str(path), limit))
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        b"\xef\xbb\xbf" + GOOD,
        GOOD.replace(b"\n", b"\r\n"),
        GOOD.removesuffix(b"\n"),
        gzip.compress(GOOD),
    ],
    ids=["plain", "byte order mark", "CRLF", "no last line end", "gzip under another name"],
)
def test_accepted_forms_give_the_same_rows(tmp_path: Path, content: bytes) -> None:
    assert prompts(written(tmp_path, content)) == [("a.jsonl:1", "one"), ("a.jsonl:2", "two")]


def test_blank_lines_are_no_rows_but_count_as_lines(tmp_path: Path) -> None:
    assert prompts(written(tmp_path, b'\n{"prompt": "one"}\n  \n{"prompt": "two"}')) == [
        ("a.jsonl:2", "one"),
        ("a.jsonl:4", "two"),
    ]


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    text = "a\u2028b\x85c"
    assert prompts(written(tmp_path, json.dumps({"prompt": text}, ensure_ascii=False).encode())) == [
        ("a.jsonl:1", text)
    ]


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (GOOD + b'{"prompt": "thr', "a.jsonl:3: invalid JSON"),
        (GOOD + b"prompt: three\n" + GOOD, "a.jsonl:3: invalid JSON"),
        (GOOD + b'{"prompt": "a\0b"}', "a.jsonl:3: invalid JSON"),
        (b"[" * 200_000, "a.jsonl:1: invalid JSON"),
        (GOOD + b'{"prompt": "\xff"}\n', "a.jsonl:3: invalid UTF-8 at byte 13"),
        ('{"prompt": "one"}'.encode("utf-16"), "a.jsonl:1: invalid UTF-8"),
    ],
    ids=["truncated", "not JSON", "raw NUL", "deep nesting", "invalid UTF-8", "UTF-16"],
)
def test_a_broken_line_names_file_and_line(tmp_path: Path, content: bytes, where: str) -> None:
    assert where in refused(written(tmp_path, content))


def test_truncated_gzip(tmp_path: Path) -> None:
    packed = gzip.compress(b"".join(b'{"prompt": "%d"}\n' % n for n in range(5000)))
    assert "truncated or damaged after line" in refused(written(tmp_path, packed[:-2000], "a.jsonl.gz"))


@pytest.mark.parametrize("content", [b"", GOOD])
def test_a_gz_that_is_no_gzip(tmp_path: Path, content: bytes) -> None:
    assert "is not gzip" in refused(written(tmp_path, content, "a.jsonl.gz"))


def test_missing_folder_and_unknown_kinds(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert "is a folder" in refused(tmp_path / "folder.jsonl")
    assert "cannot be opened" in refused("a\0b.jsonl")
    assert "unknown kind of file" in refused(written(tmp_path, GOOD, "a.parquet"))


def test_a_line_of_a_megabyte(tmp_path: Path) -> None:
    text = "x" * (1 << 20)
    rows = [{"prompt": text}, {"prompt": "short"}]
    jsonl = written(tmp_path, "\n".join(json.dumps(row) for row in rows).encode())
    assert [value for _, value in prompts(jsonl)] == [text, "short"]
    table = written(tmp_path, f"prompt\n{text}\nshort\n".encode(), "a.csv")
    assert [value for _, value in prompts(table)] == [text, "short"]


def test_json_that_is_no_object_is_a_row_with_a_problem(tmp_path: Path) -> None:
    (row,) = read_rows(str(written(tmp_path, b"[1, 2]\n")))
    assert row.where == "a.jsonl:1"
    assert row.problem == "expected an object with fields, found list"


def test_limit_counts_rows_and_reads_no_further(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + b"broken\n")
    assert len(prompts(path, 2)) == 2
    assert "a.jsonl:3" in refused(path, 3)
    assert "limit 0" in refused(path, 0)


def test_csv_rows_name_their_first_line(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfid,prompt\r\n1,"two\r\nlines, one field"\r\n\r\n2,plain\r\n3,a,b\r\n4\r\n'
    rows = list(read_rows(str(written(tmp_path, content, "a.csv"))))
    assert [(row.where, row.fields.get("prompt")) for row in rows] == [
        ("a.csv:2", "two\r\nlines, one field"),
        ("a.csv:5", "plain"),
        ("a.csv:6", None),
        ("a.csv:7", None),
    ]
    assert [row.problem for row in rows] == [
        None,
        None,
        "3 fields where the header has 2",
        "1 fields where the header has 2",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"prompt,prompt\na,b\n", "repeats a column name"),
        (b'prompt\nfine\n"never closed\n', "a.csv:3: invalid CSV"),
        (b"prompt\nfine\n\xff\n", "a.csv:3: invalid UTF-8"),
    ],
)
def test_broken_csv(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refused(written(tmp_path, content, "a.csv"))


def test_a_data_set_by_folder_takes_a_part_and_a_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set" / "part").mkdir(parents=True)
    written(tmp_path / "set" / "part", GOOD, "train.jsonl")
    written(tmp_path / "set" / "part", b'{"prompt": "three"}\n', "test.jsonl")
    spec = f"datasets:{tmp_path / 'set'}:part"
    assert prompts(spec, 1) == [(f"{spec}:1", "one")]
    assert [value for _, value in prompts(f"{spec}:test", 5)] == ["three"]
    assert f"{spec}:dev: cannot be read" in refused(f"{spec}:dev", 5)
    assert "cannot be read" in refused(f"datasets:{tmp_path / 'set'}:nopart", 5)


def test_a_data_set_is_read_at_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: dict[str, Any] = {}

    def load(identifier: str, **options: Any) -> list[dict[str, str]]:
        asked.update(options, id=identifier)
        return [{"prompt": "one"}]

    def names(identifier: str, revision: str | None) -> list[str]:
        asked["names_at"] = revision
        return ["part"]

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_config_names", names)
    assert prompts("datasets:owner/set@abc:part:test", 1) == [("datasets:owner/set@abc:part:test:1", "one")]
    assert (asked["id"], asked["revision"], asked["names_at"]) == ("owner/set", "abc", "abc")
    assert (asked["name"], asked["split"]) == ("part", "test")


def test_a_malformed_data_set_is_refused_before_the_library_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "write datasets:ID[@COMMIT][:CONFIG[:SPLIT]]" in refused("datasets:")
    assert "write datasets:ID[@COMMIT][:CONFIG[:SPLIT]]" in refused("datasets:a:b:c:d")
    assert "write datasets:ID[@COMMIT][:CONFIG[:SPLIT]]" in refused("datasets:owner/set@:part")


def test_excerpt_can_be_stored() -> None:
    assert excerpt("a\0\ud800b").encode("utf-8") == "a\ufffd?b".encode()
    assert len(excerpt("x" * 10_000)) == 300
