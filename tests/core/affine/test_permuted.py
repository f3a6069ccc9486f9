"""Norms and factors behind the permutation of a linear layer's output."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbcompile.core.affine.permuted import across_permutations
from nbcompile.passes import MergeAffine
from nbcompile.testing import check_pass
from tests.core.affine.lifts import Written, lifter

SAME = torch.randn(2, 5, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
"""Sizes that hide a wrong axis from shapes, not from numbers."""
MAPS = torch.randn(2, 7, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randn(3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
GAMMA = torch.tensor([0.5, -2.0, 3.0, 1.5, 0.25, 7.0])

Forward = Callable[[Any, Tensor], Any]


def net(forward: Forward, norm: nn.Module, **more: Any) -> Written:
    return Written(forward, fc=nn.Linear(5, norm.num_features, bias=False), norm=norm, gamma=GAMMA, **more)  # type: ignore[arg-type]


MERGED: list[tuple[Forward, nn.Module, Tensor, str]] = [
    (lambda m, x: m.norm(m.fc(x).permute(0, 3, 1, 2)), nn.BatchNorm2d(6), MAPS, "fc <- fc + norm"),
    (lambda m, x: m.norm(m.fc(x).permute((0, -1, 2, 1))), nn.BatchNorm2d(5), SAME, "fc <- fc + norm"),
    (lambda m, x: m.norm(torch.permute(m.fc(x), dims=[0, 3, 1, 2])), nn.BatchNorm2d(6), MAPS, "fc <- fc + norm"),
    (lambda m, x: m.norm(m.fc(x).transpose(1, 3)), nn.BatchNorm2d(6), MAPS, "fc <- fc + norm"),
    (lambda m, x: m.norm(m.fc(x).transpose(-1, 1)), nn.BatchNorm2d(6), MAPS, "fc <- fc + norm"),
    (lambda m, x: m.norm(m.fc(x).transpose(1, 2)), nn.BatchNorm1d(6), TOKENS, "fc <- fc + norm"),
    (lambda m, x: m.norm(torch.swapaxes(m.fc(x), 2, 1)), nn.BatchNorm1d(6), TOKENS, "fc <- fc + norm"),
    (
        lambda m, x: m.gamma.view(1, -1, 1, 1) * m.norm(m.fc(x).permute(0, 3, 1, 2).contiguous()) * 3,
        nn.BatchNorm2d(6),
        MAPS,
        "fc <- fc + norm + mul + mul_1",
    ),
    (
        lambda m, x: F.relu(m.norm(m.fc(x).transpose(1, 2))).view(3, -1),
        nn.BatchNorm1d(6),
        TOKENS,
        "fc <- fc + norm",
    ),
]


@pytest.mark.parametrize(("forward", "norm", "x", "how"), MERGED)
def test_merges(forward: Forward, norm: nn.Module, x: Tensor, how: str) -> None:
    result = check_pass(MergeAffine(), net(forward, norm), x)
    assert result.how == (how,)
    assert [n.target for n in result.gm.graph.find_nodes(op="call_module")] == ["fc"]


LEFT: list[tuple[Forward, nn.Module, Tensor]] = [
    (lambda m, x: m.norm(m.fc(x).permute(0, 1, 3, 2)), nn.BatchNorm2d(5), SAME),  # dimension 1 stays where it was
    (lambda m, x: m.norm(m.fc(x).transpose(1, 2)), nn.BatchNorm2d(5), SAME),
    (lambda m, x: m.norm(m.fc(x).permute(3, 0, 1, 2)), nn.BatchNorm2d(2), SAME[:, :2, :2]),
    (lambda m, x: m.norm(m.fc(x).permute(0, 3, 1, 2)) + m.fc.weight[0, 0], nn.BatchNorm2d(6), MAPS),
    (lambda m, x: [y := m.fc(x).permute(0, 3, 1, 2), m.norm(y)], nn.BatchNorm2d(6), MAPS),
    (lambda m, x: [y := m.fc(x), m.norm(y.permute(0, 3, 1, 2))], nn.BatchNorm2d(6), MAPS),
    (lambda m, x: m.norm(m.fc(x).permute(0, 3, 1, 2).relu()), nn.BatchNorm2d(6), MAPS),
]


@pytest.mark.parametrize(("forward", "norm", "x"), LEFT)
def test_leaves_alone(forward: Forward, norm: nn.Module, x: Tensor) -> None:
    model = Written(forward, fc=nn.Linear(x.shape[-1], norm.num_features, bias=False), norm=norm)  # type: ignore[arg-type]
    assert not check_pass(MergeAffine(), model, x).modified


def test_a_norm_of_the_last_dimension_behind_a_permutation_is_another() -> None:
    """A permuted convolution's LayerNorm, and a factor of the last dimension, belong to other channels."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.layer_norm(m.conv(x).permute(0, 2, 3, 1))
        return m.fc(y).permute(0, 3, 1, 2) * m.scale

    model = Written(
        forward, conv=nn.Conv2d(5, 5, 1), layer_norm=nn.LayerNorm(5), fc=nn.Linear(5, 5), scale=torch.arange(5.0)
    )
    assert not check_pass(MergeAffine(), model, SAME).modified


def test_what_is_stored_may_not_grow() -> None:
    """A shift by one number would become a bias of six."""
    model = Written(lambda m, x: m.fc(x).permute(0, 3, 1, 2) + 1, fc=nn.Linear(5, 6, bias=False))
    result = check_pass(MergeAffine(), model, MAPS)
    assert "one layer would store 36 numbers, they 30" in {skip.reason for skip in result.skipped}
    assert not result.modified


def test_an_unknown_rank_is_not_guessed() -> None:
    model = Written(lambda m, x: m.fc(x).transpose(-1, 1) * m.g.view(-1, 1), fc=nn.Linear(5, 6), g=GAMMA)
    assert not list(across_permutations(lifter(model)))
    assert len(list(across_permutations(lifter(model, TOKENS)))) == 1


def test_it_goes_on_merging() -> None:
    """UniRepLKNet's: linear, a norm behind the permutation, a layer scale, and a linear layer before it all."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.second(m.first(x)).permute(0, 3, 1, 2))
        return y.mul_(m.gamma.view(1, -1, 1, 1)) + x.permute(0, 3, 1, 2)

    layers = {"first": nn.Linear(5, 9), "second": nn.Linear(9, 5, bias=False), "norm": nn.BatchNorm2d(5)}
    result = check_pass(MergeAffine(), Written(forward, gamma=GAMMA[:5], **layers), MAPS)
    assert result.how == ("second <- second + norm + mul_", "first <- first + second")
