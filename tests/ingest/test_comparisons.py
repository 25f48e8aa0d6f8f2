from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlaif_assets.ingest.comparisons import comparisons_of_rows, read_comparisons
from rlaif_assets.ingest.errors import IngestError
from rlaif_assets.ingest.prompts import read_prompts
from rlaif_assets.records import Comparison, Rejection
from rlaif_assets.settings import HelpfulnessPreferencesSettings, HelpfulPromptsSettings
from rlaif_assets.training.examples import comparison_examples

Write = Callable[..., str]
CONTEXT = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant:"
MESSAGES = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def read(path: str, **fields: Any) -> tuple[list[Comparison], list[Rejection]]:
    """What becomes of each row, also where nothing is left to go on with."""
    chosen = HelpfulnessPreferencesSettings(path=path, **fields)
    return read_comparisons(chosen) if path == "pocket" else comparisons_of_rows(chosen)


def chosen_and_rejected(comparison: Comparison) -> tuple[str, str]:
    assert comparison.p_a in (0.0, 1.0)
    if comparison.p_a == 1.0:
        return comparison.response_a, comparison.response_b
    return comparison.response_b, comparison.response_a


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": f"{CONTEXT} good ", "rejected": f"{CONTEXT} bad"},
        {"prompt": CONTEXT, "chosen": "good", "rejected": " bad"},
        {"prompt": CONTEXT, "chosen": f"{CONTEXT} good", "rejected": f"{CONTEXT} bad"},
        {"prompt": MESSAGES, "chosen": "good", "rejected": "bad"},
        {"prompt": MESSAGES, "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        {"prompt": "three", "chosen": [*MESSAGES, assistant("good")], "rejected": [*MESSAGES, assistant("bad")]},
    ],
)
def test_all_layouts_give_the_same_comparison(write_rows: Write, row: Any) -> None:
    (comparison,), rejected = read(write_rows(row))
    assert not rejected
    assert list(comparison.messages) == MESSAGES
    assert chosen_and_rejected(comparison) == ("good", "bad")
    assert (comparison.source, comparison.annotator) == ("rows.jsonl", "human")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"chosen": f"{CONTEXT} a", "rejected": "\n\nHuman: else\n\nAssistant: b"}, "different contexts"),
        ({"chosen": f"{CONTEXT} a", "rejected": f"{CONTEXT} a  "}, "chosen and rejected are identical"),
        ({"chosen": f"{CONTEXT} ", "rejected": f"{CONTEXT} b"}, "chosen has an empty response"),
        ({"prompt": "q", "chosen": "a", "rejected": " \n"}, "rejected has an empty response"),
        ({"chosen": f"{CONTEXT} a"}, "the field rejected is missing"),
        ({"chosen": "a", "rejected": "b"}, "not a transcript"),
        ({"chosen": MESSAGES, "rejected": MESSAGES}, "chosen does not end in an assistant turn"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "does not follow a user turn"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "the last user turn is empty"),
        ({"prompt": "q", "chosen": "a\0", "rejected": "b"}, "NUL"),
        ({"prompt": "q", "chosen": 7, "rejected": "b"}, "found int"),
        ("text", "expected an object with fields, found str"),
    ],
)
def test_refused_rows_say_why(write_rows: Write, row: Any, expected: str) -> None:
    kept, (rejected,) = read(write_rows(row))
    assert not kept
    assert rejected.where == "rows.jsonl:1"
    assert expected in rejected.reason


def test_duplicates_are_refused_and_contrary_opinions_kept(write_rows: Write) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    kept, (rejected,) = read(write_rows(row, row, {"prompt": "q", "chosen": "b", "rejected": "a"}))
    assert [chosen_and_rejected(comparison) for comparison in kept] == [("a", "b"), ("b", "a")]
    assert rejected.reason == "duplicate of rows.jsonl:1"


