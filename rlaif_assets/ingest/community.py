"""Community votes: answers of question-and-answer sites and the pairs that their scores make.

Reads a Stack Exchange `Posts.xml` or `Posts.xml.gz` (streamed, one row at a time), rows in the layout of the hub data
set HuggingFaceH4/stack-exchange-preferences ({qid, question, answers: [{answer_id, text, pm_score, selected}]}; JSONL
works too, and `votes` may stand for `pm_score`), or the pocket world. HTML becomes text; a text longer than
`max_characters` is cut there. Scores and pairs: Askell et al. (2112.00861) as in HH (2204.05862) appendix A.2.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from itertools import combinations
from typing import Any
from xml.parsers import expat

from rlaif_assets.ingest.conversations import checked
from rlaif_assets.ingest.errors import IngestError, RowError
from rlaif_assets.ingest.files import (
    GZIP_ERRORS,
    SourceRow,
    check_limit,
    damaged_gzip,
    excerpt,
    open_source,
    read_rows,
    require_rows,
    source_name,
    unpacked,
)
from rlaif_assets.records import CommunityAnswer, CommunityPair, Rejection
from rlaif_assets.settings import CommunityVotesSettings
from rlaif_assets.store.fingerprint import row_id

QUESTION, ANSWER = "1", "2"
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
BLOCKS = frozenset({"p", "div", "br", "hr", "pre", "blockquote", "ul", "ol", "li", "tr", *HEADINGS})
HIDDEN = frozenset({"script", "style"})


def community_score(votes: int, accepted: bool) -> int:
    """-1 for negative votes, else round(log2(1 + votes)); 1 more where the asker accepted the answer."""
    return (-1 if votes < 0 else round(math.log2(1 + votes))) + accepted


def read_community(
    settings: CommunityVotesSettings,
) -> tuple[list[CommunityAnswer], list[CommunityPair], list[Rejection]]:
    """Answers, all pairs of unequal score within a question, and refused answers: answers read = kept + rejected.

    `limit` counts answers of a Posts.xml (the first ones, wherever their questions stand) and of the pocket world, and
    rows (questions) of the other layout, where a row without a usable question or list of answers is one refusal.
    Raises IngestError.
    """
    check_limit(settings.limit)
    if settings.path == "pocket":
        from rlaif_assets.pocket import world

        answers, rejected = world.community_answers(settings.seed)[: settings.limit], []
    elif settings.path.lower().endswith((".xml", ".xml.gz")):
        answers, rejected = _read_posts(settings)
    else:
        answers, rejected = _read_questions(settings)
    require_rows(settings.path, len(answers), rejected)
    return answers, unequal_pairs(answers), rejected


def unequal_pairs(answers: Iterable[CommunityAnswer]) -> list[CommunityPair]:
    """Every pair of answers to one question whose scores differ, in the order of the answers."""
    by_question: dict[str, list[CommunityAnswer]] = defaultdict(list)
    for answer in answers:
        by_question[answer.question_id].append(answer)
    return [
        _pair(*sorted(two, key=lambda answer: answer.score, reverse=True))
        for same_question in by_question.values()
        for two in combinations(same_question, 2)
        if two[0].score != two[1].score
    ]


def _pair(better: CommunityAnswer, worse: CommunityAnswer) -> CommunityPair:
    return CommunityPair(
        pair_id=row_id("community_pair", better.answer_id, worse.answer_id),
        question_id=better.question_id,
        better_id=better.answer_id,
        worse_id=worse.answer_id,
        question=better.question,
        better=better.text,
        worse=worse.text,
    )


class _Collector:
    """Gathers answers; a question's second answer with the same text is refused."""

    def __init__(self, max_characters: int) -> None:
        self.max_characters = max_characters
        self.answers: list[CommunityAnswer] = []
        self.rejected: list[Rejection] = []
        self.first_seen: dict[str, str] = {}

    def plain(self, html: Any, name: str) -> str:
        if not isinstance(html, str):
            raise RowError(f"the {name} is missing")
        text = checked(html_to_text(html))
        if not text:
            raise RowError(f"the {name} is empty")
        return text[: self.max_characters].rstrip()

    def add(
        self, where: str, site_id: str, question: str, html: Any, votes: int | None, accepted: bool, score: int
    ) -> None:
        text = self.plain(html, "answer")
        question_id = row_id("community_question", site_id, question)
        answer_id = row_id("community_answer", question_id, text)
        if answer_id in self.first_seen:
            raise RowError(f"same question and text as {self.first_seen[answer_id]}")
        self.first_seen[answer_id] = where
        self.answers.append(CommunityAnswer(answer_id, question_id, question, text, votes, accepted, score))

    def refuse(self, where: str, problem: RowError, shown: Any) -> None:
        self.rejected.append(Rejection(where, str(problem), excerpt("" if shown is None else shown)))


