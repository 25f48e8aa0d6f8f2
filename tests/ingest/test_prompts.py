import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlaif_assets.ingest.errors import IngestError
from rlaif_assets.ingest.prompts import prompts_of_rows, read_prompts, split_of
from rlaif_assets.records import Message, Prompt, Rejection
from rlaif_assets.settings import RedTeamPromptsSettings, load_profile
from rlaif_assets.store.fingerprint import row_id

Write = Callable[..., str]


def read(path: str, **fields: Any) -> tuple[list[Prompt], list[Rejection]]:
    """What becomes of each row, also where nothing is left to go on with."""
    chosen = RedTeamPromptsSettings(path=path, **fields)
    return read_prompts(chosen, "red_team") if path == "pocket" else prompts_of_rows(chosen)


def turns(prompt: Prompt) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in prompt.messages]


def reason(write_rows: Write, row: Any, **fields: Any) -> str:
    kept, (rejected,) = read(write_rows(row), **fields)
    assert not kept
    assert rejected.where == "rows.jsonl:1"
    return rejected.reason


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


TRANSCRIPT = "\n\nHuman: one \n\nAssistant: two\n\nHuman: three\n\nfour\n\nAssistant: five"


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": TRANSCRIPT, "rejected": "anything"},
        {"prompt": TRANSCRIPT.removesuffix(" five")},
        {"prompt": [user("one"), assistant("two"), user("three\n\nfour")], "messages": []},
        {"messages": [user(" one"), assistant("two"), user("three\n\nfour\n"), assistant("five")]},
        {"chosen": [user("one"), assistant("two"), user("three\n\nfour"), assistant("")]},
        {"prompt": None, "chosen": TRANSCRIPT.removesuffix("\n\nAssistant: five")},
    ],
)
def test_a_conversation_is_split_at_its_last_assistant_turn(write_rows: Write, row: Any) -> None:
    (prompt,), rejected = read(write_rows(row))
    assert turns(prompt) == [("user", "one"), ("assistant", "two"), ("user", "three\n\nfour")]
    assert prompt.prompt_id == row_id("prompt", prompt.messages)
    assert (prompt.kind, prompt.source, prompt.category, prompt.intent) == ("unknown", "rows.jsonl", None, None)
    assert not rejected


def test_a_plain_prompt_and_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    messages = json.dumps([user("from messages")]).replace('"', '""')
    path.write_text(f'prompt,messages\n"What, now?",\nHuman: a film,\n,"{messages}"\n,broken\n,\n', encoding="utf-8")
    kept, rejected = read(str(path))
    assert [prompt.text for prompt in kept] == ["What, now?", "Human: a film", "from messages"]
    assert [(row.where, row.reason) for row in rejected] == [
        ("a.csv:5", "the messages are not valid JSON"),
        ("a.csv:6", "the prompt is empty"),
    ]


