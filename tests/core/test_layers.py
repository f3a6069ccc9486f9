"""What a layer is, and its affine map, against torch's own layers."""

import json
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from nbcompile.core.layers import LayerSpec, Scale, lift, memory_format, stored_weight, why_no_layer
from tests.core.algebra.maps import run

SIZES = {1: (7,), 2: (7, 5), 3: (5, 4, 6)}

LAYERS = [
    nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2),
    nn.Conv2d(4, 8, (1, 3), stride=(2, 1), padding=(0, 2), bias=False),
    nn.Conv2d(4, 4, 4, padding="same", dilation=(1, 2), groups=4),
    nn.Conv2d(4, 4, 2, padding="valid", padding_mode="reflect"),
    nn.Conv2d(4, 4, 2, padding="same", padding_mode="circular"),
    nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate"),
    nn.Conv3d(4, 6, (1, 2, 3), padding=(1, 0, 2), groups=2),
    nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
    nn.ConvTranspose2d(4, 4, (2, 3), stride=(1, 3), dilation=(2, 1), output_padding=(1, 2), bias=False),
    nn.ConvTranspose3d(4, 8, 2, stride=2, groups=4),
    nn.Linear(4, 6),
    nn.Linear(4, 6, bias=False),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # torch about its own copy
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_layer_is_its_spec_and_its_map(layer: nn.Module) -> None:
    spec = LayerSpec.of(layer)
    assert LayerSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    rebuilt = spec.build()
    rebuilt.load_state_dict(layer.state_dict())
    assert str(rebuilt) == str(layer)
    x = torch.randn(2, *((4, *SIZES[spec.axes]) if spec.axes else (7, 4)), dtype=torch.float64)
    layer.double()
    m = lift(layer, torch.float64, spec.axes)
    torch.testing.assert_close(run(m, x), layer(x), rtol=0, atol=1e-12)
    assert torch.equal(stored_weight(m), layer.get_parameter("weight"))
    assert rebuilt(x.float()).shape == layer(x).shape


@pytest.mark.parametrize("wanted", [torch.float16, torch.float64])
@pytest.mark.parametrize("layer", [Scale(4, 2), nn.BatchNorm2d(4), *LAYERS[1:4], *LAYERS[9:10]], ids=str)
def test_a_map_has_the_dtype_that_is_asked_for(layer: nn.Module, wanted: torch.dtype) -> None:
    m = lift(layer, wanted, 2)
    assert m.weight.dtype == wanted
    assert m.bias is None or m.bias.dtype == wanted


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_norms_and_scales_lift(axes: int) -> None:
    x = torch.randn(2, 4, *SIZES[axes], dtype=torch.float64)
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[axes](4, eps=1e-2).double()
    for _ in range(3):
        norm(x * torch.rand(4, *(1,) * axes) + 1)
    scale = Scale(4, axes).double()
    nn.init.normal_(scale.weight)
    bare = type(norm)(4, affine=False).double()
    each = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[axes]
    instance = each(4, eps=1e-2, affine=True, track_running_stats=True).double()
    instance.load_state_dict(norm.state_dict())
    for module in (norm.eval(), bare.eval(), instance.eval(), scale):
        torch.testing.assert_close(run(lift(module, torch.float64, axes), x), module(x), rtol=0, atol=1e-12)


def test_build_takes_dtype_and_device() -> None:
    like = torch.empty(1, dtype=torch.bfloat16, device="meta")
    for layer in LAYERS:
        weight = LayerSpec.of(layer).build(like).weight
        assert isinstance(weight, Tensor)
        assert (weight.dtype, weight.device.type) == (torch.bfloat16, "meta")


def test_what_a_spec_says_of_its_kind() -> None:
    point, deep = LayerSpec.of(nn.Conv2d(4, 8, 1)), LayerSpec.of(nn.Conv2d(4, 8, 3, groups=4))
    single = LayerSpec.of(nn.Conv2d(1, 8, 3))
    linear = LayerSpec.of(nn.Linear(4, 8))
    assert (point.pointwise, deep.pointwise, linear.pointwise) == (True, False, True)
    assert (point.depthwise, deep.depthwise, single.depthwise, linear.depthwise) == (False, True, False, False)
    assert (point.axes, linear.axes) == (2, 0)
    up = LayerSpec.of(nn.ConvTranspose2d(4, 8, 1, stride=2))
    assert (up.transposed, up.pointwise, point.transposed, linear.transposed) == (True, False, False, False)


@pytest.mark.parametrize(
    "lie",
    [
        {"kind": "ConvTranspose4d"},
        {"kind": "Conv2d"},
        {"output_padding": []},
        {"output_padding": [1]},
        {"output_padding": [1, -1]},
        {"output_padding": [1, 1.0]},
        {"output_padding": [2, 1]},
        {"output_padding": 1},
        {"padding": "same"},
        {"padding_mode": "reflect"},
        {"kernel": [3]},
    ],
)
def test_a_record_of_no_transposed_layer_is_refused(lie: dict[str, object]) -> None:
    honest = LayerSpec.of(nn.ConvTranspose2d(4, 8, 3, stride=2, output_padding=1)).to_json()
    assert LayerSpec.from_json(honest).build().get_parameter("weight").shape == (4, 8, 3, 3)
    with pytest.raises((ValueError, TypeError)):
        LayerSpec.from_json(honest | lie)


class OwnForward(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Renamed(nn.Conv2d):
    """Adds nothing: a plain convolution by another name."""


def hooked() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    return layer


class OwnCall(nn.Conv2d):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = super().__call__(x)
        return y * 2


def whole_numbers() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Bilinear(2, 2, 3), "it is a Bilinear, not a convolution or linear layer"),
        (nn.ConvTranspose2d(2, 2, 3), None),
        (OwnForward(2, 2, 1), "its class OwnForward computes something of its own"),
        (OwnCall(2, 2, 1), "its class OwnCall computes something of its own"),
        (
            parametrizations.weight_norm(nn.Conv2d(2, 2, 1)),
            "its weight is computed by a parametrization; remove it first",
        ),
        (hooked(), "it carries hooks, which would be lost; remove them first"),
        (whole_numbers(), "its weight is int8, not floating point"),
        (nn.Conv2d(2, 2, 1), None),
        (Renamed(2, 2, 1), None),
        (nn.Linear(2, 2), None),
    ],
)
def test_why_no_layer(module: nn.Module, reason: str | None) -> None:
    assert why_no_layer(module) == reason


def test_the_spec_of_a_subclass_is_that_of_its_base() -> None:
    assert LayerSpec.of(Renamed(2, 2, 1)).kind == "Conv2d"


@pytest.mark.parametrize(
    ("weight", "wanted"),
    [
        (torch.empty(4, 3, 3, 3), torch.contiguous_format),
        (torch.empty(4, 3, 3, 3).to(memory_format=torch.channels_last), torch.channels_last),
        (torch.empty(4, 3, 3, 3, 3).to(memory_format=torch.channels_last_3d), torch.channels_last_3d),
        (torch.empty(4, 3, 1, 1).to(memory_format=torch.channels_last), torch.contiguous_format),  # both at once
        (torch.empty(4, 3), torch.contiguous_format),
    ],
)
def test_memory_format(weight: Tensor, wanted: torch.memory_format) -> None:
    assert memory_format(weight) is wanted


def test_scale_says_what_it_is() -> None:
    x = torch.randn(2, 3, 4)
    scale = Scale(3, 1)
    assert torch.equal(scale(x), x)
    assert re.fullmatch(r"Scale\(\)", str(scale))
