from collections.abc import Callable
from typing import Any, cast

import pytest
import timm
import torch
from hypothesis import given, settings
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from nbcompile.core.cost import cost
from nbcompile.core.errors import PreconditionError
from nbcompile.core.graph.nodes import norm_of, render_graph
from nbcompile.core.tracing.capture import capture
from nbcompile.passes import MergeAffine, RemoveIdentity
from nbcompile.testing import check_pass, scramble_
from tests.core.affine.networks import Drawn, networks
from tests.core.affine.networks import X as RANDOM

X = torch.randn(2, 4, 7, 5, generator=torch.Generator().manual_seed(0))
KINDS: dict[int, tuple[type[nn.Module], type[nn.Module]]] = {
    1: (nn.Conv1d, nn.BatchNorm1d),
    2: (nn.Conv2d, nn.BatchNorm2d),
    3: (nn.Conv3d, nn.BatchNorm3d),
}


class ConvNorm(nn.Module):
    def __init__(self, axes: int = 2, *, affine: bool = True, norm: nn.Module | None = None, **conv: Any) -> None:
        super().__init__()
        layer, kind = KINDS[axes]
        self.conv = layer(4, 8, **{"kernel_size": 3, "padding": 1, **conv})
        self.norm = norm or kind(8, affine=affine)
        scramble_(self)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_folds(groups: int, bias: bool, affine: bool, dtype: torch.dtype) -> None:
    model = ConvNorm(affine=affine, groups=groups, bias=bias).to(dtype)
    result = check_pass(MergeAffine(), model, X.to(dtype))
    assert (result.rewritten, result.skipped, result.how) == (("conv",), (), ("conv <- conv + norm",))
    conv = result.gm.get_submodule("conv")
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    assert conv.weight is not model.conv.weight


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "dilation": 2}, {"padding_mode": "reflect"}, {"padding": "same"}]
)
def test_folds_whatever_the_geometry(axes: int, options: dict[str, Any]) -> None:
    x = torch.randn(2, 4, *(7, 5, 6)[:axes], dtype=torch.float64)
    assert check_pass(MergeAffine(), ConvNorm(axes, **options).double(), x).modified


def test_folds_sync_batch_norm_and_keeps_what_is_frozen() -> None:
    model = ConvNorm(norm=nn.SyncBatchNorm(8), bias=False).double().requires_grad_(False)
    result = check_pass(MergeAffine(), model, X.double())
    assert not any(p.requires_grad for p in result.gm.parameters())


class Functional(nn.Module):
    """``F.batch_norm`` in all the ways it can be called."""

    def __init__(self, how: str = "plain") -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8, eps=1e-3)
        self.how = how
        scramble_(self)

    def forward(self, x: Tensor) -> Tensor:
        n, y = self.norm, self.conv(x)
        mean, var = cast(Tensor, n.running_mean), cast(Tensor, n.running_var)
        match self.how:
            case "plain":
                return F.batch_norm(y, mean, var, n.weight, n.bias, self.training, 0.1, n.eps)
            case "keywords":
                return F.batch_norm(y, running_mean=mean, running_var=var, weight=n.weight, eps=n.eps)
            case "batch":
                return F.batch_norm(y, mean.clone(), var.clone(), n.weight, n.bias, training=True)
            case "always":
                return F.batch_norm(y, None, None, n.weight, n.bias, training=True)
            case _:
                return F.batch_norm(y, mean, var, n.weight * 2, n.bias)


@pytest.mark.parametrize("how", ["plain", "keywords"])
def test_folds_the_function(how: str) -> None:
    result = check_pass(MergeAffine(), Functional(how).double(), X.double())
    assert result.rewritten == ("conv",)
    assert {node.op for node in result.gm.graph.nodes} == {"placeholder", "call_module", "output"}


