"""Views of an image with its boxes: of another size and place, and mirrored.

Scale, place and mirror as GluonCV's YOLOv3 has them, in smaller ranges and in one step: a window of the image, which
may reach beyond it; what is beyond is grey. Colours stay: tiny networks under-fit. The ranges are ours.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

SCALES = (0.7, 1.35)
"""Sides of the window over those of the image: smaller ones show less of it, larger ones all of it smaller."""
ASPECT = 1.15
"""Most that one side of the window is longer than the other, both over those of the image."""
VISIBLE = 0.35
"""Share of a box's area that must lie in the window; of others what is left is no object, and not learnt."""
GREY = (124, 116, 104)
"""Beyond the image: the mean of ImageNet."""


class View(NamedTuple):
    """A part of an image that is shown, in shares of its sides; mirrored, or not."""

    left: float
    top: float
    right: float
    bottom: float
    mirrored: bool


WHOLE = View(0.0, 0.0, 1.0, 1.0, False)


def drawn_view() -> View:
    """One by torch's global generator: the image and its window overlap as far as their sizes allow."""
    scale, aspect, x, y, side = torch.rand(5, dtype=torch.float64).tolist()
    low, high = SCALES
    scale = low * (high / low) ** scale
    stretch = ASPECT ** (aspect - 0.5)
    width, height = scale * stretch, scale / stretch
    left, top = (1 - width) * x, (1 - height) * y
    return View(left, top, left + width, top + height, side < 0.5)


def shown(image: Any, window: View, size: int) -> Any:
    """The window of an image of Pillow, ``size`` × ``size`` pixels; averaged where it shrinks."""
    from PIL import Image

    canvas = Image.new("RGB", (size, size), GREY)
    columns = _spans(window.left, window.right, image.width, size)
    rows = _spans(window.top, window.bottom, image.height, size)
    (x0, x1), (y0, y1) = columns[1], rows[1]
    source = (columns[0][0], rows[0][0], columns[0][1], rows[0][1])
    canvas.paste(image.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=source), (x0, y0))
    return canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if window.mirrored else canvas


def boxes_in(labels: Tensor, window: View) -> Tensor:
    """``(M, 5)`` labels in shares of the window; boxes that it hardly shows become none, at the end."""
    low, high = labels.new_tensor(window[:2]), labels.new_tensor(window[2:4])
    corners = (labels[:, 1:].reshape(-1, 2, 2) - low) / (high - low)
    inside = corners.clamp(0, 1)
    areas = [(x[:, 1] - x[:, 0]).prod(1) for x in (inside, corners)]
    kept = (labels[:, 0] >= 0) & (areas[0] >= VISIBLE * areas[1]) & (areas[0] > 0)
    if window.mirrored:
        inside = torch.stack(
            [
                torch.stack([1 - inside[:, 1, 0], inside[:, 0, 1]], 1),
                torch.stack([1 - inside[:, 0, 0], inside[:, 1, 1]], 1),
            ],
            1,
        )
    seen = labels.new_full(labels.shape, 0.0)
    seen[:, 0] = -1
    count = int(kept.sum())
    seen[:count, 0], seen[:count, 1:] = labels[kept, 0], inside[kept].reshape(-1, 4)
    return seen


def _spans(start: float, end: float, pixels: int, size: int) -> tuple[tuple[float, float], tuple[int, int]]:
    """Which of the image's pixels lie in the window, and on which of the canvas's they come."""
    first, last = (min(max(round(size * (edge - start) / (end - start)), 0), size) for edge in (0.0, 1.0))
    last = max(last, first + 1) if first < size else size
    first = min(first, last - 1)
    edges = (min(max(start + (end - start) * at / size, 0.0), 1.0) * pixels for at in (first, last))
    low, high = edges
    return (low, high), (first, last)