def _read_posts(settings: CommunityVotesSettings) -> tuple[list[CommunityAnswer], list[Rejection]]:
    """Questions precede their answers in a dump only as a rule, so answers wait until their questions are read."""
    collector = _Collector(settings.max_characters)
    questions: dict[str, dict[str, str]] = {}
    waiting: list[tuple[str, dict[str, str]]] = []
    missing: set[str] = set()  # questions of waiting answers
    for line, post in _posts(settings.path):
        if post.get("PostTypeId") == QUESTION:
            questions[post.get("Id", "")] = post
            missing.discard(post.get("Id", ""))
        elif post.get("PostTypeId") == ANSWER and len(waiting) != settings.limit:
            waiting.append((f"{source_name(settings.path)}:{line}", post))
            missing |= {post.get("ParentId", "")} - questions.keys()
        if len(waiting) == settings.limit and not missing:
            break
    for where, post in waiting:
        try:
            question = questions.get(post.get("ParentId", ""))
            if question is None:
                raise RowError(f"its question (post {post.get('ParentId')}) is not in the file")
            site_id = question["Id"]
            votes = _integer(post.get("Score"), "Score")
            accepted = "Id" in post and post["Id"] == question.get("AcceptedAnswerId")
            body = collector.plain(question.get("Body"), "question")
            text = "\n\n".join(filter(None, (checked(question.get("Title", "")).strip(), body)))
            score = community_score(votes, accepted)
            collector.add(where, site_id, text, post.get("Body"), votes, accepted, score)
        except RowError as problem:
            collector.refuse(where, problem, post.get("Body"))
    return collector.answers, collector.rejected


def _posts(path: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields (line, attributes) of every row element. Raises IngestError."""
    found: list[tuple[int, dict[str, str]]] = []
    rows = 0
    parser = expat.ParserCreate()

    def start(name: str, attributes: dict[str, str]) -> None:
        if name == "row":
            found.append((parser.CurrentLineNumber, attributes))

    parser.StartElementHandler = start
    with open_source(path) as file:
        try:
            for chunk in _chunks(unpacked(path, file)):
                parser.Parse(chunk, not chunk)
                yield from found
                rows += len(found)
                found.clear()
        except GZIP_ERRORS as error:
            raise damaged_gzip(path, parser.CurrentLineNumber) from error
        except expat.ExpatError as error:
            what = f"{path}:{error.lineno}: invalid XML: {expat.ErrorString(error.code)}"
            raise IngestError(f"{what}; is the file complete?") from error
    if not rows:
        raise IngestError(f"{path}: no <row> elements; give the Posts.xml of a Stack Exchange dump")


def _chunks(file: Any) -> Iterator[bytes]:
    while chunk := file.read(1 << 16):
        yield chunk
    yield b""


def _read_questions(settings: CommunityVotesSettings) -> tuple[list[CommunityAnswer], list[Rejection]]:
    collector = _Collector(settings.max_characters)
    for row in read_rows(settings.path, settings.limit):
        try:
            question, answers = _question(row, collector)
        except RowError as problem:
            collector.refuse(row.where, problem, row.fields.get("question"))
            continue
        site_id = str(row.fields.get("qid", ""))
        for number, answer in enumerate(answers, 1):
            where = f"{row.where}: answer {number}"
            try:
                if not isinstance(answer, dict):
                    raise RowError(f"expected an object, found {type(answer).__name__}")
                accepted = _truth(answer.get("selected"), "selected")
                votes = None if _is_missing(answer.get("votes")) else _integer(answer["votes"], "votes")
                if votes is None:
                    score = _integer(answer.get("pm_score"), "pm_score")
                else:
                    score = community_score(votes, accepted)
                collector.add(where, site_id, question, answer.get("text"), votes, accepted, score)
            except RowError as problem:
                collector.refuse(where, problem, answer.get("text") if isinstance(answer, dict) else answer)
    return collector.answers, collector.rejected


def _question(row: SourceRow, collector: _Collector) -> tuple[str, list[Any]]:
    if row.problem:
        raise RowError(row.problem)
    answers = row.fields.get("answers")
    if not isinstance(answers, list) or not answers:
        raise RowError("answers is not a list with at least one answer")
    return collector.plain(row.fields.get("question"), "question"), answers


def _integer(value: Any, name: str) -> int:
    """`4`, `4.0` (pandas writes whole numbers so beside missing ones) and their texts. Raises RowError."""
    whole = re.fullmatch(r"\s*([+-]?[0-9]{1,18})(\.0*)?\s*", str(value))
    if whole is None:
        raise RowError(f"{name} is not a whole number: {excerpt(value)}")
    return int(whole[1])


def _is_missing(value: Any) -> bool:
    """None, and what pandas writes for it."""
    return str(value).strip().lower() in ("", "none", "nan")


def _truth(value: Any, name: str) -> bool:
    """A missing one is false. Raises RowError."""
    text = str(value).strip().lower()
    if text in ("true", "1", "1.0"):
        return True
    if text not in ("false", "0", "0.0") and not _is_missing(value):
        raise RowError(f"{name} is neither true nor false: {excerpt(value)}")
    return False


def html_to_text(html: str) -> str:
    """The text of an HTML fragment: blocks on their own lines, list items with a dash, at most one blank line."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    lines = [line.rstrip() for line in "".join(parser.parts).split("\n")]
    kept = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
    return "\n".join(kept).strip()


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.verbatim = 0
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.verbatim += tag == "pre"
        self.hidden += tag in HIDDEN
        if tag in BLOCKS:
            self.parts.append("\n- " if tag == "li" else "\n")

    def handle_endtag(self, tag: str) -> None:
        self.verbatim = max(0, self.verbatim - (tag == "pre"))
        self.hidden = max(0, self.hidden - (tag in HIDDEN))
        if tag in BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if self.hidden:
            return
        if not self.verbatim:
            data = re.sub(r"\s+", " ", data)
            if not self.parts or self.parts[-1][-1].isspace():
                data = data.lstrip()
        if data:
            self.parts.append(data)
