import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlaif_assets.ingest.community import community_score, html_to_text, read_community
from rlaif_assets.ingest.errors import IngestError
from rlaif_assets.records import CommunityAnswer, CommunityPair, Rejection
from rlaif_assets.settings import CommunityVotesSettings

Write = Callable[..., str]
DUMP = """<?xml version="1.0" encoding="utf-8"?>
<posts>
  <row Id="3" PostTypeId="2" ParentId="1" Score="7" Body="&lt;p&gt;Three&lt;/p&gt;" />
  <row Id="1" PostTypeId="1" AcceptedAnswerId="2" Score="0" Title="Is a &lt; b?" Body="&lt;p&gt;Asked.&lt;/p&gt;" />
  <row Id="2" PostTypeId="2" ParentId="1" Score="3" Body="&lt;p&gt;Two&lt;/p&gt;" />
  <row Id="4" PostTypeId="2" ParentId="1" Score="-5" Body="&lt;p&gt;Four&lt;/p&gt;" />
  <row Id="5" PostTypeId="4" Body="a tag wiki" />
  <row Id="6" PostTypeId="2" ParentId="99" Score="1" Body="&lt;p&gt;Lost&lt;/p&gt;" />
  <row Id="7" PostTypeId="2" ParentId="1" Score="1" Body="&lt;p&gt; &lt;img src='x'&gt;&lt;/p&gt;" />
  <row Id="8" PostTypeId="2" ParentId="1" Score="many" Body="&lt;p&gt;Eight&lt;/p&gt;" />
  <row Id="9" PostTypeId="2" ParentId="1" Score="0" Body="&lt;p&gt;Two&lt;/p&gt;" />
  <row Id="10" PostTypeId="2" ParentId="1" Score="0" />
</posts>
"""


def read(path: str | Path, **fields: Any) -> tuple[list[CommunityAnswer], list[CommunityPair], list[Rejection]]:
    return read_community(CommunityVotesSettings(path=str(path), **fields))


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "Posts.xml"
    path.write_text("\ufeff" + DUMP, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("votes", "accepted", "score"),
    [
        (-3, False, -1),
        (-3, True, 0),
        (0, False, 0),
        (0, True, 1),
        (1, False, 1),
        (2, False, 2),
        (7, False, 3),
        (10, True, 4),
    ],
)
def test_score(votes: int, accepted: bool, score: int) -> None:
    assert community_score(votes, accepted) == score


def test_posts(dump: Path) -> None:
    answers, pairs, rejected = read(dump)
    assert [(answer.text, answer.votes, answer.accepted, answer.score) for answer in answers] == [
        ("Three", 7, False, 3),
        ("Two", 3, True, 3),
        ("Four", -5, False, -1),
    ]
    assert {answer.question for answer in answers} == {"Is a < b?\n\nAsked."}
    assert [(pair.better, pair.worse) for pair in pairs] == [("Three", "Four"), ("Two", "Four")]
    assert [(pair.better_id, pair.worse_id) for pair in pairs] == [
        (answers[0].answer_id, answers[2].answer_id),
        (answers[1].answer_id, answers[2].answer_id),
    ]
    assert [(row.where, row.reason) for row in rejected] == [
        ("Posts.xml:8", "its question (post 99) is not in the file"),
        ("Posts.xml:9", "the answer is empty"),
        ("Posts.xml:10", "Score is not a whole number: many"),
        ("Posts.xml:11", "same question and text as Posts.xml:5"),
        ("Posts.xml:12", "the answer is missing"),
    ]


def test_limit_counts_answers(dump: Path) -> None:
    answers, _, rejected = read(dump, limit=4)
    assert (len(answers), len(rejected)) == (3, 1)


def test_a_limited_answer_whose_question_stands_later_is_kept(dump: Path) -> None:
    answers, _, rejected = read(dump, limit=1)
    assert [answer.text for answer in answers] == ["Three"] and not rejected


def test_long_texts_are_cut(dump: Path) -> None:
    answers, _, _ = read(dump, max_characters=3)
    assert [answer.text for answer in answers] == ["Thr", "Two", "Fou"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-60], r"Posts.xml:12: invalid XML: .*is the file complete"),
        (lambda text: text.replace('Score="3"', "Score=3"), r"Posts.xml:5: invalid XML: not well-formed"),
        (lambda text: "<posts></posts>", r"no <row> elements"),
        (lambda text: "", r"invalid XML: no element found"),
    ],
    ids=["truncated", "broken", "another file", "empty"],
)
def test_broken_dumps(dump: Path, change: Callable[[str], str], message: str) -> None:
    dump.write_text(change(DUMP), encoding="utf-8")
    with pytest.raises(IngestError, match=message):
        read(dump)


