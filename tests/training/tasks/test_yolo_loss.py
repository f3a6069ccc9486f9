"""The loss against a reference of plain loops, in float64, on maps of odd sizes."""

import math

import pytest
import torch
from torch import Tensor

from nbcompile.detection.decode import BoxCoding
from nbcompile.training.tasks.yolo_loss import detection_loss, learnt_boxes

CODING = BoxCoding(
    ("a", "b"),
    (((0.06, 0.08), (0.1, 0.1), (0.2, 0.1)), ((0.3, 0.2), (0.4, 0.5), (0.9, 0.8))),
)
GRIDS = ((7, 5), (3, 2))  # rows, columns
NONE = [-1.0, 0.0, 0.0, 0.0, 0.0]


def drawn_maps(images: int, seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        scale * torch.randn(images, 3 * (5 + 2), rows, columns, generator=generator, dtype=torch.float64)
        for rows, columns in GRIDS
    ]


def labels_of(*images: list[list[float]]) -> Tensor:
    most = max(len(one) for one in images)
    return torch.tensor([one + [NONE] * (most - len(one)) for one in images], dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cross_entropy(logit: float, target: float) -> float:
    return -target * math.log(sigmoid(logit)) - (1 - target) * math.log(1 - sigmoid(logit))


def iou(one: list[float], other: list[float]) -> float:
    sides = [max(0.0, min(one[i + 2], other[i + 2]) - max(one[i], other[i])) for i in (0, 1)]
    shared = sides[0] * sides[1]
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (one, other)]
    return shared / (sum(areas) - shared)


def reference(maps: list[Tensor], labels: Tensor, per_image: float, smoothing: float) -> float:
    total = 0.0
    for n in range(len(labels)):
        boxes = [row.tolist() for row in labels[n] if row[0] >= 0]
        learns: dict[tuple[int, int, int, int], list[float]] = {}
        for box in boxes:
            w, h = box[3] - box[1], box[4] - box[2]
            fits = [
                (min(w, aw) * min(h, ah) / (w * h + aw * ah - min(w, aw) * min(h, ah)), -m, -a)
                for m, one in enumerate(CODING.anchors)
                for a, (aw, ah) in enumerate(one)
            ]
            _, m, a = max(fits)
            rows, columns = GRIDS[-m]
            column = min(int((box[1] + box[3]) / 2 * columns), columns - 1)
            row = min(int((box[2] + box[4]) / 2 * rows), rows - 1)
            learns.setdefault((-m, -a, row, column), box)
        for m, (rows, columns) in enumerate(GRIDS):
            for a, (aw, ah) in enumerate(CODING.anchors[m]):
                for row in range(rows):
                    for column in range(columns):
                        tx, ty, tw, th, objectness, *named = maps[m][n, a * 7 : a * 7 + 7, row, column].tolist()
                        box = learns.get((m, a, row, column), [])
                        if not box:
                            x, y = (column + sigmoid(tx)) / columns, (row + sigmoid(ty)) / rows
                            w, h = aw * math.exp(tw) / 2, ah * math.exp(th) / 2
                            best = max([iou([x - w, y - h, x + w, y + h], other[1:]) for other in boxes], default=0)
                            total += cross_entropy(objectness, 0.0) if best <= 0.7 else 0.0
                            continue
                        w, h = box[3] - box[1], box[4] - box[2]
                        x, y = (box[1] + box[3]) / 2 * columns - column, (box[2] + box[4]) / 2 * rows - row
                        total += cross_entropy(objectness, 1.0)
                        total += (2 - w * h) * (cross_entropy(tx, x) + cross_entropy(ty, y))
                        total += (2 - w * h) * (abs(tw - math.log(w / aw)) + abs(th - math.log(h / ah)))
                        for k, logit in enumerate(named):
                            total += cross_entropy(logit, (k == box[0]) * (1 - smoothing) + smoothing / 2)
    return total / len(labels) / per_image


