"""Sizes in which no second run differed are guarded where the network takes others."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.errors import PreconditionError
from nbcompile.core.tracing.capture import capture
from nbcompile.core.tracing.inputs import open_sizes, other_input, variations

TOKENS = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 4, 7, 7, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, layer: nn.Module, after: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.after = layer, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.layer(x), x)


def at_most_seven(y: Tensor, _: Tensor) -> Tensor:
    assert y.shape[2] <= 7
    return y / int(y.shape[2])


@pytest.mark.parametrize(
    ("net", "x", "right", "refused"),
    [
        (Net(nn.Linear(4, 4), lambda y, x: y * int(x.shape[1])), TOKENS, [(1, 3, 4)], [(2, 5, 4), (2, 2, 4)]),
        (Net(nn.Linear(4, 4), lambda y, x: y * x.shape[1]), TOKENS, [(1, 3, 4), (2, 5, 4)], []),
        (Net(nn.Conv2d(4, 4, 1), lambda y, x: y[:, :, :7] / y[:, :, :7].shape[2]), IMAGE, [(1, 4, 5, 9)], []),
        (Net(nn.Conv2d(4, 4, 1), at_most_seven), IMAGE, [(3, 4, 7, 7)], [(2, 4, 5, 7)]),
        (Net(nn.ReLU(), lambda y, x: y.mean(1) * x.shape[1]), IMAGE, [(3, 4, 5, 6)], [(2, 6, 7, 7)]),
        (Net(nn.Conv1d(4, 4, 1), lambda y, x: y * int(x.shape[1])), IMAGE[:, :, :, 0], [(1, 4, 9), (2, 4, 7)], []),
    ],
)  # fmt: skip
def test_other_sizes_are_right_or_refused(
    net: Net, x: Tensor, right: list[tuple[int, ...]], refused: list[tuple[int, ...]]
) -> None:
    gm = capture(net.eval(), (x,))
    for shape in right:
        torch.testing.assert_close(gm(torch.ones(shape)), net(torch.ones(shape)))
    for shape in refused:
        net(torch.ones(shape))
        with pytest.raises(PreconditionError, match="but the graph holds for"):
            gm(torch.ones(shape))


def test_what_is_tried() -> None:
    mask = torch.zeros(2, 3)
    shapes = [([tuple(y.shape) for y in others], varied) for others, varied in variations([TOKENS, mask])]
    assert shapes == [
        ([(3, 3, 8), (3, 3)], True),
        ([(3, 6, 4), (3, 6)], True),
        ([(3, 3, 4), (3, 3)], False),
        ([(2, 3, 4), (2, 3)], False),
    ]
    tried = []

    def takes(tensors: list[Tensor]) -> bool:  # type: ignore[misc]
        tried.append(tuple(tensors[0].shape))
        return tensors[0].shape[1] == 1

    assert open_sizes(takes, [TOKENS], [TOKENS]) == [{1}]  # type: ignore[arg-type]
    assert tried == [(2, 6, 4), (2, 1, 4), (2, 3, 8), (2, 3, 2)]


def test_a_batch_of_one_does_not_grow_as_sizes_do() -> None:
    shapes = [tuple(x.shape) for (x,), _ in variations([torch.ones(1, 3, 7, 5)])]
    assert shapes == [(3, 3, 14, 10), (2, 3, 7, 5), (1, 3, 7, 5)]


def test_values_are_those_of_the_example_at_other_places() -> None:
    """So that indices stay indices."""
    x = torch.arange(12).view(3, 4)
    for (other,), _ in variations([x]):
        assert set(other.flatten().tolist()) <= set(range(12))
        assert not torch.equal(other[:3, :4], x)


def test_resized() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert other_input(x, 2, 3).tolist() == [[2, 0, 1], [2, 3, 4], [5, 0, 1]]  # its rows again, moved by one
    assert other_input(x, 9, 4).shape == (2, 3)  # its first dimension is no batch
    assert other_input(torch.ones(2, 70, 5), 2, 1, [1, 2]).shape == (1, 35, 10)
    assert other_input(torch.ones(2, 7, 5), 2, 2, [1, 2], smaller=True).shape == (2, 3, 2)
    assert other_input(torch.ones(2, 0), 2, 3, [1]).shape == (3, 0)
    assert torch.equal(x, torch.arange(6.0).view(2, 3))
