"""Draws the plan of a device's arena as inline SVG: one bar per tensor, from its first op to its last, at its bytes.

The colours are the page's, so that the picture follows light and dark; nothing is said by colour alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from nbcompile.report.drawing import NAME, shortened_name
from nbcompile.report.layout import PAGE_WIDTH
from nbcompile.results.device import Device, TensorRow, busiest
from nbcompile.results.numbers import bytes_in_unit, count, exact

_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 120.0, 30.0, 40.0  # margins for axes and for the names of lines, px
_HEIGHT = 380.0  # of the arena, px
_OP = (4.6, 110.0)  # least and largest width of an op, px: bars wide enough to see, and a short network stays small
_TEXT, _INSET = 8.0, 8.0  # thickness of a bar with room for a name, and what its ends need, px
_FEWEST = 8  # characters of a shortened name that still say something
_HIGHEST = 1.6  # a budget above this many peaks is left out: it would squeeze the picture


@dataclass(frozen=True)
class _Scale:
    """From ops and bytes to pixels.

    Attributes:
        start: the first op of the picture; below 0 where tensors are needed before the first op.
        stop: the op behind the last.
        most: bytes at the top.
    """

    start: int
    stop: int
    most: float

    @property
    def step(self) -> float:
        narrow, wide = _OP
        return min(max((PAGE_WIDTH - _LEFT - _RIGHT) / (self.stop - self.start), narrow), wide)

    @property
    def right(self) -> float:
        return self.x(self.stop)

    def x(self, op: float) -> float:
        return _LEFT + (op - self.start) * self.step

    def y(self, offset: float) -> float:
        return _TOP + _HEIGHT * (1 - offset / self.most)


def draw_memory(device: Device) -> str:
    """The memory plan of ``device`` as one ``<svg>`` element; an empty string where it has none."""
    tensors = device.tensors
    if not tensors:
        return ""
    peak, budget = max(tensor.end for tensor in tensors), _head_budget(device)
    drawn = budget if budget is not None and 0 < budget <= _HIGHEST * peak else None
    start, stop = min(0, *(t.first for t in tensors)), max(t.last for t in tensors) + 1
    scale = _Scale(start, max(stop, 1), max(peak, drawn or 0, 1))
    _, live, _ = busiest(tensors)
    shapes = [_axes(scale)]
    shapes += [_bar(tensor, scale, is_live=any(tensor is one for one in live)) for tensor in tensors]
    shapes += [_level("peak", "peak", peak, scale, above=drawn is None or peak > drawn)]
    if drawn is not None:
        css = "budget" if peak <= drawn else "exceeded"
        shapes += [_level(css, "budget − tail" if device.arena_tail else "budget", drawn, scale, above=peak <= drawn)]
    width, height = scale.right + _RIGHT, _TOP + _HEIGHT + _BOTTOM
    label = f"Memory map of {device.file}: {len(tensors)} tensors, peak {count(peak)} bytes"
    return (
        f'<svg class="memory" role="img" aria-label="{escape(label)}" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}">{"".join(shapes)}</svg>'
    )


def _head_budget(device: Device) -> int | None:
    """What the budget leaves for activations, once the tail has its part."""
    return None if device.arena_budget is None else device.arena_budget - (device.arena_tail or 0)


def _bar(tensor: TensorRow, scale: _Scale, *, is_live: bool) -> str:
    x, y = scale.x(tensor.first), scale.y(tensor.end)
    width = max(scale.x(tensor.last + 1) - x - 1, 1.0)  # a gap between neighbours
    height = max(scale.y(tensor.offset) - y - 1, 1.0)
    whole = f"{tensor.label}: {exact(tensor.bytes)} from byte {count(tensor.offset)}, ops {tensor.ops}"
    if tensor.layer and tensor.name != tensor.layer:
        whole += f" (tensor {tensor.name})"
    return (
        f'<g class="{"bar live" if is_live else "bar"}"><title>{escape(whole)}</title>'
        f'<rect x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
        f"{_name(tensor, x + 0.5 + width / 2, y + 0.5 + height / 2, width, height)}</g>"
    )


def _name(tensor: TensorRow, x: float, y: float, width: float, height: float) -> str:
    """The tensor's name, and its size where that fits, around ``x, y``; nothing in a bar that is too small for it.

    It lies where all of it fits, else it stands in a bar that is higher than wide.
    """
    whole = f"{tensor.label} {bytes_in_unit(tensor.bytes)}"
    upright = height > width and (width - _INSET) / NAME < len(whole)
    along, across = (height, width) if upright else (width, height)
    room = (along - _INSET) / NAME
    if across < _TEXT or room < min(_FEWEST, len(tensor.label)):
        return ""
    text = whole if len(whole) <= room else shortened_name(tensor.label, room)
    turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if upright else ""
    return f'<text class="name" x="{x:.1f}" y="{y:.1f}" dy="0.32em" text-anchor="middle"{turned}>{escape(text)}</text>'


def _axes(scale: _Scale) -> str:
    """Bytes at the left, with a line across the picture for each; numbers of ops below."""
    parts = []
    for offset in _ticks(scale.most, 6):
        y = scale.y(offset)
        parts.append(f'<path class="rule" d="M{_LEFT:g} {y:.1f}H{scale.right:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 8:g}" y="{y:.1f}" dy="0.32em" text-anchor="end">{_kilo(offset)}</text>'
        )
    below = _TOP + _HEIGHT
    for op in _ticks(scale.stop - 1, max(1, int((scale.right - _LEFT) / 46))):
        parts.append(
            f'<text class="tick" x="{scale.x(op + 0.5):.1f}" y="{below + 15:g}" text-anchor="middle">{op}</text>'
        )
    parts.append(f'<text class="tick" x="{scale.x(0):.1f}" y="{below + 33:g}">op, in the order of execution</text>')
    parts.append(f'<text class="tick" x="{_LEFT - 8:g}" y="{_TOP - 14:g}" text-anchor="end">bytes</text>')
    return "".join(parts)


def _level(css: str, name: str, offset: int, scale: _Scale, *, above: bool) -> str:
    """A line across the picture, named in the right margin, above the line or below it."""
    x, y = scale.right + 8, scale.y(offset)
    first, second = (-16.0, -4.0) if above else (13.0, 25.0)
    return (
        f'<g class="level {css}"><path d="M{_LEFT:g} {y:.1f}H{scale.right + _RIGHT:.1f}"/>'
        f'<text x="{x:.1f}" y="{y + first:.1f}">{name}</text>'
        f'<text x="{x:.1f}" y="{y + second:.1f}">{exact(offset)}</text></g>'
    )


def _ticks(most: float, about: int) -> Sequence[int]:
    """Round numbers from 0 to ``most``, at most ``about`` steps apart."""
    step = next(factor * 10**power for power in range(16) for factor in (1, 2, 5) if most <= about * factor * 10**power)
    return range(0, int(most) + 1, step)


def _kilo(offset: int) -> str:
    return "0" if offset == 0 else f"{offset / 1e3:g}\u00a0kB" if offset >= 1000 else exact(offset)
