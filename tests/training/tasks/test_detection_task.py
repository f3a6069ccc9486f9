"""AP50, what counts as found, and what a teacher's answers are compared by."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nbcompile.core.errors import UsageError
from nbcompile.training.methods.distillation import kl_divergence
from nbcompile.training.tasks.detection import Detection
from nbcompile.training.tasks.yolo_loss import flat_cells, learnt_boxes
from tests.training.tasks.test_yolo_loss import CODING, drawn_maps, labels_of

TASK = Detection(CODING, 2.0)
TWO = [[[0.0, 0.1, 0.1, 0.4, 0.5], [1.0, 0.5, 0.5, 0.9, 0.9]], [[1.0, 0.05, 0.6, 0.11, 0.68]]]


def saying(labels: Tensor) -> list[Tensor]:
    """Maps that say exactly what ``labels`` say."""
    maps = [torch.zeros_like(x).float() for x in drawn_maps(len(labels))]
    for x in maps:
        x[:, 4::7] = -9
    starts = (0, 3 * maps[0].shape[2] * maps[0].shape[3])
    for image, place, offset, size, _, named, _ in zip(*learnt_boxes(maps, labels.float(), CODING), strict=True):
        which = int(place >= starts[1])
        cell, anchor = divmod(int(place) - starts[which], 3)
        row, column = divmod(cell, maps[which].shape[3])
        at = maps[which][int(image), :, row, column].view(3, 7)[anchor]
        at[:2], at[2:4], at[4] = offset.logit(), size, 9.0
        at[5:] = 9 * (2 * F.one_hot(named, 2) - 1)
    return maps


def ap(maps: list[Tensor], labels: Tensor) -> float:
    score = TASK.score()
    for i in range(len(labels)):  # batches of one
        score.add([x[i : i + 1] for x in maps], labels[i : i + 1].float())
    return score.result(lambda *numbers: list(numbers))


def test_what_is_right_has_ap_and_found_1() -> None:
    labels = labels_of(*TWO)
    assert ap(saying(labels), labels) == pytest.approx(1)
    assert float(TASK.hits(saying(labels), labels)) == 2


def test_a_class_that_is_missed_costs_half() -> None:
    labels = labels_of([TWO[0][0]], [TWO[0][1]])
    maps = saying(labels)
    for x in maps:
        x[1, 4::7] = -9  # the second image's box, all of class b
    assert ap(maps, labels) == pytest.approx(0.5)
    assert float(TASK.hits(maps, labels)) == 1


def test_a_box_of_too_little_overlap_is_none() -> None:
    labels = labels_of([[0.0, 0.3, 0.3, 0.5, 0.5]])
    moved = labels.clone()
    moved[..., 1] += 0.09
    moved[..., 3] += 0.09  # overlap 0.11 / 0.29
    assert ap(saying(moved), labels) == 0
    assert ap(saying(moved), moved) == pytest.approx(1)


def test_an_image_without_boxes_is_right_in_training_and_costs_what_is_found_on_it() -> None:
    labels = labels_of([TWO[0][0]], [])
    maps = saying(labels)
    assert float(TASK.hits(maps, labels)) == 2
    wrong = [torch.cat([x[:1], x[:1]]) for x in maps]
    for x in wrong:
        x[1, 4::7] *= 1.5  # what is found on the empty image has the higher score
    assert ap(maps, labels) == pytest.approx(1)
    assert ap(wrong, labels) == pytest.approx(0.5)


def test_nothing_found_is_0() -> None:
    labels = labels_of(*TWO)
    maps = [torch.full_like(x, -30.0).float() for x in drawn_maps(2)]
    assert ap(maps, labels) == 0


def test_a_teacher_that_says_the_same_is_at_no_distance() -> None:
    maps, other = drawn_maps(2), drawn_maps(2, seed=1)
    assert float(TASK.compared(kl_divergence, maps, maps, 4.0)) == pytest.approx(0, abs=1e-5)
    assert float(TASK.distance(maps, maps)) == 0
    assert float(TASK.compared(kl_divergence, maps, other, 4.0)) > 0.1
    assert float(TASK.distance(maps, other)) > 0.1


def test_objectness_is_compared_everywhere_and_the_rest_where_the_teacher_is_sure() -> None:
    taught = drawn_maps(2)
    sure = flat_cells(taught)[..., 4].flatten().topk(4).indices
    maps = [x.clone().requires_grad_() for x in drawn_maps(2, seed=1)]
    TASK.compared(kl_divergence, maps, taught, 1.0).backward()
    gradients = flat_cells([x.grad for x in maps]).flatten(0, 1)
    assert bool((gradients[:, 4] != 0).all())
    rest = gradients[:, [0, 1, 2, 3, 5, 6]]
    assert bool((rest[sure] != 0).all())
    rest[sure] = 0
    assert float(rest.abs().max()) == 0


def test_the_objectness_part_is_the_divergence_of_sigmoids() -> None:
    own, taught = drawn_maps(1), drawn_maps(1, seed=1)
    same = [x.clone() for x in taught]
    for x, y in zip(same, own, strict=True):
        x[:, 4::7] = y[:, 4::7]
    p, q = (flat_cells(x)[..., 4].sigmoid() for x in (taught, own))
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum() / 2
    assert float(TASK.compared(kl_divergence, same, taught, 1.0)) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("package", ["torchmetrics.detection", "pycocotools"])
def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UsageError, match=rf"^measuring AP50 needs {package}, which is .*pip install 'nbcompile\[detect\]'$"
    ):
        TASK.score()


def test_what_does_not_fit_is_said() -> None:
    assert TASK.misfit(drawn_maps(2), 2) is None
    assert TASK.misfit(drawn_maps(2), 3) == "gives maps of 21 channels, not 3 × (5 + 3) = 24"
    assert TASK.misfit(torch.zeros(2, 5), 2) == "gives a Tensor in training, not the 2 maps of a detector"
