"""Boxes as numbers: corners, in shares of the image's sides, x before y."""

import torch
from torch import Tensor

ROUNDS = 100
"""Rounds of k-means, at most."""


def centre_form(boxes: Tensor) -> Tensor:
    """``(…, 4)``: left, top, right, bottom to centre x, centre y, width, height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def corner_form(boxes: Tensor) -> Tensor:
    """``(…, 4)``: centre x, centre y, width, height to left, top, right, bottom."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union, ``(…, B, O)``, of corners ``(…, B, 4)`` and ``(…, O, 4)``; 0 where both are empty."""
    one, other = boxes[..., :, None, :], others[..., None, :, :]
    sides = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp_min(0)
    shared = sides.prod(-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (one, other)]
    return shared / (areas[0] + areas[1] - shared).clamp_min(torch.finfo(boxes.dtype).tiny)


def size_overlaps(sizes: Tensor, anchors: Tensor) -> Tensor:
    """Intersection over union, ``(…, A)``, of ``sizes`` ``(…, 2)`` and ``anchors`` ``(A, 2)`` on the same centre."""
    shared = torch.minimum(sizes[..., None, :], anchors).prod(-1)
    return shared / (sizes.prod(-1)[..., None] + anchors.prod(-1) - shared)


def anchors_of(sizes: Tensor, count: int) -> Tensor:
    """The ``count`` sizes that fit ``sizes`` best, from small to large, by k-means on ``1 - IoU``.

    It starts at evenly spaced areas, so that the same boxes always give the same anchors. Where there are fewer sizes
    than anchors, some are the same, a little larger.

    Args:
        sizes: ``(B, 2)``, above 0.
        count: > 0.

    Returns:
        ``(count, 2)``, float64.

    Source: Redmon and Farhadi 2017, arXiv:1612.08242, sec. 2; the start, and means, are ours.
    """
    sizes = sizes.double()
    by_area = sizes[sizes.prod(1).argsort(stable=True)]
    places = (torch.arange(count, dtype=torch.float64) + 0.5) * len(sizes) / count
    anchors = by_area[places.long().clamp_max(len(sizes) - 1)].clone()
    for _ in range(ROUNDS):
        nearest = size_overlaps(sizes, anchors).argmax(1)
        moved = anchors.clone()
        for i in range(count):
            if bool((nearest == i).any()):
                moved[i] = sizes[nearest == i].mean(0)
        if torch.equal(moved, anchors):
            break
        anchors = moved
    return anchors[anchors.prod(1).argsort(stable=True)]