def test_history_is_made_alternating(write_rows: Write) -> None:
    system = {"role": "system", "content": "Be brief."}
    (prompt,), _ = read(
        write_rows(
            {"messages": [system, user("a"), assistant(" "), user("b"), assistant("c"), assistant("d"), user("e")]}
        )
    )
    assert turns(prompt) == [("system", "Be brief."), ("user", "a\n\nb"), ("assistant", "c\n\nd"), ("user", "e")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": " \n\t\u2003"}, "the prompt is empty"),
        ({"chosen": "\n\nHuman: \n\nAssistant: yes"}, "the last user turn is empty"),
        ({"text": "hello"}, "none of the fields prompt, messages, chosen"),
        ({"prompt": 5}, "expected a transcript or a list of messages, found int"),
        ({"messages": []}, "expected a transcript or a list of messages, found an empty list"),
        ({"messages": ["hello"]}, "message 1 is not an object with role and content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "message 1 has the role 'tool'"),
        ({"chosen": "no turns at all"}, "not a transcript"),
        ({"chosen": "before\n\nHuman: a\n\nAssistant: b"}, "not a transcript"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c"}, "does not follow a user turn"),
        ({"messages": [assistant("first"), user("a")]}, "does not begin with a user turn"),
        ({"messages": [user("a"), {"role": "system", "content": "b"}, user("c")]}, "a system message stands after"),
        ({"messages": [{"role": "system", "content": "b"}, assistant("c")]}, "does not follow a user turn"),
        ({"prompt": "a\0b"}, "NUL"),
        ({"prompt": "a\ud800b"}, "lone surrogate"),
        (["not", "an object"], "expected an object with fields, found list"),
    ],
)
def test_refused_rows_say_why(write_rows: Write, row: Any, expected: str) -> None:
    assert expected in reason(write_rows, row)


def test_duplicates_name_the_first_row(write_rows: Write) -> None:
    path = write_rows({"prompt": "a"}, {"prompt": "b"}, {"messages": [user(" a "), assistant("x")]})
    kept, (rejected,) = read(path)
    assert [prompt.text for prompt in kept] == ["a", "b"]
    assert (rejected.where, rejected.reason) == ("rows.jsonl:3", "duplicate of rows.jsonl:1")


def test_a_long_history_loses_its_first_turns(write_rows: Write) -> None:
    messages = [user("a" * 40), assistant("b" * 40), user("c" * 10), assistant("d" * 10), user("e" * 10)]
    path = write_rows({"messages": messages})
    assert [text[:1] for _, text in turns(read(path, max_characters=110)[0][0])] == ["a", "b", "c", "d", "e"]
    assert [text[:1] for _, text in turns(read(path, max_characters=109)[0][0])] == ["c", "d", "e"]
    assert [text[:1] for _, text in turns(read(path, max_characters=29)[0][0])] == ["e"]
    kept, (rejected,) = read(path, max_characters=9)
    assert not kept
    assert rejected.reason == "too long: the last user turn alone has 10 characters, the limit is 9"


def test_the_system_message_stays_when_history_is_cut(write_rows: Write) -> None:
    system = {"role": "system", "content": "s" * 10}
    path = write_rows({"messages": [system, user("a" * 10), assistant("b"), user("c" * 10)]})
    assert [text[:1] for _, text in turns(read(path, max_characters=20)[0][0])] == ["s", "c"]
    assert "20 characters, the limit is 19" in read(path, max_characters=19)[1][0].reason


def test_a_refused_megabyte_is_stored_short(write_rows: Write) -> None:
    _, (rejected,) = read(write_rows({"prompt": "x" * (1 << 20)}))
    assert rejected.reason.startswith("too long")
    assert len(rejected.text) == 300


def test_limit_counts_rows_read(write_rows: Write) -> None:
    path = write_rows(*({"prompt": text} for text in ["a", "", "a", "b"]))
    kept, rejected = read(path, limit=3)
    assert (len(kept), len(rejected)) == (1, 2)


def test_split_shares_and_openings() -> None:
    openings: list[list[Message]] = [[{"role": "user", "content": str(number)}] for number in range(4000)]
    counts = Counter(split_of(messages, 0.2, 0) for messages in openings)
    assert counts["dev"] == pytest.approx(800, abs=100)
    assert counts["test"] == pytest.approx(800, abs=100)
    later: list[Message] = [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]
    assert all(split_of(messages, 0.2, 0) == split_of([*messages, *later], 0.2, 0) for messages in openings[:200])
    assert {split_of(messages, 0.0, 0) for messages in openings[:200]} == {"train"}
    assert "train" not in {split_of(messages, 0.5, 0) for messages in openings[:200]}


def test_a_source_without_a_usable_prompt_or_without_train_is_refused(write_rows: Write) -> None:
    def refused(*rows: Any, **fields: Any) -> str:
        with pytest.raises(IngestError) as caught:
            read_prompts(RedTeamPromptsSettings(path=write_rows(*rows), **fields), "red_team")
        return str(caught.value).partition("rows.jsonl: ")[2]

    first = "no usable row: 2 read, 2 rejected (first rows.jsonl:1: the prompt is empty)"
    assert refused({"prompt": ""}, {"text": "a"}) == first
    assert refused() == "no usable row: 0 read, 0 rejected"
    assert refused({"prompt": "a"}, {"prompt": "b"}, heldout_share=0.5).startswith("no row in train: 2 kept, all drawn")
    kept, rejected = read_prompts(
        RedTeamPromptsSettings(path=write_rows({"prompt": "a"}, {}), heldout_share=0.0), "red_team"
    )
    assert (len(kept), len(rejected)) == (1, 1)


TEXT = st.one_of(st.text(max_size=30), st.sampled_from(["", " ", "a", "\0", TRANSCRIPT, "\n\nHuman: a\n\nAssistant:"]))
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXT})
VALUE = st.one_of(TEXT, st.none(), st.integers(), st.lists(st.one_of(MESSAGE, TEXT), max_size=5))
ROW = st.one_of(
    st.dictionaries(st.sampled_from(["prompt", "messages", "chosen", "other"]), VALUE), st.lists(st.integers())
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, max_size=8), max_characters=st.integers(1, 60))
def test_read_is_kept_plus_rejected(write_rows: Write, rows: list[Any], max_characters: int) -> None:
    kept, rejected = read(write_rows(*rows), max_characters=max_characters)
    assert len(rows) == len(kept) + len(rejected)
    assert len({prompt.prompt_id for prompt in kept}) == len(kept)
    for prompt in kept:
        roles = [message["role"] for message in prompt.messages if message["role"] != "system"]
        assert roles == [("user", "assistant")[i % 2] for i in range(len(roles))]
        assert roles[-1] == "user"
        assert 0 < sum(len(message["content"]) for message in prompt.messages) <= max_characters
        "".join(message["content"] for message in prompt.messages).encode("utf-8")


def test_the_pocket_world() -> None:
    red_team, rejected = read("pocket")
    helpful, _ = read_prompts(load_profile("pocket").helpful_prompts, "helpful")
    assert not rejected
    assert "harmful" in {prompt.kind for prompt in red_team}
    assert "harmless" in {prompt.kind for prompt in helpful}
    few, _ = read("pocket", limit=40)
    assert len(few) == 40
    assert {prompt.split for prompt in few} == {"train", "dev", "test"}


def test_real_transcripts(shared_file: Callable[[str], str]) -> None:
    path = shared_file("hh-rlhf-harmless-base-test.jsonl.gz")
    kept, rejected = read(path)
    assert len(kept) + len(rejected) == 2312
    assert len(kept) == 2306
    assert all(prompt.messages[-1]["role"] == "user" for prompt in kept)
    assert {row.where.split(":")[0] for row in rejected} == {"hh-rlhf-harmless-base-test.jsonl.gz"}
    few = read(path, limit=200)
    assert len(few[0]) + len(few[1]) == 200
