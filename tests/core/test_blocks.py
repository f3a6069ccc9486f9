"""Expansion blocks: one affine map at slope 1, whatever the layer; the layer itself at first with ``preserve``."""

import copy
import random
from itertools import combinations, product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nbcompile.core.activations import Activation
from nbcompile.core.algebra import AffineMap
from nbcompile.core.blocks import Expanded, Stage, sites
from nbcompile.core.errors import CheckpointError
from nbcompile.core.layers import LayerSpec, lift
from nbcompile.core.numerics import relative_error
from nbcompile.core.record import encode_record
from nbcompile.core.site_spec import BLOCKS, SiteSpec
from nbcompile.testing import scramble_

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
INNER = ("norm", "bias", "scale")
# torch's own convolution tells of a copy it makes for padding="same" with an even kernel
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


class Case(NamedTuple):
    """One point of the grid; ``groups`` 0 means depthwise."""

    block: str
    inner: str
    pad_first: bool
    preserve: bool
    kernel: int
    stride: int
    padding: int | str
    dilation: int
    groups: int
    bias: bool
    mode: str


GRID: dict[str, tuple[Any, ...]] = {
    "block": BLOCKS,
    "inner": INNER,
    "pad_first": (True, False),
    "preserve": (True, False),
    "kernel": (1, 2, 3, 5),
    "stride": (1, 2),
    "padding": (0, 1, 2, "same", "valid"),
    "dilation": (1, 2),
    "groups": (1, 2, 0),
    "bias": (True, False),
    "mode": ("zeros", "reflect", "replicate", "circular"),
}


def possible(case: Case) -> bool:
    """Whether torch has such a layer, and the option means something."""
    return not (case.padding == "same" and case.stride > 1) and not (case.kernel == 1 and case.dilation > 1)


CASES = [case for values in product(*GRID.values()) if possible(case := Case(*values))]
SLICE = random.Random(0).sample(CASES, 320)


def convolution(case: Case, axes: int = 2) -> nn.Module:
    """4 channels to 8."""
    spec = LayerSpec(
        kind=f"Conv{axes}d",
        inputs=4,
        outputs=8,
        bias=case.bias,
        kernel=(case.kernel,) * axes,
        stride=(case.stride,) * axes,
        padding=case.padding if isinstance(case.padding, str) else (case.padding,) * axes,
        dilation=(case.dilation,) * axes,
        groups=case.groups or 4,
        padding_mode=case.mode,
    )
    return spec.build()


def spec_for(layer: nn.Module, **options: Any) -> SiteSpec:
    defaults = {"block": "inverted-residual", "ratio": 2, "preserve": False, "inner": "norm"}
    chosen = {"name": "site", "activation": Activation("relu6"), **defaults, **options}
    return SiteSpec(layer=LayerSpec.of(layer), **chosen)


def expanded(layer: nn.Module, **options: Any) -> Expanded:
    return Expanded(spec_for(layer, **options), layer)


def of_case(case: Case, layer: nn.Module) -> Expanded:
    return expanded(layer, block=case.block, inner=case.inner, pad_first=case.pad_first, preserve=case.preserve)


def run(m: AffineMap, x: Tensor) -> Tensor:
    if not m.kernel:
        return F.linear(x, m.weight, m.bias)
    mode = "constant" if m.padding_mode == "zeros" else m.padding_mode
    padded = F.pad(x, [side for pads in reversed(m.padding) for side in pads], mode)
    return CONVOLVE[len(m.kernel)](padded, m.weight, m.bias, m.stride, 0, m.dilation, m.groups)


def linear_now(block: Expanded) -> Expanded:
    """In eval mode at slope 1, with random norms and nothing at zero."""
    scramble_(block)
    if block.last_norm is None:
        nn.init.normal_(block.last.get_parameter("weight"))
    block.slope.fill_(1)
    return block.eval().double()


