"""The labels of two snapshots side by side, by hand."""

import dataclasses
from collections.abc import Sequence

import pytest

from rlaif_assets.feedback.changes import Labelled, change_metrics, compare, flips_markdown
from rlaif_assets.feedback.labels import make_labels
from rlaif_assets.records import Judgement
from tests.feedback.fakes import PROMPTS, make_judgements, make_pair

CATEGORIES = ("theft", "theft", "fraud", None)
BY_ID = {
    prompt.prompt_id: dataclasses.replace(prompt, category=category)
    for prompt, category in zip(PROMPTS, CATEGORIES, strict=False)
}
PAIRS = [
    dataclasses.replace(make_pair(prompt, f"one {i}", f"other {i}"), pair_id=f"pair-{i}")
    for i, prompt in enumerate(PROMPTS[:4])
]
NAMES = {"j0": "kind", "j1": "useful"}


def labelled(judgements: Sequence[Judgement], names: dict[str, str] = NAMES) -> Labelled:
    return Labelled(make_labels(judgements), {row.judgement_id: row for row in judgements}, names)


def under(principle: str, judgements: Sequence[Judgement], *pairs: str) -> list[Judgement]:
    return [
        dataclasses.replace(row, principle_id=principle if row.pair_id in pairs else row.principle_id)
        for row in judgements
    ]


OLD = labelled(under("j1", make_judgements([(0.9, 0.7), (0.2, 0.2), (0.6, 0.6)]), "pair-1"))
NEW = labelled(under("j1", make_judgements([(0.1, 0.3), (0.4, 0.4), (0.4, 0.4), (0.9, 0.9)]), "pair-1"))


def test_changes_by_hand() -> None:
    changes, flips = compare(OLD, NEW, PAIRS, BY_ID, 10)
    found = {(c.scope, c.name): (c.labels, c.flipped, c.mean_change) for c in changes}
    assert found == {
        ("all", ""): (3, 2, pytest.approx((0.6 + 0.2 + 0.2) / 3)),
        ("principle", "kind"): (2, 2, pytest.approx(0.4)),
        ("principle", "useful"): (1, 0, pytest.approx(0.2)),
        ("category", "theft"): (2, 1, pytest.approx(0.4)),
        ("category", "fraud"): (1, 1, pytest.approx(0.2)),
    }
    assert [(flip.pair_id, flip.old_p_a, flip.new_p_a) for flip in flips] == [
        ("pair-0", pytest.approx(0.8), pytest.approx(0.2)),
        ("pair-2", pytest.approx(0.6), pytest.approx(0.4)),
    ]
    assert change_metrics(changes, OLD, NEW) == {
        "labels": 3,
        "flipped": 2,
        "flipped_share": pytest.approx(2 / 3),
        "mean_change": pytest.approx(1 / 3),
        "added": 1,
        "removed": 0,
    }
    assert [flip.pair_id for flip in compare(OLD, NEW, PAIRS, BY_ID, 1)[1]] == ["pair-0"]


def test_a_reworded_principle_is_the_one_of_its_name() -> None:
    reworded = labelled(under("j9", make_judgements([(0.1, 0.1)]), "pair-0"), {"j9": "kind"})
    changes, flips = compare(OLD, reworded, PAIRS, BY_ID, 10)
    assert [(c.name, c.labels) for c in changes if c.scope == "principle"] == [("kind", 1)]
    assert (flips[0].old_principle, flips[0].new_principle) == ("kind", "kind")


def test_the_first_labels_are_compared_with_none() -> None:
    changes, flips = compare(Labelled([], {}, {}), NEW, PAIRS, BY_ID, 10)
    assert [(c.scope, c.labels, c.mean_change) for c in changes] == [("all", 0, None)] and flips == []
    assert change_metrics(changes, Labelled([], {}, {}), NEW)["flipped_share"] is None
    assert flips_markdown([]) == "No label flipped."


def test_a_persons_label_counts_but_not_under_a_principle() -> None:
    human = dataclasses.replace(NEW.labels[0], source="human", p_a=0.0)
    changes, flips = compare(OLD, Labelled([human], NEW.judgements, NAMES), PAIRS, BY_ID, 10)
    assert [(c.scope, c.labels) for c in changes] == [("all", 1), ("category", 1)]
    assert (flips[0].old_source, flips[0].new_source) == ("ai", "human")


def test_a_tie_is_no_flip() -> None:
    tied = labelled(make_judgements([(0.5, 0.5)]))
    assert compare(OLD, tied, PAIRS, BY_ID, 10)[1] == []


def test_the_markdown_shows_old_and_new_and_reads_nothing_in_the_texts_as_markup() -> None:
    flips = [dataclasses.asdict(flip) for flip in compare(OLD, NEW, PAIRS, BY_ID, 10)[1]]
    flips[0]["response_a"] = "# Heading\n<script>alert(1)</script>"
    flips[0]["new_principle"] = "a|b"
    text = flips_markdown(flips)
    assert "| old | 0.800 | A | kind | ai |\n| new | 0.200 | B | a\\|b | ai |" in text
    assert "    # Heading\n    <script>alert(1)</script>" in text
    assert "Question 0?" in text and "    other 2" in text