def test_either_side_comes_first_by_hash(write_rows: Write) -> None:
    path = write_rows(*({"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(1000)))
    kept, _ = read(path)
    assert sum(comparison.p_a for comparison in kept) == pytest.approx(500, abs=60)
    assert kept == read(path)[0]
    other_seed, _ = read(path, seed=1)
    assert [comparison.p_a for comparison in kept] != [comparison.p_a for comparison in other_seed]
    assert [c.comparison_id for c in kept] == [c.comparison_id for c in other_seed]


def test_openings_of_held_out_prompts_are_never_trained_on(write_rows: Write) -> None:
    def row(n: int, reply: str) -> dict[str, str]:
        context = f"\n\nHuman:  opening {n}\n\nAssistant: {'long ' * 20}\n\nHuman: then {n}\n\nAssistant:"
        return {"chosen": f"{context} {reply}", "rejected": f"{context} b"}

    path = write_rows(*(row(n, reply) for n in range(100) for reply in ("a", "c")))
    compared, _ = read(path, heldout_share=0.2, seed=3, max_characters=50)  # the openings are cut off
    prompts, _ = read_prompts(HelpfulPromptsSettings(path=path, heldout_share=0.2, seed=3), "helpful")
    split_of_prompt = {prompt.messages[0]["content"]: prompt.split for prompt in prompts}
    assert len(compared) == 200
    assert [row.split for row in compared] == [split_of_prompt[f"opening {i // 2}"] for i in range(200)]
    trained = {example.row_id for example in comparison_examples(compared, 1.0)}
    held_out = {row.comparison_id for row in compared if row.split != "train"}
    assert trained and held_out and not trained & held_out


def test_history_makes_room_for_the_longer_response(write_rows: Write) -> None:
    path = write_rows({"prompt": CONTEXT, "chosen": "g" * 20, "rejected": "b"})
    assert len(read(path, max_characters=31)[0][0].messages) == 3
    assert [message["content"] for message in read(path, max_characters=30)[0][0].messages] == ["three"]
    assert "last user turn alone" in read(path, max_characters=24)[1][0].reason
    assert "a response has 20 characters" in read(path, max_characters=20)[1][0].reason


VALUE = st.one_of(
    st.none(),
    st.text(max_size=8),
    st.sampled_from([f"{CONTEXT} a", f"{CONTEXT} b", [*MESSAGES, assistant("a")], "\ud800"]),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected"]), VALUE), max_size=8))
def test_read_is_kept_plus_rejected(write_rows: Write, rows: list[Any]) -> None:
    kept, rejected = read(write_rows(*rows))
    assert len(rows) == len(kept) + len(rejected)
    assert all(comparison.response_a != comparison.response_b for comparison in kept)


def test_a_source_without_a_usable_comparison_or_without_train_is_refused(write_rows: Write) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(IngestError, match=r"no usable row: 1 read, 1 rejected \(first rows.jsonl:1: .*identical\)"):
        read_comparisons(HelpfulnessPreferencesSettings(path=write_rows({**row, "rejected": "a"})))
    with pytest.raises(IngestError, match="no row in train: 1 kept"):
        read_comparisons(HelpfulnessPreferencesSettings(path=write_rows(row), heldout_share=0.5))
    assert read_comparisons(HelpfulnessPreferencesSettings(path=write_rows(row), heldout_share=0.0))[0]


def test_the_pocket_world() -> None:
    kept, rejected = read("pocket", limit=10)
    assert len(kept) == 10
    assert not rejected


def test_real_comparisons(shared_file: Callable[[str], str]) -> None:
    kept, rejected = read(shared_file("hh-rlhf-harmless-base-test.jsonl.gz"))
    assert len(kept) + len(rejected) == 2312
    assert sum("different contexts" in row.reason for row in rejected) == 5
    assert sum("empty response" in row.reason for row in rejected) == 4
    assert sum(comparison.p_a for comparison in kept) == pytest.approx(len(kept) / 2, abs=100)