def check_merged(block: Expanded, layer: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        wanted = block(x)
        whole = block.merged()
        assert wanted.abs().max() > 0
        assert float((run(whole, x) - wanted).abs().max() / wanted.abs().max()) < 1e-12
    target = lift(layer, torch.float64, x.ndim - 2 if LayerSpec.of(layer).axes else 0)
    assert whole.weight.shape == target.weight.shape
    assert (whole.kernel, whole.stride, whole.padding, whole.groups) == (
        target.kernel,
        target.stride,
        target.padding,
        target.groups,
    )
    assert whole.padding_mode == target.padding_mode
    assert all(a == b for a, b, k in zip(whole.dilation, target.dilation, target.kernel, strict=True) if k > 1)


def check_case(case: Case) -> None:
    layer = convolution(case)
    block = linear_now(of_case(case, layer))
    assert wanted_norms(case) == sum(isinstance(m, nn.BatchNorm2d) for m in block.modules())
    reach = case.dilation * (case.kernel - 1)
    x = torch.randn(2, 4, *((7, 5) if reach < 5 else (13, 11)), dtype=torch.float64)
    check_merged(block, layer.double(), x)
    check_collapsed(block, x)


def check_collapsed(block: Expanded, x: Tensor) -> None:
    """In weight space: the outputs, and the gradient of every parameter and of the input, of the layers in eval mode.

    In train mode as well, where no statistic moves.
    """
    buffers = {name: buffer.clone() for name, buffer in block.named_buffers()}
    y, wanted = learnt(block, x)
    block.collapsed = True
    for training in (False, True):
        found_y, found = learnt(block.train(training), x)
        assert relative_error(found_y, y) < 1e-12
        assert found.keys() == wanted.keys()
        scale = max(float(gradient.abs().max()) for gradient in wanted.values())
        for name, gradient in wanted.items():
            error = float((found[name] - gradient).abs().max())
            assert error <= 1e-10 * float(gradient.abs().max()) + 1e-14 * scale, name
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in block.named_buffers())


