"""The draw of principles."""

from collections import Counter

import pytest

from rlaif_assets.feedback.constitution import draw_principle, draw_principles
from rlaif_assets.records import JudgingPrinciple
from tests.feedback.fakes import JUDGING, judging_principle

PRINCIPLES = JUDGING.principles
ROWS = [f"row-{number}" for number in range(3200)]


def draws(principles: tuple[JudgingPrinciple, ...], number: int = 0) -> dict[str, JudgingPrinciple]:
    return {row: draw_principle(principles, row, 0, "judging-principle", number) for row in ROWS}


def test_every_principle_is_drawn_about_equally_often():
    counts = Counter(principle.principle_id for principle in draws(PRINCIPLES).values())
    assert set(counts) == {principle.principle_id for principle in PRINCIPLES}
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 37.7  # chi square, 15 degrees, p = 0.001


def test_rounds_are_independent_and_with_replacement():
    first, second = draws(PRINCIPLES, 1), draws(PRINCIPLES, 2)
    same = sum(first[row] == second[row] for row in ROWS)
    assert 140 <= same <= 260  # 1 in 16 of 3200 is 200


def test_the_order_of_the_file_does_not_matter():
    assert draws(PRINCIPLES) == draws(PRINCIPLES[::-1])


def test_a_reworded_principle_keeps_its_rows():
    old = PRINCIPLES[3]
    reworded = JudgingPrinciple("another-id", old.name, "New words.")
    before, after = draws(PRINCIPLES), draws((*PRINCIPLES[:3], reworded, *PRINCIPLES[4:]))
    assert {row for row in ROWS if before[row] != after[row]} == {row for row in ROWS if before[row] == old}


def test_an_added_principle_takes_only_the_rows_that_it_wins():
    added = judging_principle(99)
    before, after = draws(PRINCIPLES), draws((*PRINCIPLES, added))
    assert all(after[row] in (before[row], added) for row in ROWS)


def test_several_are_different_and_begin_with_those_of_a_smaller_count():
    for row in ROWS[:50]:
        every = draw_principles(PRINCIPLES, row, 0, "judging-principle", 99)
        assert set(every) == set(PRINCIPLES) and len(every) == 16
        for count in (1, 2, 7):
            assert draw_principles(PRINCIPLES, row, 0, "judging-principle", count) == every[:count]
        assert every[0] == draw_principle(PRINCIPLES, row, 0, "judging-principle")


def test_a_removed_principle_leaves_only_its_own_rows():
    before, after = draws(PRINCIPLES), draws(PRINCIPLES[1:])
    assert {row for row in ROWS if before[row] != after[row]} == {row for row in ROWS if before[row] == PRINCIPLES[0]}


def test_no_principle_is_an_error():
    with pytest.raises(ValueError, match="no principle"):
        draw_principle((), "row", 0, "judging-principle")
