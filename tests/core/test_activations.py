"""Activations on their way to the identity: exact at both ends, right in between, no dearer than torch's own."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from nbcompile.core.activations import Activation, linearised

MODULES = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "leaky_relu": nn.LeakyReLU(0.1),
    "leaky_relu, 0": nn.LeakyReLU(0.0),
    "hardswish": nn.Hardswish(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu, tanh": nn.GELU(approximate="tanh"),
}
SLOPES = (0.0, 0.3, 0.5, 0.7, 1.0)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

every = pytest.mark.parametrize("module", MODULES.values(), ids=list(MODULES))


def at(module: nn.Module, x: Tensor, slope: float) -> Tensor:
    activation = Activation.of(module)
    assert activation is not None
    return linearised(x, torch.tensor(slope), activation.name, activation.parameter)


def numbers(dtype: torch.dtype) -> Tensor:
    """From -20 to 20, the corners 0, 3 and 6 among them, tiny ones and huge ones."""
    line = torch.linspace(-20, 20, 401, dtype=torch.float64).round(decimals=2)
    ends = torch.tensor([-30000.0, -1e-6, -0.0, 1e-6, 6.0625, 12.5, 30000.0], dtype=torch.float64)
    return torch.cat([line, ends]).to(dtype)


@every
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_slope_0_is_torchs_own_and_slope_1_the_identity(module: nn.Module, dtype: torch.dtype) -> None:
    x = numbers(dtype)
    assert x.max() > 12
    for slope, wanted in ((0.0, module(x)), (1.0, x)):
        found = at(module, x, slope)
        assert found.dtype == dtype
        assert torch.equal(found, wanted)


@every
@pytest.mark.parametrize("slope", SLOPES)
def test_values_between(module: nn.Module, slope: float) -> None:
    x = numbers(torch.float64)
    a = float(torch.tensor(slope))  # as the float32 buffer holds it
    torch.testing.assert_close(at(module, x, slope), (1 - a) * module(x) + a * x, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("slope", SLOPES)
def test_relu_is_the_papers_formula(slope: float) -> None:
    x = numbers(torch.float64)
    torch.testing.assert_close(at(nn.ReLU(), x, slope), torch.maximum(float(torch.tensor(slope)) * x, x))


@every
@pytest.mark.parametrize("slope", SLOPES)
def test_gradients_are_those_of_the_plain_formula(module: nn.Module, slope: float) -> None:
    a = float(torch.tensor(slope))
    x = numbers(torch.float64).requires_grad_()
    weights = torch.randn_like(x)
    ((1 - a) * module(x) + a * x).mul(weights).sum().backward()
    wanted, x.grad = x.grad, None
    at(module, x, slope).mul(weights).sum().backward()
    torch.testing.assert_close(x.grad, wanted, rtol=1e-13, atol=1e-13)


@every
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_keep_the_dtype_and_end_as_the_identitys(module: nn.Module, dtype: torch.dtype) -> None:
    for slope in (0.0, 0.25, 1.0):
        x = numbers(dtype).requires_grad_()
        gradient = torch.randn_like(x)
        at(module, x, slope).backward(gradient)
        assert x.grad is not None
        assert x.grad.dtype == dtype
        if slope == 1.0:
            assert torch.equal(x.grad, gradient)
        if slope == 0.0:
            again = numbers(dtype).requires_grad_()
            module(again).backward(gradient)
            torch.testing.assert_close(x.grad, again.grad, rtol=0, atol=0)


@every
def test_under_autocast(module: nn.Module) -> None:
    layer, x = nn.Linear(8, 8), torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = at(module, layer(x), 0.5)
        assert mixed.dtype == torch.bfloat16
    mixed.float().sum().backward()
    full = at(module, layer(x), 0.5)
    torch.testing.assert_close(mixed.float(), full, rtol=0.05, atol=0.05)
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def test_the_input_is_left_alone() -> None:
    x = numbers(torch.float32)
    before = x.clone()
    for module in MODULES.values():
        at(module, x, 0.5)
    assert torch.equal(x, before)


@contextmanager
def maps_saved(numel: int) -> Iterator[set[int]]:
    """The storages of at least ``numel`` elements that are kept for backward."""
    found: set[int] = set()
    alive: list[Tensor] = []  # so that no address is used twice

    def pack(x: Tensor) -> Tensor:
        if x.numel() >= numel:
            found.add(x.untyped_storage().data_ptr())
            alive.append(x)
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        yield found


@every
@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_memory_for_backward_is_that_of_torchs_own(module: nn.Module, slope: float) -> None:
    """In norm → activation → conv: a piecewise-linear one adds nothing to what the convolution keeps anyway."""
    norm, conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)
    x = torch.randn(2, 4, 9, 9, requires_grad=True)
    with maps_saved(x.numel()) as ours:
        kept = conv(at(module, norm(x), slope))
    with maps_saved(x.numel()) as torchs:
        also_kept = conv(module(norm(x)))
    assert kept.requires_grad
    assert also_kept.requires_grad
    smooth = not isinstance(module, (nn.ReLU, nn.ReLU6, nn.LeakyReLU))
    norms_input_and_convs_input = 2
    assert len(ours) == norms_input_and_convs_input + smooth
    assert len(ours) <= len(torchs)


def test_hardtanh_from_0_to_6_is_relu6() -> None:
    assert Activation.of(nn.Hardtanh(0, 6)) == Activation("relu6")


@pytest.mark.parametrize("module", [nn.Hardtanh(), nn.LeakyReLU(-0.1), nn.PReLU(), nn.Sigmoid(), nn.Conv2d(1, 1, 1)])
def test_what_is_not_known_is_none(module: nn.Module) -> None:
    assert Activation.of(module) is None


@pytest.mark.parametrize(
    ("name", "parameter", "message"),
    [
        ("swish", None, "activation 'swish' is none that can be linearised: ReLU, ReLU6, LeakyReLU, Hardswish"),
        ("relu", 0.1, "activation 'relu' cannot have parameter 0.1"),
        ("leaky_relu", None, "activation 'leaky_relu' cannot have parameter None"),
        ("gelu", 1.0, "activation 'gelu' cannot have parameter 1.0"),
    ],
)
def test_refuses_what_it_does_not_know(name: str, parameter: float | str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Activation(name, parameter)


def test_no_recompilation_as_the_slope_moves() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    slope, x = torch.zeros(()), torch.randn(4, 8, requires_grad=True)
    compiled = torch.compile(lambda x: linearised(x, slope, "relu6"), backend=backend, fullgraph=True)
    for value in torch.linspace(0, 1, 5):
        slope.fill_(value)
        (gradient,) = torch.autograd.grad(compiled(x).sum(), x)
        (wanted,) = torch.autograd.grad(linearised(x, slope, "relu6").sum(), x)
        assert torch.equal(gradient, wanted)
    assert len(graphs) == 1
