"""Which tokens do rows share? Rows of token ids as a tree of segments, each to be read once for all rows beneath it.

Nothing here knows a model or a template: a prefix is shared because its ids are equal.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np


@dataclass(eq=False)
class Segment:
    """The tokens `ids` at the positions `start`, `start` + 1, ... of every row beneath; before them comes `parent`.

    `rows`: numbers of the rows that end with it. `children`: how many segments go on from it; a leaf has none. `level`:
    how many segments come before it in a row.
    """

    ids: list[int]
    start: int
    parent: "Segment | None"
    rows: list[int] = field(default_factory=list)
    children: int = 0
    level: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.ids)


def prefix_tree(rows: Sequence[Sequence[int]], least: int, most: int) -> list[Segment]:
    """All segments, a parent before its children and what is beneath a segment right after it.

    Rows share a segment where at least `least` ids in a row are equal, within their first `most` ids. Equal rows end
    with the same segment. Raises ValueError for a row without ids, which has no last position.
    """
    equal: dict[bytes, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if not row:
            raise ValueError(f"row {i} has no tokens")
        equal[np.asarray(row, dtype=">u4").tobytes()].append(i)  # big-endian: bytes are ordered as the ids are
    keys = sorted(equal)
    ordered = [np.frombuffer(key, dtype=">u4") for key in keys]
    common = [min(most, _common_length(a, b)) for a, b in pairwise(ordered)]
    segments: list[Segment] = []

    def add(first: int, end: int, parent: Segment | None) -> Segment:
        start = 0 if parent is None else parent.end
        segment = Segment(ordered[first][start:end].tolist(), start, parent)
        if parent is not None:
            parent.children += 1
            segment.level = parent.level + 1
        segments.append(segment)
        return segment

    ahead: list[tuple[int, int, Segment | None]] = [(0, len(keys) - 1, None)]
    while ahead:
        first, last, parent = ahead.pop()  # rows first to last share what ends with parent
        if first > last:
            continue
        start = 0 if parent is None else parent.end
        alike = first
        while alike < last and common[alike] >= start + least:
            alike += 1
        ahead.append((alike + 1, last, parent))
        if alike > first:
            ahead.append((first, alike, add(first, min(common[first:alike]), parent)))
        elif parent is not None and len(ordered[first]) == start:
            parent.rows += equal[keys[first]]
        else:
            add(first, len(ordered[first]), parent).rows += equal[keys[first]]
    return segments


def _common_length(a: np.ndarray, b: np.ndarray) -> int:
    shorter = min(len(a), len(b))
    different = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(different[0]) if len(different) else shorter
