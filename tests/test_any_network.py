"""Random networks of every affine node: ``fuse`` keeps the function, costs nothing, and leaves nothing to do."""

from typing import Any, cast

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor, nn
from torch.nn import functional as F

import nbcompile
from nbcompile.core.numerics import relative_error
from nbcompile.fusion import fused
from nbcompile.testing import scramble_

CONVS: dict[int, type[nn.Module]] = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SPREADS: dict[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLS: dict[int, type[nn.Module]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
MODES = ("zeros", "zeros", "zeros", "reflect", "replicate", "circular")
QUIET = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
SEVERAL = settings(max_examples=40, suppress_health_check=list(HealthCheck))


class Factor(nn.Module):
    """``scale * x + shift`` per channel, in one of the ways it can be written."""

    def __init__(self, channels: int, axes: int, how: int) -> None:
        super().__init__()
        shape = (channels, *(1,) * axes) if how % 2 or not axes else (1, channels, *(1,) * axes)
        self.scale, self.shift = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(shape))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case 0 | 1:
                return x * self.scale
            case 2 | 3:
                return self.shift - x / 0.7
            case 4:
                return torch.add(self.shift, x, alpha=0.3) * self.scale
            case _:
                return -torch.sub(x, self.shift, alpha=2) * 0.1


class Pad(nn.Module):
    def __init__(self, sides: list[int], mode: str, value: float | None) -> None:
        super().__init__()
        self.sides, self.mode, self.value = sides, mode, value

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.sides, self.mode, self.value)


class Branches(nn.Module):
    """A sum or concatenation of branches; where asked, one of them starts elsewhere or is read twice."""

    def __init__(self, branches: list[nn.Module], how: str, axes: int) -> None:
        super().__init__()
        self.branches, self.how, self.axes = nn.ModuleList(branches), how, axes

    def forward(self, x: Tensor) -> Tensor:
        values = [branch(x.relu() if self.how == "other" and not i else x) for i, branch in enumerate(self.branches)]
        if self.how == "cat":
            return torch.cat(values, -self.axes - 1)
        total = values[0]
        for i, value in enumerate(values[1:]):
            match self.how:
                case "minus" if i % 2:
                    total = total - value
                case "right":
                    total = value + total
                case "in place" if i:
                    total += value
                case _:
                    total = torch.add(total, value)
        return total * values[0].mean() if self.how == "read" else total


