"""Where the boxes of a drawn graph go: layers from top to bottom, long networks wrapped into columns.

Edges that skip layers run in lanes to the right of the boxes they pass, one lane for all that carry the same value,
as version-control graphs draw branches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from nbcompile.report.data import Graph

BOX_WIDTH, BOX_HEIGHT = 240.0, 36.0
GAP_X, GAP_Y = 14.0, 20.0
LANE, GUTTER = 12.0, 32.0
PAGE_WIDTH = 1124.0
ROWS = 12  # a column of about this many boxes fits a screen

Edge = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """Positions in CSS pixels, the origin at the top left.

    Attributes:
        x, y: top left corner of each box.
        column: of each node.
        is_rightmost: for each node, whether no box of its row stands to its right.
        end: x of the right edge of each column, lanes included.
        lanes: x of the vertical part of each edge that skips rows of one column.
        drops: edges that skip rows straight down from a box, where nothing is in their way.
        width, height: of the drawing.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    column: tuple[int, ...]
    is_rightmost: tuple[bool, ...]
    end: tuple[float, ...]
    lanes: dict[Edge, float]
    drops: frozenset[Edge]
    width: float
    height: float


def layout(graph: Graph) -> Layout:
    """Places the nodes of ``graph``, which stand in execution order, in as many columns as fit the page."""
    ranks = _ranks(len(graph.nodes), graph.edges)
    slots = _slots(ranks, graph.edges)
    for columns in range(ceil((max(ranks, default=0) + 1) / ROWS), 1, -1):
        placed = _place(graph, ranks, slots, columns)
        if placed.width <= PAGE_WIDTH:
            return placed
    return _place(graph, ranks, slots, 1)


def _place(graph: Graph, ranks: Sequence[int], slots: Sequence[int], columns: int) -> Layout:
    nodes = range(len(ranks))
    starts = _cuts(ranks, graph.edges, columns)
    column = [sum(rank >= start for start in starts) - 1 for rank in ranks]
    row = [rank - starts[at] for rank, at in zip(ranks, column, strict=True)]
    rightmost: dict[int, int] = {}  # the last slot of each rank
    for n in nodes:
        rightmost[ranks[n]] = max(rightmost.get(ranks[n], 0), slots[n])

    inside = [(a, b) for a, b in graph.edges if column[a] == column[b] and ranks[b] - ranks[a] > 1]
    taken = {(ranks[n], slots[n]) for n in nodes}
    drops = frozenset(
        (a, b)
        for a, b in inside
        if slots[a] > slots[b] == rightmost[ranks[b]]
        and not any((rank, slots[a]) in taken for rank in range(ranks[a] + 1, ranks[b]))
    )
    skipping = [edge for edge in inside if edge not in drops]
    lane_of = _lanes(skipping, ranks)
    passed = dict.fromkeys(lane_of, 0)  # the last slot that the lane of each source passes
    for a, b in skipping:
        passed[a] = max(passed[a], *(rightmost[rank] for rank in range(ranks[a], ranks[b] + 1)))

    left, end, lanes = [], [], {}
    cursor = 1.0
    for index in range(len(starts)):
        left.append(cursor)
        slots_here = max((slots[n] for n in nodes if column[n] == index), default=0)
        end.append(_right(cursor, slots_here))
        for a, b in skipping:
            if column[a] == index:
                lanes[a, b] = _right(cursor, passed[a]) + (lane_of[a] + 0.9) * LANE
                end[-1] = max(end[-1], lanes[a, b])
        cursor = end[-1] + GUTTER
    return Layout(
        x=tuple(left[column[n]] + slots[n] * (BOX_WIDTH + GAP_X) for n in nodes),
        y=tuple(GAP_Y + row[n] * (BOX_HEIGHT + GAP_Y) for n in nodes),
        column=tuple(column),
        is_rightmost=tuple(slots[n] == rightmost[ranks[n]] for n in nodes),
        end=tuple(end),
        lanes=lanes,
        drops=drops,
        width=end[-1] + LANE,
        height=GAP_Y + (max(row, default=-1) + 1) * (BOX_HEIGHT + GAP_Y),
    )


def _right(left: float, slot: int) -> float:
    """The right edge of the box in ``slot`` of a column that begins at ``left``."""
    return left + slot * (BOX_WIDTH + GAP_X) + BOX_WIDTH


def _ranks(count: int, edges: Sequence[Edge]) -> list[int]:
    """The layer of each node: the longest way to it from any start."""
    ranks = [0] * count
    for source, target in sorted(edges, key=lambda edge: edge[1]):
        ranks[target] = max(ranks[target], ranks[source] + 1)
    return ranks


def _slots(ranks: Sequence[int], edges: Sequence[Edge]) -> list[int]:
    """The place of each node in its layer: below its leftmost source where that is free, else further right."""
    slots = [0] * len(ranks)
    taken: set[tuple[int, int]] = set()
    for node in sorted(range(len(ranks)), key=ranks.__getitem__):
        slot = min((slots[source] for source, target in edges if target == node), default=0)
        while (ranks[node], slot) in taken:
            slot += 1
        taken.add((ranks[node], slot))
        slots[node] = slot
    return slots


def _cuts(ranks: Sequence[int], edges: Sequence[Edge], columns: int) -> list[int]:
    """The first layer of each column, cut where the fewest values cross."""
    total = max(ranks, default=0) + 1
    starts = [0]

    def cost(cut: int) -> tuple[int, int, float]:
        crossing = [a for a, b in edges if ranks[a] < cut <= ranks[b]]
        return len(set(crossing)), len(crossing), abs(cut - starts[-1] - rows)

    while len(starts) < columns:
        rows = (total - starts[-1]) / (columns - len(starts) + 1)
        first, last = starts[-1] + max(1, int(0.75 * rows)), starts[-1] + ceil(1.2 * rows)
        possible = range(first, min(last, total - 1) + 1)
        if not possible:
            break
        starts.append(min(possible, key=cost))
    return starts


def _lanes(edges: Sequence[Edge], ranks: Sequence[int]) -> dict[int, int]:
    """A lane for each source of ``edges``, 0 the innermost, so that no two overlap; the shortest choose first."""
    reach: dict[int, int] = {}
    for a, b in edges:
        reach[a] = max(reach.get(a, 0), ranks[b])
    lanes: dict[int, int] = {}
    for a in sorted(reach, key=lambda node: reach[node] - ranks[node]):
        blocked = {lane for c, lane in lanes.items() if ranks[a] < reach[c] and ranks[c] < reach[a]}
        lanes[a] = min(set(range(len(blocked) + 1)) - blocked)
    return lanes