def test_folds_timms_norm_and_activation() -> None:
    model = scramble_(nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), BatchNormAct2d(8))).double()
    assert check_pass(MergeAffine(), model, X.double()).rewritten == ("0",)


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "efficientnet_b0"])
def test_timms_networks_keep_no_norm(name: str) -> None:
    model = scramble_(timm.create_model(name)).double()
    x = torch.randn(1, 3, 33, 33, dtype=torch.float64)
    gm = check_pass(MergeAffine(), model, x).gm
    assert not [node for node in gm.graph.nodes if norm_of(gm, node)]


def test_computed_parameters_are_constants() -> None:
    assert check_pass(MergeAffine(), Functional("computed").double(), X.double()).rewritten == ("conv",)


class Wired(nn.Module):
    """Convolutions and norms wired in ways that folding must mind."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.other, self.second = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.how = how
        match how:
            case "tied":
                self.other.weight = self.conv.weight
            case "untracked":
                self.norm = nn.BatchNorm2d(4, track_running_stats=False)
            case "hooked":
                self.conv.register_forward_hook(lambda *_: None)
            case "parametrized":
                parametrizations.weight_norm(self.conv)
            case "transposed":
                self.conv = nn.ConvTranspose2d(4, 4, 3, padding=1)  # type: ignore[assignment]
        scramble_(self)

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "two readers":
                y = self.conv(x)
                out = self.norm(y) + y.relu()
            case "called twice":
                out = self.norm(self.conv(self.conv(x)))
            case "tied":
                out = self.norm(self.conv(x)).sum() + self.other(x)
            case "no layer":
                out = self.norm(x)
            case "two norms":
                out = self.second(self.norm(self.conv(x)))
            case "shared norm":
                out = self.norm(self.conv(x)).mean() + self.norm(self.other(x))
            case "in place":
                out = self.norm(self.conv(x))
                self.act(out)
                out.mul_(2)
            case "dead":
                x.view(-1)
                out = self.other(x)
            case _:
                out = self.norm(self.conv(x))
        result: Tensor = out
        return result


@pytest.mark.parametrize(
    ("how", "reasons"),
    [
        ("two readers", ["'conv' has 2 readers"]),
        (
            "called twice",
            ["'conv' is called more than once, or its weights are shared", "'conv' before it is left alone"],
        ),
        ("no layer", ["its input 'x' is no convolution or linear layer"]),
        ("untracked", ["it has no running statistics: it normalises by the batch, also in eval mode"]),
        ("hooked", ["it carries hooks, which would be lost; remove them first", "'conv' before it is left alone"]),
        (
            "parametrized",
            ["its weight is computed by a parametrization; remove it first", "'conv' before it is left alone"],
        ),
        (
            "tied",
            [
                "'conv' is called more than once, or its weights are shared",
                "'other' is called more than once, or its weights are shared",
                "'conv' before it is left alone",
            ],
        ),
    ],
)
def test_leaves_alone_and_says_why(how: str, reasons: list[str]) -> None:
    result = check_pass(MergeAffine(), Wired(how), X)
    assert [skip.reason for skip in result.skipped] == reasons
    assert not result.modified


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("batch", "it has no running statistics: it normalises by the batch, also in eval mode"),
        ("always", "it has no running statistics: it normalises by the batch, also in eval mode"),
    ],
)
def test_leaves_functions_alone(how: str, reason: str) -> None:
    result = check_pass(MergeAffine(), Functional(how), X)
    assert [skip.reason for skip in result.skipped] == [reason]


@pytest.mark.parametrize(
    ("how", "rewritten"),
    [
        ("two norms", ("conv",)),
        ("transposed", ("conv",)),
        ("shared norm", ("conv", "other")),
        ("dead", ()),  # dead code is no business of this pass
    ],
)
def test_folds_what_it_can(how: str, rewritten: tuple[str, ...]) -> None:
    result = check_pass(MergeAffine(), Wired(how).double(), X.double())
    assert (result.rewritten, result.skipped) == (rewritten, ())


def test_a_write_without_readers_stays() -> None:
    result = check_pass(MergeAffine(), Wired("in place").double(), X.double())
    assert result.rewritten == ("conv",)
    assert [s.reason for s in result.skipped] == ["its input 'act' is no convolution or linear layer"]


def test_shapes_may_be_read_in_between() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        z = m.norm(y) * m.factor
        return z.view(y.shape[0], y.size(1), -1)

    model = Written(forward, conv=conv(), norm=nn.BatchNorm2d(4), factor=torch.rand(4, 1, 1)).double()
    result = check_pass(MergeAffine(), model, X.double())
    assert (result.rewritten, result.skipped) == (("conv",), ())
    assert len(result.gm.graph.find_nodes(op="call_module")) == 1
    forward_on = lambda m, x: m.last(m.norm(y := m.conv(x))).sum() * y.shape[1]  # noqa: E731
    assert merged(forward_on, conv=conv(), norm=nn.BatchNorm2d(4), last=nn.Conv2d(4, 2, 1))[0] == ("conv",)


def test_refuses_training_mode() -> None:
    gm = capture(ConvNorm()).train()
    with pytest.raises(
        PreconditionError, match=r"merge-affine: 'norm' is in training mode; call model\.eval\(\) first"
    ):
        MergeAffine()(gm)


def test_golden_graph(golden: Callable[[str, str], None]) -> None:
    gm = capture(nn.Sequential(ConvNorm(), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, 2, 1), nn.BatchNorm2d(2)).eval())
    RemoveIdentity()(gm)
    golden("merge_affine", render_graph(MergeAffine()(gm).gm))


class Written(nn.Module):
    """A network as a function of its layers, which is easier to read than twenty classes."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            if isinstance(layer, Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)
        self.written = forward
        scramble_(self)

    def forward(self, x: Tensor) -> Any:
        return self.written(self, x)


