"""Draws a laid-out graph as inline SVG; its colours are the page's, so that it follows light and dark."""

from collections.abc import Sequence
from html import escape

from nbcompile.report.data import Box, Graph
from nbcompile.report.layout import BOX_HEIGHT, BOX_WIDTH, GAP_Y, GUTTER, Edge, Layout, layout

_INDENT = 9.0  # from a box's left edge to its text, px
_LABEL, _DETAIL, NAME = 6.1, 5.4, 5.8  # width of a character, px; that of a wide font
_SPACE = 7.0  # between label and detail, px
_ROUND = 8.0  # radius of an edge's corners, px

Point = tuple[float, float]


def draw_graph(graph: Graph) -> str:
    """``graph`` as one ``<svg>`` element without script, style sheet or external reference."""
    placed = layout(graph)
    shapes = [_edge(placed, edge) for edge in graph.edges]
    shapes += [_box(node, x, y) for node, x, y in zip(graph.nodes, placed.x, placed.y, strict=True)]
    size = f'width="{placed.width:.0f}" height="{placed.height:.0f}"'
    return (
        f'<svg class="graph" role="img" aria-label="{escape(graph.title)}" {size} '
        f'viewBox="0 0 {placed.width:.0f} {placed.height:.0f}">{"".join(shapes)}</svg>'
    )


def _box(node: Box, x: float, y: float) -> str:
    room = BOX_WIDTH - 2 * _INDENT
    label = shortened(node.label, room / _LABEL)
    left = (room - len(label) * _LABEL - _SPACE) / _DETAIL
    detail = shortened(node.detail, left) if left > 4 else ""
    name = shortened_name(node.name, room / NAME)
    whole = f"{node.name}: {node.label}" + (f" · {node.detail}" if node.detail else "")
    return (
        f'<g class="{"box site" if node.highlighted else "box"}"><title>{escape(whole)}</title>'
        f'<rect x="{x:g}" y="{y:g}" width="{BOX_WIDTH:g}" height="{BOX_HEIGHT:g}" rx="4"/>'
        f'<text x="{x + _INDENT:g}" y="{y + 15:g}">{escape(label)}'
        f'<tspan class="small" dx="{_SPACE:g}">{escape(detail)}</tspan></text>'
        f'<text x="{x + _INDENT:g}" y="{y + 29:g}" class="small name">{escape(name)}</text></g>'
    )


def shortened(text: str, length: float) -> str:
    """The start of ``text``, at most ``length`` characters."""
    return text if len(text) <= length else text[: int(length) - 1] + "…"


def shortened_name(name: str, length: float) -> str:
    """The end of a qualified name, which says more than its start; at most ``length`` characters."""
    return shortened(name[::-1], length)[::-1]


def _edge(placed: Layout, edge: Edge) -> str:
    source, target = edge
    if edge in placed.lanes:
        return _path(_lane(placed, edge), css="edge skip")
    if edge in placed.drops:
        x, y = placed.x[source] + BOX_WIDTH / 2, placed.y[target] + BOX_HEIGHT / 2
        return _path([(x, placed.y[source] + BOX_HEIGHT), (x, y), (placed.x[target] + BOX_WIDTH, y)])
    if placed.column[source] != placed.column[target]:
        return _path(_across(placed, edge))
    start = (placed.x[source] + BOX_WIDTH / 2, placed.y[source] + BOX_HEIGHT)
    end = (placed.x[target] + BOX_WIDTH / 2, placed.y[target])
    middle = (start[1] + end[1]) / 2 - 2
    bends = [(start[0], middle), (end[0], middle)] if start[0] != end[0] else []
    return _path([start, *bends, end])


def _lane(placed: Layout, edge: Edge) -> list[Point]:
    """Out at the right, down in the edge's lane, back in at the right; around neighbours that stand there."""
    source, target = edge
    lane = placed.lanes[edge]
    if placed.is_rightmost[source]:
        y = placed.y[source] + 0.72 * BOX_HEIGHT
        out = [(placed.x[source] + BOX_WIDTH, y), (lane, y)]
    else:
        x, y = placed.x[source] + 0.75 * BOX_WIDTH, placed.y[source] + BOX_HEIGHT
        out = [(x, y), (x, y + 0.3 * GAP_Y), (lane, y + 0.3 * GAP_Y)]
    if placed.is_rightmost[target]:
        y = placed.y[target] + 0.28 * BOX_HEIGHT
        back = [(lane, y), (placed.x[target] + BOX_WIDTH, y)]
    else:
        x, y = placed.x[target] + 0.75 * BOX_WIDTH, placed.y[target]
        back = [(lane, y - 0.6 * GAP_Y), (x, y - 0.6 * GAP_Y), (x, y)]
    return out + back


def _across(placed: Layout, edge: Edge) -> list[Point]:
    """From the bottom of a column up through the gutter to the top of the next."""
    source, target = edge
    x, y = placed.x[source] + BOX_WIDTH / 2, placed.y[source] + BOX_HEIGHT
    gutter = placed.end[placed.column[target] - 1] + 0.6 * GUTTER
    goal, top = placed.x[target] + BOX_WIDTH / 2, placed.y[target]
    below, above = y + 0.5 * GAP_Y, top - 0.6 * GAP_Y
    return [(x, y), (x, below), (gutter, below), (gutter, above), (goal, above), (goal, top)]


def _path(points: Sequence[Point], css: str = "edge") -> str:
    """A line through ``points`` with round corners and an arrow head at its end."""
    steps = [f"M{_pair(points[0])}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        steps.append(f"L{_pair(_towards(corner, before))}Q{_pair(corner)} {_pair(_towards(corner, after))}")
    (x, y), (back_x, back_y) = points[-1], _towards(points[-1], points[-2], 5.0)
    dx, dy = (3.0, 0.0) if x == points[-2][0] else (0.0, 3.0)
    steps.append(f"L{x:.1f} {y:.1f}")
    steps.append(f"M{_pair((back_x - dx, back_y - dy))}L{x:.1f} {y:.1f}L{_pair((back_x + dx, back_y + dy))}")
    return f'<path class="{css}" d="{"".join(steps)}"/>'


def _pair(point: Point) -> str:
    return f"{point[0]:.1f} {point[1]:.1f}"


def _towards(start: Point, goal: Point, distance: float = _ROUND) -> Point:
    """The point ``distance`` px from ``start`` on the way to ``goal``, at most half-way."""
    dx, dy = goal[0] - start[0], goal[1] - start[1]
    length = abs(dx) + abs(dy)  # the lines are horizontal or vertical
    share = min(distance / length, 0.5) if length else 0.0
    return start[0] + share * dx, start[1] + share * dy