def learnt(block: Expanded, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradient of everything for one and the same loss."""
    x = x.clone().requires_grad_()
    y = block(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    inputs = {"the input": x, **dict(block.named_parameters())}
    return y.detach(), dict(zip(inputs, torch.autograd.grad((y * weights).sum(), list(inputs.values())), strict=True))


def wanted_norms(case: Case) -> int:
    inserted = 1 if case.block == "basic" else 2
    return (inserted + case.preserve) if case.inner == "norm" else 0


@pytest.mark.parametrize("case", SLICE, ids=lambda case: "-".join(map(str, case)))
def test_merged_equals_the_block(case: Case) -> None:
    check_case(case)


def test_the_slice_has_every_pair_of_options() -> None:
    """So that two options that fail together are met in the fast suite."""
    for (i, _), (j, _) in combinations(enumerate(GRID), 2):
        assert {(c[i], c[j]) for c in SLICE} == {(c[i], c[j]) for c in CASES}


@pytest.mark.slow
@pytest.mark.parametrize(("block", "inner"), list(product(BLOCKS, INNER)))
def test_merged_equals_the_block_on_the_whole_grid(block: str, inner: str) -> None:
    for case in CASES:
        if (case.block, case.inner) == (block, inner):
            check_case(case)


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("case", random.Random(1).sample(CASES, 24), ids=lambda case: "-".join(map(str, case)))
def test_other_dimensions(axes: int, case: Case) -> None:
    layer = convolution(case, axes)
    block = linear_now(of_case(case, layer))
    x = torch.randn(2, 4, *(13, 11, 9)[:axes], dtype=torch.float64)
    check_merged(block, layer.double(), x)
    check_collapsed(block, x)


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 8, (1, 3), padding=(0, 1)), nn.Conv2d(4, 8, (3, 1), (1, 2), (2, 0))])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("pad_first", [True, False])
def test_axes_that_differ(layer: nn.Module, block: str, pad_first: bool) -> None:
    site = linear_now(expanded(copy.deepcopy(layer), block=block, pad_first=pad_first, preserve=True))
    x = torch.randn(2, 4, 7, 5).double()
    check_merged(site, copy.deepcopy(layer).double(), x)
    check_collapsed(site, x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("preserve", [True, False])
@pytest.mark.parametrize("inner", ["bias", "scale"])
@pytest.mark.parametrize("block", BLOCKS)
def test_linear_layers_become_two(bias: bool, preserve: bool, inner: str, block: str) -> None:
    layer = nn.Linear(4, 8, bias=bias)
    site = expanded(layer, block=block, inner=inner, preserve=preserve)
    assert [type(m) for m in (site.stages[0].layer, site.last)] == [nn.Linear, nn.Linear]
    assert len(site.stages) == 1
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    check_merged(linear_now(site), layer.double(), x)
    check_collapsed(site, x)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose1d(4, 8, 3, 2, 1, 1),
        nn.ConvTranspose2d(4, 8, (3, 2), (2, 1), (1, 0), (1, 0), groups=2, bias=False),
        nn.ConvTranspose2d(4, 4, 3, padding=2, groups=4, dilation=2),
        nn.ConvTranspose2d(4, 8, 1, 2, 0, 1),
        nn.ConvTranspose3d(4, 8, 2, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("preserve", [True, False])
def test_transposed_layers_collapse(layer: nn.Module, inner: str, block: str, preserve: bool) -> None:
    site = linear_now(expanded(copy.deepcopy(layer), block=block, inner=inner, preserve=preserve))
    check_collapsed(site, torch.randn(2, 4, *(7, 5, 3)[: site.spec.layer.axes], dtype=torch.float64))


@pytest.mark.parametrize("pad_first", [True, False])
def test_only_one_layer_has_the_kernel(pad_first: bool) -> None:
    """The receptive field stays that of the layer, the stride is taken once, and hidden widths are ratio × inputs."""
    wanted = {
        ("inverted-residual", True): [((1, 1), 1), ((3, 3), 12), ((1, 1), 1)],
        ("inverted-residual", False): [((3, 3), 4), ((1, 1), 12), ((1, 1), 1)],
        ("bottleneck", True): [((1, 1), 1), ((3, 3), 1), ((1, 1), 1)],
        ("bottleneck", False): [((3, 3), 1), ((1, 1), 1), ((1, 1), 1)],
        ("basic", True): [((3, 3), 1), ((1, 1), 1)],
        ("basic", False): [((3, 3), 1), ((1, 1), 1)],
    }
    for block in BLOCKS:
        site = expanded(nn.Conv2d(4, 8, 3, 2, 1), block=block, ratio=3, pad_first=pad_first)
        layers = [m for m in site.modules() if isinstance(m, nn.Conv2d)]
        assert [(m.kernel_size, m.groups) for m in layers] == wanted[block, pad_first]
        assert [m.stride for m in layers].count((2, 2)) == 1
        assert [m.padding for m in layers].count((1, 1)) == 1
        assert {m.out_channels for m in layers[:-1]} == {12}


PRESERVED = [
    nn.Conv2d(4, 8, 1, bias=False),
    nn.Conv2d(4, 8, 3, 2, 1),
    nn.Conv2d(4, 4, 3, 1, 1, groups=4, bias=False),
    nn.Conv2d(4, 8, 2, padding="same"),
    nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"),
]


@pytest.mark.parametrize("layer", PRESERVED, ids=str)
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("block", BLOCKS)
def test_preserve_starts_as_the_layer_and_every_parameter_learns(layer: nn.Module, inner: str, block: str) -> None:
    layer = copy.deepcopy(layer)
    reference, site = copy.deepcopy(layer), expanded(layer, block=block, inner=inner, preserve=True)
    x, weights = torch.randn(4, 4, 7, 5), None
    for training in (False, True):
        assert torch.equal(site.train(training)(x), reference(x))
    optimizer = torch.optim.SGD(site.parameters(), lr=0.1)
    moved = {name: 0.0 for name, _ in site.named_parameters()}
    for _ in range(2):
        y = site(x)
        weights = torch.randn_like(y) if weights is None else weights
        optimizer.zero_grad()
        (y * weights).sum().backward()
        for name, parameter in site.named_parameters():
            assert parameter.grad is not None
            moved[name] += float(parameter.grad.abs().sum())
        optimizer.step()
    assert {name for name, total in moved.items() if total == 0} == set()


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("preserve", [True, False])
def test_only_a_norm_follows_the_last_layer_and_only_beside_the_original(inner: str, preserve: bool) -> None:
    block = expanded(nn.Conv2d(4, 8, 3), inner=inner, preserve=preserve)
    assert isinstance(block.last_norm, nn.BatchNorm2d) is (preserve and inner == "norm")
    assert block.last_norm is None or inner == "norm"


def test_preserve_of_a_linear_layer() -> None:
    layer = nn.Linear(4, 8)
    reference, site = copy.deepcopy(layer), expanded(layer, inner="bias", preserve=True)
    x = torch.randn(3, 4)
    assert torch.equal(site(x), reference(x))


def test_slopes_bend_the_block() -> None:
    """At slope 0 it is the chain with torch's own activation; in between, neither end."""
    site = expanded(nn.Conv2d(4, 8, 3, padding=1)).eval()
    x, outputs = torch.randn(2, 4, 7, 5) * 8, {}
    for slope in (0.0, 0.5, 1.0):
        site.slope.fill_(slope)
        outputs[slope] = site(x)
    plain = x
    for stage in site.stages:
        assert isinstance(stage, Stage)
        assert stage.norm is not None
        plain = F.relu6(stage.norm(stage.layer(plain)))
    torch.testing.assert_close(outputs[0.0], site.last(plain))
    assert not torch.allclose(outputs[0.0], outputs[1.0])
    assert not torch.allclose(outputs[0.5], outputs[1.0])


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("preserve", [True, False])
def test_new_tensors_take_dtype_device_and_memory_format(inner: str, preserve: bool) -> None:
    layer = nn.Conv2d(4, 8, 3, device="meta", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    site = expanded(layer, block="bottleneck", inner=inner, preserve=preserve)
    for name, parameter in site.named_parameters():
        assert (parameter.dtype, parameter.device.type) == (torch.bfloat16, "meta"), name
        if parameter.ndim == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last), name
    assert {buffer.device.type for buffer in site.buffers()} == {"meta"}


def test_channels_last_in_channels_last_out_and_back() -> None:
    layer = nn.Conv2d(4, 8, 3, padding=1).to(memory_format=torch.channels_last)
    site = expanded(layer, block="bottleneck")
    y = site(torch.randn(2, 4, 7, 5).to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    back = site.layer().weight
    assert isinstance(back, Tensor)
    assert not back.is_contiguous()
    assert back.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("preserve", [True, False])
def test_mode_and_requires_grad_follow_the_layer(preserve: bool) -> None:
    site = expanded(nn.Conv2d(4, 8, 3).eval().requires_grad_(False), preserve=preserve)
    assert not any(m.training for m in site.modules())
    assert not any(p.requires_grad for p in site.parameters())
    back = site.layer()
    assert not back.training
    assert not any(p.requires_grad for p in back.parameters())
    site = expanded(nn.Conv2d(4, 8, 3), preserve=preserve)
    assert all(m.training for m in site.modules())
    assert all(p.requires_grad for p in site.parameters())


def test_the_layers_hyper_parameters_are_offered() -> None:
    layer = nn.Conv2d(4, 8, (3, 1), 2, (1, 0), 2, groups=2, padding_mode="reflect")
    site = expanded(layer)
    for name in (
        "in_channels out_channels kernel_size stride padding dilation groups padding_mode".split()  # noqa: SIM905
    ):
        assert getattr(site, name) == getattr(layer, name), name
    assert not hasattr(site, "weight")
    linear = expanded(nn.Linear(4, 8), inner="bias")
    assert (linear.in_features, linear.out_features) == (4, 8)


def test_layer_is_of_the_originals_class_and_says_the_same() -> None:
    class Named(nn.Conv2d):
        """A user's own subclass."""

    layer = Named(4, 8, 3, 2, 1, bias=False)
    site = expanded(layer).double()
    back = site.layer()
    assert type(back) is Named
    assert str(back) == str(layer)
    assert back.weight.dtype == torch.float64


def test_norms_take_eps_and_momentum_and_may_be_synchronised() -> None:
    site = expanded(nn.Conv2d(4, 8, 1), eps=1e-3, momentum=0.03)
    norms = [m for m in site.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}
    site = expanded(nn.Conv2d(4, 8, 1), sync=True)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in site.modules()) == 2
    cumulative = expanded(nn.Conv2d(4, 8, 1), momentum=None)
    assert {m.momentum for m in cumulative.modules() if isinstance(m, nn.BatchNorm2d)} == {None}


def test_extra_state_survives_what_trainers_do_to_state_dicts() -> None:
    """timm's ModelEmaV2 copies averages into the values of a state_dict; others cast them."""
    site = expanded(nn.Conv2d(4, 8, 3))
    site.attach_record({"model": {"any": "thing"}})
    before = site.get_extra_state()
    for average, value in zip(site.state_dict().values(), site.state_dict().values(), strict=True):
        average.copy_(0.9 * average + (1 - 0.9) * value.new_zeros(value.shape))
    assert torch.equal(site.get_extra_state(), before)
    site.get_extra_state().zero_()
    assert torch.equal(site.get_extra_state(), before)
    again = Expanded.from_record(before.double(), "site._extra_state")
    assert torch.equal(again.get_extra_state(), before)
    assert again.spec == site.spec
    again.load_state_dict(site.state_dict())
    assert again.loads == 1


def test_a_copy_is_independent() -> None:
    site = expanded(nn.Conv2d(4, 8, 3))
    copied = copy.deepcopy(site)
    copied.slope.fill_(1)
    assert float(site.slope) == 0
    assert torch.equal(copied.get_extra_state(), site.get_extra_state())


def test_specs_go_through_json() -> None:
    for layer in (*PRESERVED, nn.Linear(2, 3)):
        for activation in (Activation("relu6"), Activation("leaky_relu", 0.1), Activation("gelu", "tanh")):
            spec = spec_for(layer, inner="bias", activation=activation, absorbers=("a.running_mean", "b.running_mean"))
            record = encode_record({"site": spec.to_json()})
            layer_again = copy.deepcopy(layer)
            assert Expanded.from_record(record, "key", layer_again).spec == spec


def test_a_record_of_another_expansion_is_refused() -> None:
    site, other = expanded(nn.Conv2d(4, 8, 3), ratio=2), expanded(nn.Conv2d(4, 8, 3), ratio=2, block="bottleneck")
    with pytest.raises(
        CheckpointError,
        match="the loaded block differs from this one in block: expand the model with the same options as the one",
    ):
        site.set_extra_state(other.get_extra_state())


@pytest.mark.parametrize("payload", [{}, {"site": {"name": "x"}}, {"site": [1]}])
def test_a_record_of_no_block_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"the record 'a\._extra_state' is of no block: "):
        Expanded.from_record(encode_record(payload), "a._extra_state")