def conv(kernel: int = 1, inputs: int = 4, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, 4, kernel, padding=kernel // 2, **options)


def merged(forward: Callable[[Any, Tensor], Any], *, known: bool = True, **layers: Any) -> tuple[Any, dict[str, str]]:
    """What was merged, into which all else must be equal, and why the rest was not."""
    x = X.double()
    result = check_pass(MergeAffine((x,) if known else None), Written(forward, **layers).double(), x)
    return result.rewritten, {skip.name: skip.reason for skip in result.skipped}


def through_a_view(m: Any, x: Tensor) -> Any:
    y = x[:, :2].mul_(3)
    return m.conv(y), x * 1


def added_to(m: Any, x: Tensor) -> Any:
    y = z = m.conv(x)
    y += m.other(x)
    return y + m.norm(z)


def test_what_is_changed_in_place_and_read_again_stays() -> None:
    """Found by attack: the write went with the layer that its result was merged into."""
    assert merged(through_a_view, conv=conv(inputs=2)) == (
        (),
        {
            "mul_": "it changes 'x' in place, which is read again",
            "getitem": "'x' is changed in place by 'mul_' and read again",
            "mul": "'x' is changed in place by 'mul_' and read again",
        },
    )
    done, why = merged(added_to, conv=conv(), other=conv(), norm=nn.BatchNorm2d(4))
    assert done == ("conv",)  # who reads it afterwards reads the sum, and the graph says so
    assert "norm" not in why or "add_" in why["norm"]


def test_an_input_changed_before_it_is_read() -> None:
    assert merged(lambda m, x: (x.mul_(2), m.norm(m.conv(x)))[1], conv=conv(), norm=nn.BatchNorm2d(4))[0] == ("conv",)


def test_a_buffer_that_is_written_is_no_constant() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        m.buffer.view(-1).add_(1)
        return m.conv(x) + m.buffer

    model = Written(forward, conv=conv(), buffer=torch.zeros(4, 1, 1)).eval()
    assert not MergeAffine()(capture(model, proof=False)).modified  # which would refuse it: it keeps the buffer


def test_a_shared_norm_pays_only_where_it_vanishes() -> None:
    """Found by attack: a bias more, and the norm still there."""
    forward = lambda m, x: m.norm(m.norm(m.conv(x)).relu())  # noqa: E731
    done, why = merged(forward, conv=conv(bias=False), norm=nn.BatchNorm2d(4))
    assert done == ()
    assert why["norm"] == "one layer would store 20 numbers, they 16"


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (1,), (), (1, 1, 1, 1)])
def test_factors_per_channel(shape: tuple[int, ...]) -> None:
    factor = nn.Parameter(torch.rand(shape) + 0.5)
    forward = lambda m, x: -torch.sub(m.conv(x * m.f) / m.f, m.f, alpha=3) * 0.1 - 1 / 3  # noqa: E731
    assert merged(forward, conv=conv(), f=factor) == (("conv",), {})


