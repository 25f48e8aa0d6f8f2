"""What rows share, as a tree: every row is whole again along its branch, and nothing is shared by chance."""

import random

import pytest

from rlaif_assets.language_models.prefix_tree import Segment, prefix_tree


def branch(segment: Segment) -> list[int]:
    return (branch(segment.parent) if segment.parent else []) + segment.ids


def test_a_tree_by_hand() -> None:
    rows = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 6, 7], [9], [1, 2, 3, 8], [1, 2], [1, 2, 3, 4, 5]]
    segments = prefix_tree(rows, least=2, most=100)
    told = [(s.ids, s.start, s.level, s.rows, s.children) for s in segments]
    # 3 alone is one id and not shared; 3, 4 are two.
    assert told == [
        ([1, 2], 0, 0, [4], 2),
        ([3, 4], 2, 1, [], 2),
        ([5], 4, 2, [0, 5], 0),
        ([6, 7], 4, 2, [1], 0),
        ([3, 8], 2, 1, [3], 0),
        ([9], 0, 0, [2], 0),
    ]


def test_limits_of_sharing() -> None:
    rows = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7]]
    assert [s.ids for s in prefix_tree(rows, least=6, most=100)] == rows
    assert [s.ids for s in prefix_tree(rows, least=2, most=3)] == [[1, 2, 3], [4, 5, 6], [4, 5, 7]]
    assert [s.ids for s in prefix_tree(rows, least=2, most=0)] == rows
    assert prefix_tree([], least=2, most=3) == []
    with pytest.raises(ValueError, match="row 1 has no tokens"):
        prefix_tree([[1], []], least=2, most=3)


def test_a_branch_deeper_than_python_recurses() -> None:
    rows = [[7] * (2 * i) for i in range(1, 2001)]
    segments = prefix_tree(rows, least=2, most=10_000)
    assert [s.rows for s in segments] == [[i] for i in range(2000)] and segments[-1].level == 1999


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_whole_along_its_branch(seed: int) -> None:
    draw = random.Random(seed)
    # Few ids and short rows, large and small ids, so that all kinds of meeting occur.
    rows = [[draw.choice((0, 1, 300, 70_000)) for _ in range(draw.randint(1, 9))] for _ in range(60)]
    least, most = draw.randint(1, 4), draw.randint(0, 9)
    segments = prefix_tree(rows, least, most)
    ends = {row: segment for segment in segments for row in segment.rows}
    assert sorted(row for segment in segments for row in segment.rows) == list(range(len(rows)))
    assert all(branch(ends[i]) == row for i, row in enumerate(rows))
    places = {id(segment): i for i, segment in enumerate(segments)}
    for segment in segments:
        beneath = [other for other in segments if other.parent is segment]
        assert segment.children == len(beneath) and segment.ids
        if segment.parent is not None:
            assert places[id(segment.parent)] < places[id(segment)]
            assert (segment.start, segment.level) == (segment.parent.end, segment.parent.level + 1)
        if segment.children:
            assert len(segment.ids) >= least and segment.end <= most
        else:
            assert segment.rows
