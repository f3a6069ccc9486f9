"""From the maps of a detector to boxes.

Channel ``a (5 + K) + j`` of a map is number ``j`` of anchor ``a``: x, y, width, height, objectness, then the classes.
A cell in column ``c`` and row ``r`` of ``C`` columns and ``R`` rows proposes, for an anchor of ``(w, h)``::

    x = (c + sigmoid(tx)) / C    y = (r + sigmoid(ty)) / R    width = w exp(tw)    height = h exp(th)
    score of class k = sigmoid(objectness) sigmoid(class k)

Source: Redmon and Farhadi 2018, arXiv:1804.02767, sec. 2.1 and 2.2. The limits of scores and counts are GluonCV's, as
mcunet's ``eval_det.py`` has them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nbcompile.core.errors import UsageError, missing_extra
from nbcompile.detection.boxes import corner_form
from nbcompile.detection.network import ANCHORS, COORDINATES

SCORE, OVERLAP, CANDIDATES, KEPT = 0.01, 0.45, 400, 100
"""Least score; overlap above which the box of a lower score is dropped; boxes before and after that."""
MAX_GROWTH = 8.0
"""Bound of ``tw`` and ``th``: a box is at most e⁸ times its anchor, and no number is infinite."""


@dataclass(frozen=True)
class BoxCoding:
    """What the maps of a detector mean: it stands in the trained file, in its preprocessing under ``boxes``.

    Attributes:
        classes: names, in the order of their channels.
        anchors: per map, from the finer to the coarser, ``ANCHORS`` pairs of width and height, in shares of the image's
            sides.
    """

    classes: tuple[str, ...]
    anchors: tuple[tuple[tuple[float, float], ...], ...]

    def to_json(self) -> dict[str, Any]:
        """As a trained file has it."""
        return {"classes": list(self.classes), "anchors": [[list(pair) for pair in one] for one in self.anchors]}

    @classmethod
    def of_anchors(cls, classes: Sequence[str], anchors: Tensor) -> "BoxCoding":
        """Of the anchors of all maps, ``(maps * ANCHORS, 2)``, from small to large."""
        pairs = [(float(w), float(h)) for w, h in anchors]
        return cls(tuple(classes), tuple(tuple(pairs[i : i + ANCHORS]) for i in range(0, len(pairs), ANCHORS)))

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "BoxCoding":
        """The inverse of ``to_json``.

        Raises:
            UsageError: if it is no such thing.
        """
        try:
            classes = tuple(str(name) for name in found["classes"])
            anchors = tuple(tuple((float(w), float(h)) for w, h in one) for one in found["anchors"])
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"the detector's boxes are malformed in its file ({error})") from None
        if not classes or any(len(one) != ANCHORS or min(min(pair) for pair in one) <= 0 for one in anchors):
            raise UsageError(f"the detector's boxes are malformed in its file: {ANCHORS} anchors above 0 a map")
        return cls(classes, anchors)


class Detections(NamedTuple):
    """What is found on one image, from the highest score to the lowest.

    Attributes:
        boxes: ``(D, 4)``, left, top, right, bottom, in shares of the image's sides; within the image.
        scores: ``(D,)``.
        classes: ``(D,)``, int64.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def as_cells(map_: Tensor) -> Tensor:
    """``(N, A (5 + K), R, C)`` to ``(N, R, C, A, 5 + K)``."""
    batch, channels, rows, columns = map_.shape
    return map_.reshape(batch, ANCHORS, channels // ANCHORS, rows, columns).permute(0, 3, 4, 1, 2)


def boxes_of(cells: Tensor, anchors: Tensor) -> Tensor:
    """The corners ``(N, R, C, A, 4)`` that ``cells`` ``(N, R, C, A, 5 + K)`` propose; anchors ``(A, 2)``."""
    rows, columns = cells.shape[1:3]
    y, x = torch.meshgrid(
        torch.arange(rows, device=cells.device), torch.arange(columns, device=cells.device), indexing="ij"
    )
    corner = torch.stack([x, y], -1)[:, :, None].to(cells.dtype)
    centre = (corner + cells[..., :2].sigmoid()) / torch.tensor([columns, rows]).to(cells)
    size = anchors.to(cells) * cells[..., 2:4].clamp(-MAX_GROWTH, MAX_GROWTH).exp()
    return corner_form(torch.cat([centre, size], -1))


@torch.no_grad()
def decode(
    maps: Sequence[Tensor],
    coding: BoxCoding,
    score: float = SCORE,
    overlap: float = OVERLAP,
    candidates: int = CANDIDATES,
    kept: int = KEPT,
) -> list[Detections]:
    """The boxes of each image of a batch, after non-maximum suppression class by class.

    Args:
        maps: of a detector, from the finer to the coarser: ``(N, A (5 + K), R, C)`` each.
        coding: what they mean.
        score: boxes below are dropped; a cell may propose a box for several classes.
        overlap: of two boxes of a class that overlap by more (intersection over union), the one of the lower score is
            dropped.
        candidates: boxes of the highest scores that this is done for.
        kept: boxes of the highest scores that are given.

    Raises:
        UsageError: if torchvision is not installed.
    """
    try:
        from torchvision.ops import batched_nms
    except ImportError as error:
        raise missing_extra("train", "decoding boxes", "torchvision") from error
    boxes, scores = [], []
    for map_, anchors in zip(maps, coding.anchors, strict=True):
        cells = as_cells(map_.float())
        boxes.append(boxes_of(cells, torch.tensor(anchors)).flatten(1, 3))
        scores.append((cells[..., 4:5].sigmoid() * cells[..., COORDINATES:].sigmoid()).flatten(1, 3))
    found = []
    for corners, marks in zip(torch.cat(boxes, 1).clamp(0, 1), torch.cat(scores, 1), strict=True):
        place, named = torch.nonzero(marks >= score, as_tuple=True)
        best = marks[place, named].sort(descending=True, stable=True).indices[:candidates]
        place, named = place[best], named[best]
        held = batched_nms(corners[place], marks[place, named], named, overlap)[:kept]
        found.append(Detections(corners[place[held]], marks[place[held], named[held]], named[held]))
    return found