@pytest.mark.parametrize("shape", [(5,), (7, 1), (7, 5), (2, 1, 1, 1), (1, 1, 4, 1, 1)])
def test_factors_along_other_dimensions(shape: tuple[int, ...]) -> None:
    assert merged(lambda m, x: m.conv(x) * m.f, conv=conv(), f=torch.rand(shape))[0] == ()


def test_factors_that_change_the_kind_of_the_result() -> None:
    """Found by attack: more dimensions, another dtype, integers that only the factor made floating point."""
    model = Written(lambda m, x: m.conv(x) * m.f, conv=conv(), f=torch.rand(1, 4, 1, 1))
    result = check_pass(MergeAffine((X[0],)), model, X[0])
    assert [s.reason for s in result.skipped] == ["'conv' has fewer dimensions than the 4 of its factor"]
    model = Written(lambda m, x: m.conv(x) * m.f, conv=conv(), f=torch.rand(4, 1, 1, dtype=torch.float64))
    assert [s.reason for s in check_pass(MergeAffine((X,)), model, X).skipped] == [
        "it computes in another dtype, float64"
    ]
    whole = torch.randint(0, 255, (2, 4, 7, 5), dtype=torch.uint8)
    model = Written(lambda m, x: m.conv(x / 255), conv=conv())
    for known in ((whole,), None):
        result = check_pass(MergeAffine(known), model, whole)
        assert [s.reason for s in result.skipped] == [
            "whether 'x' holds floating-point numbers cannot be told: fuse with an example_input"
        ]


def test_the_name_of_a_layer_whose_weight_other_code_computes() -> None:
    """One that is free: its own belongs to the module that holds the weight."""
    forward = lambda m, x: m.norm(F.conv2d(x, m.held.weight))  # noqa: E731
    layers = {"held": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4)}
    assert merged(forward, **layers) == (("held.merged",), {})
    layers["held"].add_module("merged", nn.ReLU())
    read = lambda m, x: forward(m, m.held.merged(x))  # noqa: E731
    assert merged(read, **layers) == (("held.merged_",), {})


def test_terms_that_fit_merge_where_one_does_not() -> None:
    layers: dict[str, Any] = {"a": conv(3), "b": conv(), "first": conv(), "odd": conv(3)}
    forward = lambda m, x: m.odd(m.first(x)) - m.a(x) - m.b(x) + x  # noqa: E731
    done, why = merged(forward, **layers)
    assert done == ("a",)
    assert why["odd"].startswith("the second layer pads with zeros but the first adds a bias")
    forward = lambda m, x: m.odd(m.first(x)) + m.a(x) + m.b(x) + m.other(x.relu()) + x  # noqa: E731
    assert merged(forward, other=conv(), **layers)[0] == ("a",)


