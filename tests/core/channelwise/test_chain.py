"""Chains are their modules one by one: outputs, gradients of every order, running statistics."""

import copy
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from nbcompile.core.activations import Activation
from nbcompile.core.channelwise import chain
from nbcompile.core.channelwise.chain import run_chain
from nbcompile.core.channelwise.link import Link

ACTIVATIONS = (
    *(Activation("relu"), Activation("relu6"), Activation("leaky_relu", 0.1)),
    *(Activation("hardswish"), Activation("silu"), Activation("gelu", "none"), None),
)
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZES = {1: (7,), 2: (7, 5), 3: (3, 2, 5)}


def links(axes: int = 2, activation: Activation | None = None, factors: str = " w", **options: Any) -> list[Link]:
    """Links of three channels in float64, with a factor for each "w"."""
    found = []
    for kind in factors:
        norm = NORMS[axes](3, dtype=torch.float64, **options)
        for value in (*norm.parameters(), norm.running_mean):
            if value is not None:
                nn.init.normal_(value, 0.3)
        if norm.running_var is not None:
            nn.init.uniform_(norm.running_var, 0.5, 2)
        factor = nn.Parameter(torch.tensor([-0.7, 1.3, 1e-3], dtype=torch.float64)) if kind == "w" else None
        found.append(Link(factor, norm, activation))
    return found


def one_by_one(x: Tensor, chained: list[Link], slope: float) -> Tensor:
    for link in chained:
        if link.factor is not None:
            x = x * link.factor.view(-1, *(1,) * (x.ndim - 2))
        x = link.norm(x)
        x = x if link.activation is None else link.activation.blend(x, slope)
    return x


def held(chained: list[Link]) -> list[Tensor]:
    factors = [link.factor for link in chained if link.factor is not None]
    return [*factors, *(p for link in chained for p in link.norm.parameters())]


def check(chained: list[Link], x: Tensor, slope: float) -> None:
    plain = copy.deepcopy(chained)
    x, gradient = x.requires_grad_(), torch.randn_like(x)
    found, wanted = run_chain(x, chained, slope), one_by_one(x, plain, slope)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    of = torch.autograd.grad(found, (x, *held(chained)), gradient)
    for ours, torchs in zip(of, torch.autograd.grad(wanted, (x, *held(plain)), gradient), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-8, atol=1e-8 * float(gradient.norm()))
    for link, other in zip(chained, plain, strict=True):
        for (name, ours), torchs in zip(link.norm.named_buffers(), other.norm.buffers(), strict=True):
            torch.testing.assert_close(ours, torchs, rtol=1e-11, atol=1e-11, msg=name)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.name if a else "none")
def test_is_its_modules_at_every_slope(activation: Activation | None) -> None:
    for slope, factors in product((0.0, 0.3, 1.0), (" ", " w", "w w")):
        check(links(2, activation, factors), 3 * torch.randn(4, 3, 7, 5, dtype=torch.float64), slope)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"momentum": None}, {"momentum": 0.0}, {"track_running_stats": False}], ids=str
)
def test_is_its_modules_whatever_the_norm(axes: int, training: bool, options: dict[str, Any]) -> None:
    chained = links(axes, Activation("relu6"), **options)
    for link in chained:
        link.norm.train(training)
    for _ in range(2):  # a cumulative average counts
        check(chained, 3 * torch.randn(2, 3, *SIZES[axes], dtype=torch.float64), 0.5)
    alone = links(axes, None, " ", **options)
    alone[0].norm.train(training)
    check(alone, 3 * torch.randn(2, 3, *SIZES[axes], dtype=torch.float64), 0.5)


def test_a_frozen_norm_behind_one_that_learns() -> None:
    chained = links(activation=Activation("relu"))
    chained[1].norm.eval()
    chained[0].norm.requires_grad_(False)
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64, requires_grad=True)
    run_chain(x, chained, 0.5).sum().backward()
    assert chained[0].norm.weight.grad is None
    plain, again = copy.deepcopy(chained), x.detach().requires_grad_()
    one_by_one(again, plain, 0.5).sum().backward()
    torch.testing.assert_close(x.grad, again.grad)


def test_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of two of three channels, then one."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(chain, "CACHE", 2 * 2 * 35 * 8 // threads + 1)
    assert len(list(chain._parts(torch.empty(2, 3, 7, 5, dtype=torch.float64)))) == 2
    check(links(activation=Activation("relu6")), 3 * torch.randn(2, 3, 7, 5, dtype=torch.float64), 0.5)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_gradients(training: bool) -> None:
    chained = links(activation=Activation("silu"))
    for link in chained:
        link.norm.train(training)
        link.norm.momentum = 0.0  # the same function at every call
    chained[1].factor.data[2] = 0.4  # type: ignore[union-attr]
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *_: Tensor) -> Tensor:
        return run_chain(x, chained, 0.3)

    assert gradcheck(run, (x, *held(chained)), atol=1e-4)
    assert gradgradcheck(run, (x, *held(chained)), atol=1e-4)


@pytest.mark.parametrize("layout", ["expanded", "strided"])
def test_gradients_in_any_layout(layout: str) -> None:
    x, chained = torch.randn(2, 3, 7, 5, requires_grad=True, dtype=torch.float64), links()
    gradient = torch.randn(2, 3, 5, 7, dtype=torch.float64).transpose(2, 3)
    if layout == "expanded":
        gradient = torch.randn(2, 3, 1, 1, dtype=torch.float64).expand(2, 3, 7, 5)
    (found,) = torch.autograd.grad(run_chain(x, chained, 0.5), x, gradient)
    (wanted,) = torch.autograd.grad(one_by_one(x, chained, 0.5), x, gradient)
    torch.testing.assert_close(found, wanted)


def test_bfloat16_is_rounded_once() -> None:
    chained = links(activation=Activation("relu6"))
    for link in chained:
        link.norm.float()
    chained = [Link(None if c.factor is None else c.factor.detach().float(), c.norm, c.activation) for c in chained]
    x = (3 * torch.randn(4, 3, 7, 5)).bfloat16().requires_grad_()
    found = run_chain(x, chained, 0.5)
    wanted = one_by_one(x.float(), chained, 0.5)
    torch.testing.assert_close(found, wanted.bfloat16())
    (gradient,) = torch.autograd.grad(found.float().square().sum(), x)
    assert gradient.dtype == torch.bfloat16


def test_statistics_where_the_deviation_is_far_below_the_mean() -> None:
    """Single precision: the mean is a thousand deviations away."""
    x = torch.randn(8, 3, 17, 13) + 1000
    norm = nn.BatchNorm2d(3)
    run_chain(x, [Link(None, norm, None)], 1.0)
    wanted = x.double().var((0, 2, 3)).float() * 0.1 + 0.9
    torch.testing.assert_close(norm.running_var, wanted, rtol=1e-4, atol=0)