BOXES = {
    "one": [[[1.0, 0.3, 0.2, 0.41, 0.3]]],
    "at the border": [[[0.0, 0.9, 0.95, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0, 1.0]]],
    "its centre on the edge": [[[0.0, 1.0 - 1e-17, 0.5, 1.0 + 1e-9, 0.6]]],
    "two in one cell, two anchors": [[[0.0, 0.41, 0.41, 0.47, 0.5], [1.0, 0.35, 0.4, 0.52, 0.5]]],
    "two for one anchor": [[[0.0, 0.41, 0.41, 0.51, 0.51], [1.0, 0.42, 0.42, 0.52, 0.52]]],
    "a pixel": [[[1.0, 0.5, 0.5, 0.5 + 1 / 640, 0.5 + 1 / 480]]],
    "none beside several": [[], [[0.0, 0.1, 0.1, 0.3, 0.5], [1.0, 0.5, 0.5, 0.9, 0.9], [1.0, 0.05, 0.6, 0.11, 0.68]]],
    "none at all": [[[-1.0, 0.0, 0.0, 0.0, 0.0]]],
}


@pytest.mark.parametrize("what", BOXES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_that_of_plain_loops(what: str, smoothing: float) -> None:
    labels = labels_of(*BOXES[what])
    maps = drawn_maps(len(labels), seed=len(what))
    found = detection_loss(maps, labels, CODING, 2.5, smoothing)
    assert found.item() == pytest.approx(reference(maps, labels, 2.5, smoothing), rel=1e-12)


def test_a_box_that_nearly_fits_is_no_background() -> None:
    """The cell beside that which learns the box proposes the same box: its objectness is not counted."""
    labels = labels_of([[0.0, 0.54, 0.45, 0.64, 0.55]])  # its centre is near the right edge of its cell
    maps = [torch.zeros_like(x) for x in drawn_maps(1)]
    ((_, place, *_),) = zip(*learnt_boxes(maps, labels, CODING), strict=True)
    anchor, cell = int(place) % 3, int(place) // 3
    row, column = divmod(cell, 5)
    maps[0][0, anchor * 7, row, column + 1] = -4  # to the left
    maps[0][0, anchor * 7 + 4, row, column + 1] = 9  # and sure of it
    near = detection_loss(maps, labels, CODING, 1.0)
    assert near.item() == pytest.approx(reference(maps, labels, 1.0, 0.0), rel=1e-12)
    maps[0][0, anchor * 7 + 1, row, column + 1] = -9  # too high: now it is background
    assert detection_loss(maps, labels, CODING, 1.0) > near + 5


def test_the_first_of_two_boxes_is_learnt() -> None:
    labels = labels_of(BOXES["two for one anchor"][0])
    learnt = learnt_boxes(drawn_maps(1), labels, CODING)
    assert learnt.named.tolist() == [0]
    other = learnt_boxes(drawn_maps(1), labels.flip(1), CODING)
    assert other.named.tolist() == [1]
    assert torch.equal(other.place, learnt.place)


def test_a_perfect_answer_has_no_loss_but_that_of_the_centre() -> None:
    labels = labels_of([[1.0, 0.41, 0.43, 0.49, 0.57]])
    maps = [torch.zeros_like(x) for x in drawn_maps(1)]
    for x in maps:
        x[:, 4::7] = -60
    learnt = learnt_boxes(maps, labels, CODING)
    row, column = divmod(int(learnt.place) // 3, 5)
    at = maps[0][0, :, row, column].view(3, 7)[int(learnt.place) % 3]
    at[:2], at[2:4] = learnt.offset[0].logit(), learnt.size[0]
    at[4:] = torch.tensor([60.0, -60.0, 60.0])
    entropy = sum(cross_entropy(float(x.logit()), float(x)) for x in learnt.offset[0])
    assert detection_loss(maps, labels, CODING, 1.0).item() == pytest.approx(float(learnt.weight) * entropy, rel=1e-9)


def test_gradients_are_right() -> None:
    labels = labels_of(*BOXES["none beside several"])
    maps = [x.requires_grad_() for x in drawn_maps(2, scale=0.5)]
    assert torch.autograd.gradcheck(lambda *m: detection_loss(m, labels, CODING, 3.0, 0.1), maps, fast_mode=True)


def test_parts_of_a_batch_add_up() -> None:
    labels = labels_of(*BOXES["none beside several"])
    maps = drawn_maps(2)
    parts = [detection_loss([x[i : i + 1] for x in maps], labels[i : i + 1], CODING, 3.0) for i in (0, 1)]
    assert detection_loss(maps, labels, CODING, 3.0).item() == pytest.approx(float(sum(parts)) / 2, rel=1e-12)