@pytest.mark.parametrize("alpha", [1, -1, 2, -0.5])
def test_terms_keep_their_factors(alpha: float) -> None:
    """Of what merges and of what is left: one of them has none."""
    layers: dict[str, Any] = {"a": conv(3), "b": conv(), "first": conv(), "odd": conv(3)}
    left = lambda m, x: torch.add(m.a(x) + m.b(x), m.odd(m.first(x)), alpha=alpha)  # noqa: E731
    assert merged(left, **layers)[0] == ("a",)
    both = lambda m, x: torch.add(m.odd(m.first(x)), m.a(x) + m.b(x), alpha=alpha)  # noqa: E731
    assert merged(both, **layers)[0] == ("a",)
    other = lambda m, x: torch.add(m.a(x) + m.other(x.relu()), m.b(x), alpha=alpha)  # noqa: E731
    assert merged(other, other=conv(), **layers)[0] == (("a",) if alpha == 1 else ())


def test_terms_merge_until_no_two_can() -> None:
    """Found by the hunt: a dilated kernel fits only the sum of the others, whose kernel is wider than each."""
    layers: dict[str, Any] = {"a": conv(3), "wide": conv(5), "odd": conv(3)}
    dilated = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)
    forward = lambda m, x: m.a(x) + m.odd(m.first(x)) + m.dilated(x) + m.wide(x)  # noqa: E731
    assert merged(forward, first=conv(), dilated=dilated, **layers)[0] == ("wide",)


def test_a_sum_added_to_itself() -> None:
    """Found by the hunt: its branches counted twice, and a crash where only some of them merged."""

    def forward(m: Any, x: Tensor) -> Any:
        y = m.a(x) + m.odd(m.first(x)) + m.b(x)
        return y + y

    assert merged(forward, a=conv(3), b=conv(), first=conv(), odd=conv(3))[0] == ("a",)


def test_sums_inside_a_sum_of_which_only_some_terms_merge() -> None:
    """Some terms of the inner sum merge, some of the outer, and one of its terms starts elsewhere."""
    layers: dict[str, Any] = {"a": conv(3), "b": conv(), "first": conv(), "odd": conv(3), "elsewhere": conv()}
    inner = lambda m, x: m.c(m.a(x) + m.odd(m.first(x)) + m.b(x))  # noqa: E731
    forward = lambda m, x: inner(m, x) + m.elsewhere(x.relu()) + m.d(x) + m.e(x)  # noqa: E731
    done, _ = merged(forward, c=conv(3), d=conv(3), e=conv(), **layers)
    assert sorted(done) == ["a", "d"]


def test_channels_cut_and_read_together() -> None:
    """Found by attack: the chunk counted as another reader, and a second run merged what the first had left."""

    def forward(m: Any, x: Tensor) -> Any:
        left, right = m.conv(x).chunk(2, 1)
        return m.left(left) + m.right(right)

    assert merged(forward, conv=conv(), left=conv(inputs=2), right=conv(inputs=2))[0] == ("conv",)


@pytest.mark.parametrize(("scale", "reason"), [(1e-4, "too small for"), (1e6, "not be finite in")])
def test_what_the_dtype_cannot_hold(scale: float, reason: str) -> None:
    model = Written(lambda m, x: m.conv(x) * scale, conv=conv(bias=False)).half()
    with torch.no_grad():
        model.get_parameter("conv.weight").mul_(0.01 if scale < 1 else 1)
    result = MergeAffine()(capture(model.eval()))
    assert [s.reason for s in result.skipped] == [f"the merged weights would {'be ' * (scale < 1)}{reason} float16"]


def test_a_kernel_larger_than_any_map() -> None:
    """Found by attack: no size was tried that it fits."""
    model = nn.Sequential(nn.Conv1d(1, 4, 1024, stride=256), nn.BatchNorm1d(4)).double()
    x = torch.randn(2, 1, 2000, dtype=torch.float64)
    assert check_pass(MergeAffine((x,)), model, x).rewritten == ("0",)


def test_instance_norms() -> None:
    frozen = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    assert merged(lambda m, x: m.norm(m.conv(x)), conv=conv(), norm=frozen)[0] == ("conv",)
    frozen.track_running_stats = False
    result = MergeAffine()(capture(nn.Sequential(conv(), frozen).double().eval(), (X.double(),)))
    why = "it has no running statistics: it normalises by the batch, also in eval mode"
    assert (result.rewritten, [s.reason for s in result.skipped]) == ((), [why])