@st.composite
def layer(draw: st.DrawFn, axes: int, inputs: int, outputs: int, stride: int = 1, same: bool = False) -> nn.Module:
    """A convolution or linear layer; with ``same``, of any kernel that keeps the size."""
    bias = draw(st.booleans())
    if not axes:
        return nn.Linear(inputs, outputs, bias)
    groups = draw(st.sampled_from([g for g in (1, 1, 2, 3) if inputs % g == 0 and outputs % g == 0]))
    largest = {1: 5, 2: 4, 3: 3}[axes]
    kernel = [draw(st.sampled_from(range(1, largest + 1, 1 + same))) for _ in range(axes)]
    dilation = [draw(st.sampled_from((1, 1, 2))) for _ in range(axes)]
    padding: Any = [d * (k // 2) for d, k in zip(dilation, kernel, strict=True)]
    if not same:
        padding = draw(st.sampled_from([padding, [draw(st.integers(0, 2)) for _ in range(axes)], [0] * axes, "valid"]))
        padding = "same" if stride == 1 and draw(st.integers(0, 5)) == 0 else padding
    mode = draw(st.sampled_from(MODES))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "padding_mode": mode}
    return cast(Any, CONVS[axes])(inputs, outputs, kernel, bias=bias, **options)


@st.composite
def branch(draw: st.DrawFn, axes: int, inputs: int, outputs: int, stride: int) -> nn.Module:
    """One that fits beside the others of its kind: same stride, centred kernels."""
    inner = draw(st.sampled_from((1, inputs, outputs)))
    kind = draw(st.sampled_from(("layer", "layer", "narrow", "pointwise first", "norm", "factor", "pool")))
    one = draw(layer(axes, inputs, outputs, stride, same=True))
    if kind == "narrow":
        one = nn.Sequential(
            draw(layer(axes, inputs, inner, stride, same=True)), draw(layer(axes, inner, outputs, 1, same=True))
        )
    elif kind == "pointwise first":
        first = CONVS[axes](inputs, inner, *(1,) * bool(axes), bias=draw(st.booleans()))
        one = nn.Sequential(first, draw(layer(axes, inner, outputs, stride, same=True)))
    elif kind == "norm" and axes:
        one = nn.Sequential(one, NORMS[axes](outputs))
    elif kind == "factor":
        one = nn.Sequential(one, Factor(outputs, axes, draw(st.integers(0, 5))))
    elif kind == "pool" and axes:
        counted = draw(st.booleans())
        one = nn.Sequential(one, POOLS[axes](3, 1, 1, count_include_pad=counted))
    plain = inputs == outputs and (stride == 1 or not axes) and draw(st.booleans())
    return nn.Identity() if plain else one


@st.composite
def step(draw: st.DrawFn, axes: int, inputs: int) -> tuple[nn.Module, int]:
    """A module that takes ``inputs`` channels, and how many it gives."""
    outputs = draw(st.sampled_from((1, 2, 3, 4, 6)))
    stride = draw(st.sampled_from((1, 1, 1, 2))) if axes else 1
    kinds = ["layer", "layer", "factor", "sum", "sum", "cat", "drop"]
    kinds += ["norm", "norm", "pool", "pad", "spread", "crop"] if axes else []
    match draw(st.sampled_from(kinds)):
        case "layer":
            return draw(layer(axes, inputs, outputs, stride)), outputs
        case "factor":
            return Factor(inputs, axes, draw(st.integers(0, 5))), inputs
        case "norm":
            return NORMS[axes](inputs, affine=draw(st.booleans())), inputs
        case "pool":
            options = {"ceil_mode": draw(st.integers(0, 4)) == 0, "count_include_pad": draw(st.integers(0, 4)) > 0}
            return POOLS[axes](
                draw(st.integers(2, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 1)), **options
            ), inputs
        case "pad":
            mode = draw(st.sampled_from(("constant", "constant", "reflect", "replicate", "circular")))
            value = draw(st.sampled_from((0.0, 0.0, 1.5))) if mode == "constant" else None
            sides = [draw(st.integers(0, 2)) for _ in range(2 * axes)]
            return Pad(sides, mode, value), inputs
        case "spread":
            groups = draw(st.sampled_from([g for g in (1, 1, 2, 3) if inputs % g == 0 and outputs % g == 0]))
            beyond = draw(st.integers(0, stride - 1))
            cls, kernel, padding = SPREADS[axes], draw(st.integers(1, 3)), draw(st.integers(0, 1))
            return cls(inputs, outputs, kernel, stride, padding, beyond, groups, bias=draw(st.booleans())), outputs
        case "drop":
            return nn.Sequential(nn.Dropout(), nn.Identity()), inputs
        case "crop":
            return Pad([-1, 0] * axes, "constant", None), inputs
    how = draw(st.sampled_from(("plus", "plus", "minus", "right", "in place", "read", "other")))
    branches = [draw(branch(axes, inputs, outputs, stride)) for _ in range(draw(st.integers(2, 4)))]
    if draw(st.integers(0, 2)) == 0:
        return Branches(branches, "cat", axes), outputs * len(branches)
    return Branches(branches, how, axes), outputs


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network in float64 and eval mode, and inputs of two sizes."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    axes = draw(st.sampled_from((0, 1, 1, 2, 2, 2, 3)))
    channels = first = draw(st.sampled_from((1, 2, 3, 4, 6)))
    steps: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 5))):
        module, channels = draw(step(axes, channels))
        steps.append(module)
        if draw(st.integers(0, 5)) == 0:
            steps.append(nn.ReLU(inplace=draw(st.booleans())))
    model = scramble_(nn.Sequential(*steps)).double().eval()
    sizes = [[draw(st.integers(1, 9)) for _ in range(axes)] for _ in range(2)]
    leading = [2] if axes else [2, *[3] * draw(st.integers(0, 2))]
    small, large = ([*leading, first, *size] for size in sizes)
    return model, (torch.randn(small, dtype=torch.float64), torch.randn(large, dtype=torch.float64))


def stored(model: nn.Module) -> int:
    """Numbers that a deployed network stores: two a channel for a norm."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    theirs = sum(p.numel() for norm in norms for p in norm.parameters())
    return sum(p.numel() for p in model.parameters()) - theirs + sum(2 * norm.num_features for norm in norms)


def runs(model: nn.Module, x: Tensor) -> Tensor | None:
    try:
        with torch.no_grad():
            y: Tensor = model(x.clone())
    except RuntimeError:
        return None
    return y if y.numel() else None


def check(model: nn.Module, inputs: tuple[Tensor, ...], example: bool) -> None:
    outputs = [runs(model, x) for x in inputs]
    known = [(x, y) for x, y in zip(inputs, outputs, strict=True) if y is not None]
    assume(known)
    given_ = known[0][0] if example else None
    small, _ = fused(model, "all", example_input=given_)
    for x, y in known:
        with torch.no_grad():
            assert relative_error(small(x.clone()), y) <= 1e-12
        assert nbcompile.cost(small, x).macs <= nbcompile.cost(model, x).macs
    assert stored(small) <= stored(model)
    _, again = fused(small, "all", example_input=given_)
    assert [result.rewritten for report in again for _, result in report.passes if result.modified] == []


@QUIET
@SEVERAL
@given(networks(), st.booleans())
def test_any_network(drawn: tuple[nn.Module, tuple[Tensor, Tensor]], example: bool) -> None:
    check(*drawn, example)


@pytest.mark.slow
@QUIET
@settings(SEVERAL, max_examples=3000)
@given(networks(), st.booleans())
def test_many_networks(drawn: tuple[nn.Module, tuple[Tensor, Tensor]], example: bool) -> None:
    check(*drawn, example)
