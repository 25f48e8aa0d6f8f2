"""Where the snapshots of an ancestry are drawn: layers from top to bottom, inputs above what reads them.

Layers are longest paths, as in Sugiyama et al. 1981; a snapshot read further down has a place in every layer between,
so that its line runs beside the boxes. The drawing itself is the page's template.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

WIDTH, HEIGHT, PASS, GAP, PITCH = 178.0, 40.0, 8.0, 14.0, 92.0  # of a box, of a line that passes, between rows: px
SWEEPS = 24

Slot = tuple[str, int]  # a snapshot in its own layer, or its line in a later one


@dataclass(frozen=True)
class Node:
    """A box: its left upper corner, and the snapshot."""

    x: float
    y: float
    snapshot: Mapping[str, Any]


@dataclass(frozen=True)
class Edge:
    """A piece of a snapshot's line; `reader`: the one that it ends at, where it does."""

    path: str
    source: str
    reader: str | None


@dataclass(frozen=True)
class Graph:
    width: float
    height: float
    nodes: list[Node]
    edges: list[Edge]


def draw_ancestry(snapshots: Sequence[Mapping[str, Any]]) -> Graph:
    """`snapshots` as of `trace_policy`: every one after its inputs."""
    layer: dict[str, int] = {}
    for one in snapshots:
        layer[one["snapshot_id"]] = 1 + max((layer[up] for up in one["inputs"].values()), default=-1)
    readers: dict[str, list[str]] = {name: [] for name in layer}
    for one in snapshots:
        for up in sorted(set(one["inputs"].values())):
            readers[up].append(one["snapshot_id"])
    for one in reversed(snapshots):
        if not one["inputs"] and readers[one["snapshot_id"]]:  # a source stands above its first reader
            layer[one["snapshot_id"]] = min(layer[reader] for reader in readers[one["snapshot_id"]]) - 1
    rows: list[list[Slot]] = [[] for _ in range(1 + max(layer.values()))]
    links: list[tuple[Slot, Slot]] = []
    for name, read_by in readers.items():
        last = max((layer[reader] for reader in read_by), default=layer[name] + 1) - 1
        for at in range(layer[name], last + 1):
            rows[at].append((name, at))
            links += [((name, at - 1), (name, at))] if at > layer[name] else []
        links += [((name, layer[reader] - 1), (reader, layer[reader])) for reader in read_by]
    x = _places(rows, links, layer)
    left = min(x[slot] - _width(slot, layer) / 2 for slot in x) - 1
    x = {slot: place - left for slot, place in x.items()}
    nodes = [
        Node(x[name, at] - WIDTH / 2, at * PITCH + 1, one)
        for one, (name, at) in zip(snapshots, layer.items(), strict=True)
    ]
    edges = [_edge(a, b, x, passes=b[0] == a[0]) for a, b in links]
    width = max(x[slot] + _width(slot, layer) / 2 for slot in x) + 1
    return Graph(width, (len(rows) - 1) * PITCH + HEIGHT + 2, nodes, edges)


def _places(rows: list[list[Slot]], links: Sequence[tuple[Slot, Slot]], layer: Mapping[str, int]) -> dict[Slot, float]:
    """The middle of each slot. Rows are sorted by the mean place of what they are linked to, down and up in turn, then
    moved to the mean of both sides as far as their neighbours let them."""
    above: dict[Slot, list[Slot]] = {slot: [] for row in rows for slot in row}
    below: dict[Slot, list[Slot]] = {slot: [] for row in rows for slot in row}
    for a, b in links:
        below[a].append(b)
        above[b].append(a)
    x: dict[Slot, float] = {}
    for row in rows:
        x |= _packed(row, dict.fromkeys(row, 0.0), layer)
    both = {slot: above[slot] + below[slot] for slot in above}
    for sweep in range(SWEEPS):
        sorting, down = sweep < SWEEPS // 2, sweep % 2 == 0
        near = both if not sorting else above if down else below
        for row in rows if down else rows[::-1]:
            wanted = {slot: fmean([x[other] for other in near[slot]] or [x[slot]]) for slot in row}
            if sorting:
                row.sort(key=lambda slot: wanted[slot])
            x |= _packed(row, wanted, layer)
    return x


def _packed(row: Sequence[Slot], wanted: Mapping[Slot, float], layer: Mapping[str, int]) -> dict[Slot, float]:
    """Side by side in this order, as near to the wanted places as that goes: least squares, by pooling neighbours that
    want to overlap (isotonic regression)."""
    offsets: list[float] = []
    pools: list[list[float]] = []
    edge = 0.0
    for slot in row:
        offsets.append(edge + _width(slot, layer) / 2)
        edge += _width(slot, layer) + GAP
        pools.append([wanted[slot] - offsets[-1]])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    places = [fmean(pool) for pool in pools for _ in pool]
    return {slot: place + offset for slot, place, offset in zip(row, places, offsets, strict=True)}


def _width(slot: Slot, layer: Mapping[str, int]) -> float:
    return WIDTH if layer[slot[0]] == slot[1] else PASS


def _edge(a: Slot, b: Slot, x: Mapping[Slot, float], passes: bool) -> Edge:
    top, bottom = a[1] * PITCH + HEIGHT + 1, b[1] * PITCH + 1
    bend = (top + bottom) / 2
    aside = 0.0 if passes else max(-WIDTH, min(WIDTH, x[a] - x[b])) * 0.35  # lines to one box end side by side
    end = x[b] + aside
    curve = f"M{x[a]:.1f} {top:.1f}C{x[a]:.1f} {bend:.1f} {end:.1f} {bend:.1f} {end:.1f} {bottom:.1f}"
    return Edge(curve + (f"v{HEIGHT:g}" if passes else ""), a[0], None if passes else b[0])