@pytest.mark.parametrize("rank", [2, 3])
def test_batch_norm_beside_a_linear_layer(rank: int) -> None:
    """On vectors it normalises what the layer gives; on a sequence of them, the sequence's own axis."""
    model = scramble_(nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))).double()
    x = torch.randn(*(2, 3, 5)[3 - rank :], dtype=torch.float64)
    result = check_pass(MergeAffine((x,)), model, x)
    why = ["whether its channels are those that '0' gives cannot be told"]
    assert (result.rewritten, [s.reason for s in result.skipped]) == ((("0",), []) if rank == 2 else ((), why))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("channels", [1, 4])
def test_a_factor_that_gives_one_channel_four(channels: int, known: bool) -> None:
    """What the convolution takes is not what there is: the merged network would crash."""
    x = X[:, :channels].double()
    model = Written(lambda m, x: m.conv(x.relu() * m.f), conv=conv(3), f=torch.rand(4, 1, 1) + 0.5).double()
    result = check_pass(MergeAffine((x,) if known else None), model, x)
    assert result.rewritten == (("conv",) if known and channels == 4 else ())
    if not result.modified:
        assert [s.reason for s in result.skipped] == ["how many channels 'relu' has cannot be told"]


@settings(max_examples=60)
@given(networks())
def test_random_networks_stay_what_they_are_and_cost_no_more(model: Drawn) -> None:
    x = RANDOM[:1]
    gm = check_pass(MergeAffine((x,)), model, x).gm
    before, after = cost(model, x), cost(gm, x)
    assert after.macs <= before.macs
    assert after.params <= before.params
    assert len(gm.graph.nodes) <= len(capture(model, (x,)).graph.nodes)


def test_nothing_of_the_user_is_touched() -> None:
    """The run that finds shapes draws random numbers and counts in a buffer: of copies."""

    def forward(m: Any, x: Tensor) -> Any:
        m.count.add_(1)
        return torch.cat([m.conv(x), m.other(x)], 1) + torch.rand(1)

    gm = capture(Written(forward, conv=conv(), other=conv(), count=torch.zeros(())).eval())
    state = torch.get_rng_state()
    MergeAffine((X,))(gm)
    assert torch.equal(state, torch.get_rng_state())
    assert float(gm.get_buffer("count")) == 0


class Twice(nn.Module):
    """A sum that has one value twice: two of its terms are one, and the others are values as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x)
        return y + x + y.relu() + x


def test_terms_of_a_sum_may_be_values_as_they_are() -> None:
    result = check_pass(MergeAffine(), Twice().double(), X.double())
    assert not result.modified


class SumInASum(nn.Module):
    """Two terms of a sum start at ``v``; behind it both meet a third that starts where ``v`` itself does."""

    def __init__(self, kernel: int, third: bool) -> None:
        super().__init__()
        self.before, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.unit = nn.Conv2d(4, 4, kernel, padding=kernel // 2, bias=False)
        self.depthwise = nn.Conv2d(4, 4, kernel, padding=kernel // 2, groups=4, bias=False)
        self.third = third

    def forward(self, x: Tensor) -> Tensor:
        u = self.norm(self.before(x))
        v = (u + 1) - u / 4
        total = self.depthwise(v) + (self.unit(u) + u) / 2
        return total + v / 2 if self.third else total


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("third", [False, True])
def test_a_sum_in_a_sum_is_not_put_for_the_whole(kernel: int, third: bool) -> None:
    torch.manual_seed(0)
    model = SumInASum(kernel, third).double().eval()
    scramble_(model, seed=2)
    x = torch.randn(2, 2, 9, 7, dtype=torch.float64)
    check_pass(MergeAffine((x,)), model.eval(), x)
