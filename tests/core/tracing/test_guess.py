"""Inputs for networks of which nobody gave an example."""

from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from nbcompile.core.example import Origin, TensorSpec, remember
from nbcompile.core.tracing.call import Call
from nbcompile.core.tracing.inputs import guesses, known_inputs


def test_what_a_network_remembers_comes_first() -> None:
    model: Any = nn.ReLU()
    model.default_cfg = {"input_size": (3, 8, 8)}
    remember(model, Origin((TensorSpec((2, 7)), TensorSpec((2,), torch.int64))))
    assert known_inputs(model) == (TensorSpec((2, 7)), TensorSpec((2,), torch.int64))


@pytest.mark.parametrize("config", [{"input_size": (3, 9, 7)}, SimpleNamespace(input_size=(3, 9, 7))])
@pytest.mark.parametrize("name", ["default_cfg", "pretrained_cfg"])
def test_what_timm_says(name: str, config: Any) -> None:
    model: Any = nn.ReLU()
    setattr(model, name, config)
    assert known_inputs(model) == (TensorSpec((1, 3, 9, 7)),)


def test_known_libraries() -> None:
    assert known_inputs(timm.create_model("test_resnet")) == (TensorSpec((1, 3, 160, 160)),)
    assert known_inputs(torchvision.models.squeezenet1_1()) == (TensorSpec((1, 3, 224, 224)),)
    assert known_inputs(torchvision.models.video.r3d_18()) == (TensorSpec((1, 3, 16, 112, 112)),)
    detector = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    assert known_inputs(detector) is None
    assert known_inputs(nn.Conv2d(1, 1, 1)) is None
    model: Any = nn.ReLU()
    model.default_cfg = {}
    assert known_inputs(model) is None


def first(model: nn.Module, count: int = 1) -> list[list[Tensor]]:
    return list(guesses(model, Call.positional(count)))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(5, 4, 3), (2, 5, 16, 16)),
        (nn.Conv2d(6, 4, 3, groups=2), (2, 6, 16, 16)),
        (nn.ConvTranspose2d(5, 4, 3), (2, 5, 16, 16)),
        (nn.Conv1d(5, 4, 3), (2, 5, 16)),
        (nn.Conv3d(5, 4, 3), (2, 5, 16, 16, 16)),
        (nn.Linear(7, 3), (2, 7)),
        (nn.BatchNorm2d(7), (2, 7)),
    ],
)
def test_what_the_first_layer_takes(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Identity(), layer, nn.Conv2d(99, 1, 1))
    (x,) = first(model)[0]
    assert tuple(x.shape) == shape
    assert x.dtype is torch.float32


def test_indices_for_a_table_of_them() -> None:
    (x,) = first(nn.Sequential(nn.Embedding(9, 3), nn.Linear(3, 3)))[0]
    assert (tuple(x.shape), x.dtype) == ((2, 8), torch.int64)


@pytest.mark.parametrize(
    ("model", "fits"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 2)), (2, 3, 28, 28)),
        (nn.BatchNorm2d(7), (2, 7, 16, 16)),
        (nn.BatchNorm3d(7), (2, 7, 16, 16, 16)),
        (nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(9)), (2, 9, 7)),
        (nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)), (2, 3, 32, 32)),
    ],
)
def test_one_of_the_guesses_fits(model: nn.Module, fits: tuple[int, ...]) -> None:
    for (x,) in first(model.eval()):
        try:
            model(x)
        except (RuntimeError, ValueError):
            continue
        assert tuple(x.shape) == fits
        return
    pytest.fail("none does")


def test_dtype_count_and_values() -> None:
    model = nn.Conv2d(5, 4, 3).double()
    tried = first(model, 3)
    assert all(len(tensors) == 3 for tensors in tried)
    assert {x.dtype for tensors in tried for x in tensors} == {torch.float64}
    assert torch.equal(first(model)[0][0], first(model)[0][0])
    shapes = [tuple(x.shape) for x, *_ in tried]
    assert len(shapes) == len(set(shapes))
    assert shapes[-4:] == [(2, 3, 32, 32), (2, 8), (2, 3, 32), (2, 3, 16, 16, 16)]


def test_there_is_an_end_and_no_guess_is_huge() -> None:
    deep = nn.Sequential(*(nn.Linear(7 + i, 3) for i in range(90)))
    assert len(first(deep)) == 40
    wide = nn.Sequential(nn.Conv3d(9000, 1, 1))
    assert all(x.numel() <= 2**24 for (x,) in first(wide))


def test_the_generator_is_left_alone() -> None:
    model, before = nn.Linear(3, 3), torch.get_rng_state()
    first(model)
    assert torch.equal(torch.get_rng_state(), before)
