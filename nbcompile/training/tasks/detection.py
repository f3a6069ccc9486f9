"""Boxes on images: maps of a detector; labels ``(N, M, 5)``, class (-1: no box) and corners in shares of the sides."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nbcompile.core.errors import missing_extra
from nbcompile.detection.boxes import overlaps
from nbcompile.detection.decode import BoxCoding, decode
from nbcompile.detection.network import ANCHORS, COORDINATES
from nbcompile.training.tasks.base import Far, Score, Sums, Task
from nbcompile.training.tasks.yolo_loss import detection_loss, flat_boxes, flat_cells, learnt_boxes

MATCH = 0.5
"""Overlap from which a box counts as found: the 50 of AP50."""


@dataclass(frozen=True)
class Detection(Task):
    """The loss of YOLOv3, and AP50.

    Attributes:
        coding: what the maps mean.
        boxes_per_image: of the training set, on average, > 0.
    """

    coding: BoxCoding
    boxes_per_image: float

    name = "detection"
    metric = "AP50"
    fewest_classes = 1

    def loss(self, outputs: Any, labels: Tensor, smoothing: float) -> Tensor:
        """See `yolo_loss.detection_loss`."""
        return detection_loss(outputs, labels, self.coding, self.boxes_per_image, smoothing)

    @torch.no_grad()
    def hits(self, outputs: Any, labels: Tensor) -> Tensor:
        """Of each image the share of its boxes that the cells which learn them find: place, class and objectness."""
        maps = [x.float() for x in outputs]
        learnt = learnt_boxes(maps, labels.float(), self.coding)
        at = learnt.image, learnt.place
        cells, boxes = flat_cells(maps)[at], flat_boxes(maps, self.coding)[at]
        near = overlaps(boxes[:, None], learnt.box[:, None]).flatten() >= MATCH
        right = near & (cells[:, COORDINATES:].argmax(1) == learnt.named) & (cells[:, 4] > 0)
        found, there = (torch.zeros(len(labels), device=labels.device) for _ in range(2))
        found.index_add_(0, learnt.image, right.float())
        there.index_add_(0, learnt.image, torch.ones_like(right, dtype=torch.float32))
        return torch.where(there > 0, found / there.clamp_min(1), 1.0).sum()

    def compared(self, far: Far, outputs: Any, answers: Any, temperature: float) -> Tensor:
        """Objectness everywhere; classes and boxes where the teacher's objectness is highest.

        A logit of a sigmoid is a pair of logits of a softmax, itself and 0. The places are as many as the batch has
        boxes on average; boxes are compared by squared distance. All of this is ours.
        """
        own, taught = flat_cells(outputs).float(), flat_cells(answers).float()
        sure = self._surest(taught)
        at_own, at_taught = _rows(own, sure), _rows(taught, sure)
        objects = far(_pairs(own[..., 4], temperature), _pairs(taught[..., 4], temperature)) * own.shape[1]
        kinds = own.shape[-1] - COORDINATES
        named = [_pairs(x[:, COORDINATES:], temperature) for x in (at_own, at_taught)]
        boxes = (at_own[:, :4] - at_taught[:, :4]).square().sum(1).mean() / temperature**2
        return objects / self.boxes_per_image + far(*named) * kinds + boxes

    def distance(self, outputs: Any, answers: Any) -> Tensor:
        """Of all numbers, where the objectness of ``answers`` is highest."""
        own, taught = flat_cells(outputs).float(), flat_cells(answers).float()
        sure = self._surest(taught)
        return (_rows(own, sure) - _rows(taught, sure)).square().sum(1).mean()

    def score(self) -> Score:
        """AP50, by torchmetrics."""
        return AveragePrecision(self.coding)

    def misfit(self, outputs: Any, classes: int) -> str | None:
        """No maps, or of other classes."""
        if not isinstance(outputs, Sequence) or len(outputs) != len(self.coding.anchors):
            kind = type(outputs).__name__
            return f"gives a {kind} in training, not the {len(self.coding.anchors)} maps of a detector"
        wanted = ANCHORS * (COORDINATES + classes)
        if all(x.shape[1] == wanted for x in outputs):
            return None
        return f"gives maps of {outputs[0].shape[1]} channels, not {ANCHORS} × ({COORDINATES} + {classes}) = {wanted}"

    def _surest(self, taught: Tensor) -> Tensor:
        """Numbers of the places with the highest objectness, in a batch's ``(N P,)``."""
        count = min(math.ceil(self.boxes_per_image * len(taught)), taught.shape[0] * taught.shape[1])
        return taught[..., 4].detach().flatten().topk(count).indices


class AveragePrecision(Score):
    """AP at an overlap of 0.5, the mean over classes that have boxes, as COCO computes it.

    Args:
        coding: what maps mean.

    Raises:
        UsageError: if torchmetrics or pycocotools is not installed.
    """

    def __init__(self, coding: BoxCoding) -> None:
        try:
            import pycocotools  # noqa: F401  torchmetrics' backend
            from torchmetrics.detection import MeanAveragePrecision
        except ImportError as error:
            raise missing_extra("detect", "measuring AP50", error.name or "torchmetrics") from error
        self._coding = coding
        self._metric: Any = MeanAveragePrecision(iou_thresholds=[MATCH])

    def add(self, outputs: Any, labels: Tensor) -> None:
        """See `Score.add`."""
        found = decode(outputs, self._coding)
        self._metric.to(labels.device)
        there = [one[one[:, 0] >= 0] for one in labels]
        self._metric.update(
            [{"boxes": x.boxes, "scores": x.scores, "labels": x.classes} for x in found],
            [{"boxes": x[:, 1:].float(), "labels": x[:, 0].long()} for x in there],
        )

    def result(self, summed: Sums) -> float:
        """See `Score.result`; torchmetrics gathers from all processes by itself."""
        return max(0.0, float(self._metric.compute()["map_50"]))


def _rows(cells: Tensor, places: Tensor) -> Tensor:
    return cells.flatten(0, 1)[places]


def _pairs(logits: Tensor, temperature: float) -> Tensor:
    """Any shape to ``(M, 2)``."""
    softened = (logits / temperature).reshape(-1)
    return torch.stack([softened, torch.zeros_like(softened)], 1)
