"""The loss of a detector's maps, in the form of darknet and GluonCV.

Each box is learnt by one anchor of one cell: that whose size fits best, over all maps, in the cell that the box's
centre lies in. There objectness is to be 1, and x, y (binary cross entropy), width and height (absolute difference of
logarithms), both times ``2 - width height``, and the classes (binary cross entropy) are learnt; everywhere else
objectness is to be 0, but where a proposed box overlaps some box by more than ``IGNORED``.

Source: Redmon and Farhadi 2018, arXiv:1804.02767, sec. 2, with its darknet; GluonCV's ``YOLOV3Loss`` and
``YOLOV3TargetMerger``. Of two boxes that the same anchor of the same cell would learn, the first of the annotation
is learnt; and the loss is divided by the number of boxes of an average image, so that learning rates of other tasks
fit: ours.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nbcompile.detection.boxes import centre_form, overlaps, size_overlaps
from nbcompile.detection.decode import BoxCoding, as_cells, boxes_of
from nbcompile.detection.network import COORDINATES

IGNORED = 0.7
"""Overlap of a proposed box with some box, above which it is no background."""


class Learnt(NamedTuple):
    """The boxes of a batch that are learnt, one a row.

    Attributes:
        image: of the batch.
        place: number of its anchor among those of all cells of all maps.
        offset: ``(B, 2)``, of the centre within its cell, in shares of the cell.
        size: ``(B, 2)``, logarithm of width and height over those of the anchor.
        weight: ``2 - width height``.
        named: class.
        box: ``(B, 4)``, corners.
    """

    image: Tensor
    place: Tensor
    offset: Tensor
    size: Tensor
    weight: Tensor
    named: Tensor
    box: Tensor


def detection_loss(
    maps: Sequence[Tensor], labels: Tensor, coding: BoxCoding, boxes_per_image: float, smoothing: float = 0.0
) -> Tensor:
    """The loss of a batch: a sum over cells, the mean over images, over ``boxes_per_image``.

    Args:
        maps: ``(N, A (5 + K), R, C)`` each.
        labels: ``(N, M, 5)``: class, or -1 where there is no box; corners in shares of the image's sides.
        coding: what the maps mean.
        boxes_per_image: of an average image, > 0.
        smoothing: of the target of classes, ``(1 - e) one_hot + e / K``.
    """
    maps = [x if x.dtype == torch.float64 else x.float() for x in maps]
    cells = flat_cells(maps)
    learnt = learnt_boxes(maps, labels.to(cells), coding)
    found = cells[learnt.image, learnt.place]
    wanted = torch.zeros_like(cells[..., 4])
    wanted[learnt.image, learnt.place] = 1
    counts = (_best_overlap(maps, labels.to(cells), coding) <= IGNORED) | (wanted > 0)
    objectness = F.binary_cross_entropy_with_logits(cells[..., 4], wanted, reduction="none")
    centre = F.binary_cross_entropy_with_logits(found[:, :2], learnt.offset, reduction="none").sum(1)
    size = (found[:, 2:4] - learnt.size).abs().sum(1)
    kinds = found.shape[1] - COORDINATES
    target = F.one_hot(learnt.named, kinds).to(cells) * (1 - smoothing) + smoothing / kinds
    classes = F.binary_cross_entropy_with_logits(found[:, COORDINATES:], target, reduction="none")
    total = (objectness * counts).sum() + (learnt.weight * (centre + size)).sum() + classes.sum()
    return total / (len(labels) * boxes_per_image)


def flat_cells(maps: Sequence[Tensor]) -> Tensor:
    """``(N, P, 5 + K)``: what the anchors of all cells of all maps say."""
    return torch.cat([as_cells(x).flatten(1, 3) for x in maps], 1)


def flat_boxes(maps: Sequence[Tensor], coding: BoxCoding) -> Tensor:
    """``(N, P, 4)``: the corners of the boxes that they propose."""
    pairs = zip(maps, coding.anchors, strict=True)
    return torch.cat([boxes_of(as_cells(x), x.new_tensor(anchors)).flatten(1, 3) for x, anchors in pairs], 1)


@torch.no_grad()
def learnt_boxes(maps: Sequence[Tensor], labels: Tensor, coding: BoxCoding) -> Learnt:
    """Who learns which box.

    Args:
        maps: give the numbers of rows and columns.
        labels: as of `detection_loss`, of the dtype that the answer is to have.
        coding: gives the anchors.
    """
    anchors = labels.new_tensor([pair for one in coding.anchors for pair in one])
    each = len(coding.anchors[0])
    image, row = torch.nonzero((labels[..., 0] >= 0) & (labels[..., 3:] > labels[..., 1:3]).all(-1), as_tuple=True)
    box = labels[image, row, 1:]
    centred = centre_form(box)
    middle, sides = centred[:, :2], centred[:, 2:]
    best = size_overlaps(sides, anchors).argmax(1)
    grids = labels.new_tensor([[x.shape[3], x.shape[2]] for x in maps])
    starts = torch.cat([grids.new_zeros(1), (grids.prod(1) * each).cumsum(0)])
    grid = grids[best // each]
    cell = torch.minimum((middle * grid).floor(), grid - 1)
    place = (starts[best // each] + (cell[:, 1] * grid[:, 0] + cell[:, 0]) * each + best % each).long()
    first = _first_of_each(image * int(starts[-1]) + place, len(labels) * int(starts[-1]))
    named = labels[image, row, 0].long()
    every = Learnt(
        image, place, middle * grid - cell, (sides / anchors[best]).log(), 2 - sides.prod(1), named, box
    )  # fmt: skip
    return Learnt(*(x[first] for x in every))


def _first_of_each(keys: Tensor, count: int) -> Tensor:
    """Where a key stands for the first time, ``(B,)``, bool."""
    order = torch.arange(len(keys), device=keys.device)
    first = torch.full((count,), len(keys), device=keys.device).scatter_reduce_(0, keys, order, "amin")
    return first[keys] == order


@torch.no_grad()
def _best_overlap(maps: Sequence[Tensor], labels: Tensor, coding: BoxCoding) -> Tensor:
    """``(N, P)``: of each proposed box with the box that it overlaps most."""
    present = (labels[..., 0] >= 0).unsqueeze(1)
    return (overlaps(flat_boxes(maps, coding), labels[..., 1:]) * present).amax(2)
