"""Examples for preference-model pre-training."""

from rlaif_assets.records import CommunityPair
from rlaif_assets.training.pmp import pmp_examples

PAIRS = [
    CommunityPair(f"pair{i}", f"question{i}", f"better{i}", f"worse{i}", f"Why {i}?", f"Because {i}.", f"No idea {i}.")
    for i in range(3)
]


def test_each_ranked_pair_becomes_two_binary_ones() -> None:
    examples = pmp_examples(PAIRS)
    assert [(e.response_a, e.response_b) for e in examples[:2]] == [
        ("GOOD: Because 0.", "BAD: Because 0."),
        ("BAD: No idea 0.", "GOOD: No idea 0."),
    ]
    assert all(e.messages == ({"role": "user", "content": f"Why {i // 2}?"},) for i, e in enumerate(examples))
    assert {(e.p_a, e.source, e.weight) for e in examples} == {(1.0, "votes", 1.0)}


def test_ids_are_distinct_and_do_not_change() -> None:
    ids = [example.row_id for example in pmp_examples(PAIRS)]
    assert len(set(ids)) == 6
    assert ids[2:4] == [example.row_id for example in pmp_examples(PAIRS[1:2])]
