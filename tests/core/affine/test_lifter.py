import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from nbcompile.core.affine.primitive import Primitive
from nbcompile.core.affine.to_layer import to_layer
from tests.core.affine.lifts import Written, X, conv, found, last, primitive

NO_STATISTICS = "it has no running statistics: it normalises by the batch, also in eval mode"


class Doubled(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Tripled(nn.AvgPool2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * (3 if input.isfinite().all() else 1)  # read, so that it is one node


class Filled(nn.ZeroPad2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + (1 if input.isfinite().all() else 0)


class Same(nn.BatchNorm2d):
    pass


def whole_numbers(layer: nn.Module) -> nn.Module:
    layer.weight = nn.Parameter(torch.ones(4, 4, 1, 1, dtype=torch.int32), requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("layer", "axes", "inputs", "constants", "is_layer"),
    [
        (conv(3), {2}, 4, 4 * 4 * 9 + 4, True),
        (conv(groups=2, bias=False), {2}, 4, 8, True),
        (nn.ConvTranspose2d(4, 6, 2, groups=2), {2}, 4, 4 * 3 * 4 + 6, True),
        (nn.Linear(4, 3), {0}, 4, 15, True),
        (nn.BatchNorm1d(4), {1}, 4, 8, False),
        (nn.BatchNorm3d(4), {3}, 4, 8, False),
        (nn.SyncBatchNorm(4), {1, 2, 3}, 4, 8, False),
        (Same(4), {1, 2, 3}, 4, 8, False),
        (nn.InstanceNorm2d(4, track_running_stats=True), {2}, 4, 8, False),
        (nn.AvgPool3d(2), {3}, None, 0, False),
        (nn.ZeroPad2d(1), {2, 3}, None, 0, False),
        (nn.ReflectionPad1d(1), {1, 2, 3}, None, 0, False),
    ],
)
def test_modules(layer: nn.Module, axes: set[int], inputs: int | None, constants: int, is_layer: bool) -> None:
    one = primitive(lambda m, x: m.it(x), it=layer)
    assert (set(one.axes), one.inputs, one.constants, one.layer) == (axes, inputs, constants, is_layer)
    assert one.node.all_input_nodes == [one.source]


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (conv(3, stride=2), X),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), X),
        (nn.BatchNorm2d(4, affine=False), X),
        (nn.InstanceNorm2d(4, track_running_stats=True), X),
    ],
)
def test_the_map_is_the_modules(layer: nn.Module, x: Tensor) -> None:
    """One node, evaluated through the layer that is made of its map."""
    one = primitive(lambda m, x: m.it(x), it=layer)
    m = one.map(2, 4)
    assert m.weight.dtype == torch.float64
    assert one.geometry(2, 4) == m.geometry
    torch.testing.assert_close(to_layer(m, x)(x), layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.BatchNorm2d(4, track_running_stats=False), NO_STATISTICS),
        (nn.InstanceNorm2d(4), NO_STATISTICS),
        (Doubled(4), "its class Doubled computes something of its own"),
        (Tripled(2), "its class Tripled computes something of its own"),
        (Filled(1), "its class Filled computes something of its own"),
        (whole_numbers(nn.ConvTranspose2d(4, 4, 1)), "its weight is int32, not floating point"),
        (nn.AvgPool2d(2, ceil_mode=True), "it pools with ceil_mode: its last window may be cut off"),
        (
            nn.AvgPool2d(3, padding=1, count_include_pad=False),
            "it pools without counting the padding: its divisor differs at the border",
        ),
        (nn.ZeroPad2d(-1), "it crops: a padding is negative"),
    ],
)
def test_reasons(layer: nn.Module, reason: str) -> None:
    assert last(lambda m, x: m.it(x), it=layer) == reason


def test_a_layer_called_twice() -> None:
    reason = "'it' is called more than once, or its weights are shared"
    results = found(Written(lambda m, x: m.it(m.it(x)), it=conv()))
    assert list(results.values()) == [reason, reason]


@pytest.mark.parametrize(
    "layer", [conv(), nn.ConvTranspose2d(4, 4, 1), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.ZeroPad2d(1)]
)
def test_hooks_on_any_kind_of_node(layer: nn.Module) -> None:
    layer.register_forward_hook(lambda *_: None)
    assert last(lambda m, x: m.it(x), it=layer) == "it carries hooks, which would be lost; remove them first"


def test_a_parametrized_transposed_convolution() -> None:
    layer = parametrizations.weight_norm(nn.ConvTranspose2d(4, 4, 1))
    assert last(lambda m, x: m.it(x), it=layer) == "its weight is computed by a parametrization; remove it first"


def test_calls_with_more_than_a_value_are_not_affine() -> None:
    up = nn.ConvTranspose2d(4, 4, 2, stride=2)
    assert last(lambda m, x: m.it(x, output_size=(14, 10)), it=up) is None
    assert isinstance(last(lambda m, x: m.it(x), it=up), Primitive)
    assert last(lambda m, x: m.it(x), it=nn.ReLU()) is None


@pytest.mark.parametrize(
    ("pad", "mode"),
    [
        (nn.ZeroPad2d(1), "zeros"),
        (nn.ConstantPad2d(1, 3.0), "zeros"),
        (nn.ReflectionPad2d(1), "reflect"),
        (nn.ReplicationPad2d(1), "replicate"),
        (nn.CircularPad2d(1), "circular"),
    ],
)
def test_padding_modes(pad: nn.Module, mode: str) -> None:
    geometry = primitive(lambda m, x: m.it(x), it=pad).geometry(2, 4)
    filled = isinstance(pad, nn.ConstantPad2d) and not isinstance(pad, nn.ZeroPad2d)
    assert (geometry.padding, geometry.padding_mode, geometry.filled) == (((1, 1), (1, 1)), mode, filled)


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.mul_(2) + y


def test_the_writer_of_what_is_read_again() -> None:
    results = found(Writes())
    assert results["mul_"] == "it changes 'conv' in place, which is read again"