def test_a_packed_dump(dump: Path) -> None:
    packed = dump.with_name("Posts.xml.gz")
    packed.write_bytes(gzip.compress(dump.read_bytes()))
    assert read(packed)[:2] == read(dump)[:2]
    assert [row.where for row in read(packed)[2]] == [f"Posts.xml.gz:{line}" for line in range(8, 13)]
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(IngestError, match=r"Posts.xml.gz: the gzip stream is truncated or damaged after line \d+"):
        read(packed)
    packed.write_bytes(dump.read_bytes())
    with pytest.raises(IngestError, match="is not gzip"):
        read(packed)


def test_a_missing_dump(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="no such file"):
        read(tmp_path / "Posts.xml")


def test_entity_expansion_is_refused(dump: Path) -> None:
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    dump.write_text(
        f'<!DOCTYPE posts [<!ENTITY e0 "lol">{entities}]><posts>{"<row/>" * 3}&e9;</posts>', encoding="utf-8"
    )
    with pytest.raises(IngestError, match="amplification"):
        read(dump)


def test_rows_of_questions(write_rows: Write) -> None:
    answers = [
        {"answer_id": 1, "text": "<p>good</p>", "pm_score": 4, "selected": True},
        {"answer_id": 2, "text": "<p>bad</p>", "pm_score": -1, "selected": False},
        {"answer_id": 3, "text": "own", "votes": 3, "selected": True},
        {"answer_id": 4, "text": "none"},
        "five",
        {"answer_id": 6, "text": "as pandas writes", "votes": float("nan"), "pm_score": 2.0, "selected": 1.0},
        {"answer_id": 7, "text": "half", "pm_score": 0.5, "selected": False},
        {"answer_id": 8, "text": "perhaps", "pm_score": 1, "selected": "maybe"},
        {"answer_id": 9, "text": "python", "votes": "1_0", "selected": float("nan")},
    ]
    path = write_rows({"qid": 9, "question": "<p>why?</p>", "answers": answers}, {"question": "x", "answers": []}, [1])
    kept, pairs, rejected = read(path)
    assert [(answer.text, answer.votes, answer.accepted, answer.score) for answer in kept] == [
        ("good", None, True, 4),
        ("bad", None, False, -1),
        ("own", 3, True, 3),
        ("as pandas writes", None, True, 2),
    ]
    assert [(pair.better, pair.worse) for pair in pairs] == [
        ("good", "bad"),
        ("good", "own"),
        ("good", "as pandas writes"),
        ("own", "bad"),
        ("as pandas writes", "bad"),
        ("own", "as pandas writes"),
    ]
    assert [row.where for row in rejected] == [
        "rows.jsonl:1: answer 4",
        "rows.jsonl:1: answer 5",
        "rows.jsonl:1: answer 7",
        "rows.jsonl:1: answer 8",
        "rows.jsonl:1: answer 9",
        "rows.jsonl:2",
        "rows.jsonl:3",
    ]


def test_html_to_text() -> None:
    html = """<p>One
    <b>two</b>, <a href="x">three</a>.</p>\n\n<ul><li>a &amp; b</li>\n<li> c</li></ul>
    <pre><code>if x:
    y  =  1
</code></pre><script>alert(1)</script><p>1 &lt; 2</p>"""
    assert html_to_text(html) == "One two, three.\n\n- a & b\n\n- c\n\nif x:\n    y  =  1\n\n1 < 2"
    assert html_to_text("no markup") == "no markup"
    assert html_to_text("<p></p><br>") == ""


def test_the_pocket_world() -> None:
    answers, pairs, rejected = read("pocket", limit=50)
    assert len(answers) == 50
    assert not rejected
    by_id = {answer.answer_id: answer for answer in answers}
    assert all(by_id[pair.better_id].score > by_id[pair.worse_id].score for pair in pairs)


def test_a_real_dump(shared_file: Callable[[str], str]) -> None:
    answers, pairs, rejected = read(shared_file("beer.stackexchange-Posts.xml"))
    assert (len(answers), len(pairs), len(rejected)) == (1572, 1904, 0)
    by_id = {answer.answer_id: answer for answer in answers}
    assert len(by_id) == 1572
    assert all(by_id[pair.better_id].score > by_id[pair.worse_id].score for pair in pairs)
    assert Counter(answer.accepted for answer in answers)[True] > 100
    assert not any("<p>" in answer.text or "&amp;" in answer.text for answer in answers)


def test_a_source_without_a_usable_row_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_text('{"question": "Why?", "other": 1}\n' * 3)
    with pytest.raises(
        IngestError, match=r"votes\.jsonl: no usable row: 3 read, 3 rejected \(first votes\.jsonl:1: answers is not"
    ):
        read(path)
