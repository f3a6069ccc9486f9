"""What masks and repeats choose that do not depend on the input."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from nbcompile.core.errors import ExportError
from nbcompile.deploy.deploy_form import deploy
from nbcompile.exporters.to_tflite.lower.constant_places import with_constant_places
from nbcompile.exporters.to_tflite.lower.lowering import float_model
from tests.exporters.to_tflite.lowered import Net, lowered

X = torch.randn(1, 6, 5, 7)
MASK, REPEATS = torch.arange(6) % 3 > 0, torch.tensor([2, 0, 1, 3, 1, 1])


def graph_of(function: Callable[..., Any]) -> fx.GraphModule:
    graph = deploy(Net(function).eval(), (X,))
    assert isinstance(graph, fx.GraphModule)
    return graph


def chosen(layers: Any, x: Tensor) -> list[Tensor]:
    return [
        x[:, torch.arange(6) < 4],
        layers[0](x[:, MASK.clone()]),
        x[:, :, torch.ones(5, 7).tril() > 0],
        x.repeat_interleave(REPEATS.clone(), 1),
        torch.repeat_interleave(x[..., :6], torch.tensor(REPEATS.tolist()), dim=3).relu(),
        x.repeat_interleave(2, 2),
    ]


def test_they_are_places_in_the_file() -> None:
    _, error = lowered(Net(chosen, nn.Conv2d(4, 2, 3)), X)
    assert error < 1e-6


def test_the_graph_that_was_given_is_left_alone() -> None:
    graph = graph_of(lambda _, x: x[:, torch.arange(6) < 4])
    assert with_constant_places(graph).graph is not graph.graph
    assert "places_of" not in graph.code
    plain = graph_of(lambda _, x: x[:, 1:] + 1)
    assert with_constant_places(plain) is plain
    assert with_constant_places(layer := nn.ReLU()) is layer


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: x[:, x.mean((0, 2, 3)) > 0],
        lambda _, x: x[:, torch.rand(6) > 0.5],
        lambda _, x: x.repeat_interleave((x.mean((0, 2, 3)) > 0).long(), 1),
    ],
)
def test_what_depends_on_the_input_or_on_chance_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(ExportError, match="the size of its result depends on the values of"):
        float_model(graph_of(function), (X,))