def test_sites_are_found_once_each_and_in_order() -> None:
    shared = expanded(nn.Conv2d(4, 4, 1))
    model = nn.Sequential(shared, nn.Sequential(expanded(nn.Conv2d(4, 4, 1))), shared)
    assert list(sites(model)) == ["0", "1.0"]


def test_says_what_it_is() -> None:
    site = expanded(nn.Conv2d(4, 8, 1), ratio=3, preserve=True)
    assert "block=inverted-residual, ratio=3, preserve=True\n" in str(site)
    assert "activation=relu6" in str(site)
    site.collapsed = True
    assert "preserve=True, collapsed\n" in str(site)


def test_merged_follows_the_parameters() -> None:
    """Differentiable: what collapse_ needs."""
    site = expanded(nn.Conv2d(4, 8, 3, padding=1), preserve=True)
    assert site.last_norm is not None
    nn.init.ones_(site.last_norm.get_parameter("weight"))
    whole = site.merged(torch.float32)
    assert whole.bias is not None
    (whole.weight.square().sum() + whole.bias.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in site.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_collapsed_composes_in_float32_whatever_the_parameters(dtype: torch.dtype) -> None:
    """So that weight and bias are rounded once."""
    site = linear_now(expanded(nn.Conv2d(4, 8, 3, padding=1))).to(dtype)
    site.collapsed = True
    whole, x = site.merged(torch.float32), torch.randn(2, 4, 7, 5, dtype=dtype)
    assert whole.bias is not None
    assert torch.equal(site(x), F.conv2d(x, whole.weight.to(dtype), whole.bias.to(dtype), padding=1))


def test_a_collapsed_block_is_traced_into_as_its_layers() -> None:
    site = linear_now(expanded(nn.Conv2d(4, 8, 3, padding=1), preserve=True))
    x = torch.randn(2, 4, 7, 5).double()
    wanted = site(x)
    site.collapsed = True
    gm = fx.symbolic_trace(site)
    assert {"stages.0.layer", "last", "original"} <= {node.target for node in gm.graph.nodes}
    torch.testing.assert_close(gm(x), wanted, rtol=1e-12, atol=1e-12)


def test_a_collapsed_block_runs_where_there_is_no_data() -> None:
    site = expanded(nn.Conv2d(4, 8, 3, padding=1, device="meta"))
    site.collapsed = True
    assert site(torch.empty(2, 4, 7, 5, device="meta")).shape == (2, 8, 7, 5)


def test_loading_a_slope_below_1_ends_the_collapse() -> None:
    """Else the block would go on as if it were linear."""
    site = expanded(nn.Conv2d(4, 8, 3, padding=1))
    bent = copy.deepcopy(site.state_dict())
    site.slope.fill_(1)
    linear = copy.deepcopy(site.state_dict())
    site.collapsed = True
    site.load_state_dict(linear)
    assert site.collapsed
    site.load_state_dict(bent)
    assert not site.collapsed
