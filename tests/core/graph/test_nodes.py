import operator
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nbcompile.core.activations import Activation
from nbcompile.core.graph.nodes import (
    Norm,
    activation_of,
    after,
    aliases,
    argument,
    calls,
    downstream,
    layer_of,
    module_of,
    norm_of,
    passes_through,
    readers,
    render_graph,
    settled,
)
from tests.symbolic import capture


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4, eps=1e-3, momentum=None)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)
        self.again = self.head

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = F.dropout(self.drop(self.norm(y)), 0.1, training=self.training).contiguous()
        z = z.view(y.shape[0], 4, -1).mean(2)
        out: Tensor = self.head(torch.relu(z)) + self.again(z) + y.sum()
        return out


@pytest.fixture
def gm() -> fx.GraphModule:
    return capture(Net())


def node(gm: fx.GraphModule, name: str) -> fx.Node:
    return next(n for n in gm.graph.nodes if n.name == name)


def test_what_a_node_is(gm: fx.GraphModule) -> None:
    conv, norm, x = node(gm, "conv"), node(gm, "norm"), node(gm, "x")
    assert module_of(gm, conv) is layer_of(gm, conv) is gm.conv
    assert layer_of(gm, norm) is module_of(gm, x) is None
    assert norm_of(gm, norm) == Norm(True, "norm.running_mean", 1e-3, None)
    assert norm_of(gm, conv) is norm_of(gm, x) is None
    assert activation_of(gm, node(gm, "relu")) == Activation("relu")
    assert activation_of(gm, norm) is activation_of(gm, x) is None


def test_readers_are_readers_of_values(gm: fx.GraphModule) -> None:
    assert [n.name for n in node(gm, "conv").users] == ["norm", "getattr_1", "sum_1"]
    assert [n.name for n in readers(node(gm, "conv"))] == ["norm", "sum_1"]


def test_identities_are_seen_through(gm: fx.GraphModule) -> None:
    assert [n.name for n in gm.graph.nodes if passes_through(gm, n)] == ["drop", "dropout", "contiguous"]
    assert settled(gm, node(gm, "norm")).name == "contiguous"
    assert cast(fx.Node, after(gm, node(gm, "norm"))).name == "view"
    assert after(gm, node(gm, "conv")) is None  # two readers
    assert after(gm, node(gm, "output")) is None
    trained = fx.symbolic_trace(Net().train())
    assert not passes_through(trained, node(trained, "dropout"))


def test_downstream_is_nearest_first(gm: fx.GraphModule) -> None:
    assert [n.name for n in downstream([node(gm, "mean")])][:3] == ["relu", "head_1", "head"]
    assert [n.name for n in downstream([node(gm, "norm")], up=True)] == ["conv", "x"]


def test_calls_and_aliases(gm: fx.GraphModule) -> None:
    model = Net()
    assert aliases(model, model.head) == ("head", "again")
    assert [n.name for n in calls(gm)[gm.get_submodule("head")]] == ["head", "head_1"]


def test_arguments_however_passed() -> None:
    gm = fx.symbolic_trace(lambda x: F.leaky_relu(x, negative_slope=0.3) + F.leaky_relu(x, 0.4) + F.leaky_relu(x))
    slopes = [argument(n, 1, "negative_slope", 0.01) for n in gm.graph.nodes if n.target is F.leaky_relu]
    assert slopes == [0.3, 0.4, 0.01]


@pytest.mark.parametrize(
    ("function", "activation"),
    [
        (F.relu, Activation("relu")),
        (torch.relu_, Activation("relu")),
        (lambda x: x.relu(), Activation("relu")),
        (lambda x: x.relu_(), Activation("relu")),
        (F.relu6, Activation("relu6")),
        (F.hardswish, Activation("hardswish")),
        (F.silu, Activation("silu")),
        (F.gelu, Activation("gelu", "none")),
        (lambda x: F.gelu(x, approximate="tanh"), Activation("gelu", "tanh")),
        (lambda x: F.leaky_relu(x, 0.2), Activation("leaky_relu", 0.2)),
        (lambda x: F.leaky_relu_(x, 0.2), Activation("leaky_relu", 0.2)),
        (lambda x: F.hardtanh(x, 0, 6), Activation("relu6")),
        (F.hardtanh, "hardtanh"),
        (lambda x: x.clamp(min=0), Activation("relu")),
        (lambda x: x.clamp(-1, 1), None),
        (F.logsigmoid, "logsigmoid"),
        (F.glu, "glu"),
        (F.sigmoid, None),
        (lambda x: x.sum(), None),
        (lambda x: operator.add(x, 1), None),
    ],
)
def test_functions_that_are_activations(function: Callable[..., Tensor], activation: Activation | str | None) -> None:
    gm = fx.symbolic_trace(lambda x: function(x))
    assert activation_of(gm, list(gm.graph.nodes)[1]) == activation


@pytest.mark.parametrize(
    ("module", "activation"),
    [
        (nn.ReLU6(), Activation("relu6")),
        (nn.Hardtanh(0.0, 6.0), Activation("relu6")),
        (nn.Mish(), "Mish"),
        (nn.PReLU(), "PReLU"),
        (nn.Hardtanh(), "Hardtanh"),
        (nn.Sigmoid(), None),
        (nn.Softmax(1), None),
        (nn.Softmin(1), None),
    ],
)
def test_modules_that_are_activations(module: nn.Module, activation: Activation | str | None) -> None:
    gm = capture(nn.Sequential(module))
    assert activation_of(gm, list(gm.graph.nodes)[1]) == activation


@pytest.mark.parametrize(
    ("module", "norm"),
    [
        (nn.BatchNorm2d(4, track_running_stats=False), Norm(True)),
        (nn.SyncBatchNorm(4), Norm(True, "0.running_mean", sync=True)),
        (nn.BatchNorm1d(4), Norm(True, "0.running_mean")),
        (nn.LayerNorm(4), Norm(False)),
        (nn.GroupNorm(2, 4), Norm(False)),
        (nn.RMSNorm(4), Norm(False)),
        (nn.InstanceNorm2d(4), Norm(False)),
        (nn.ReLU(), None),
    ],
)
def test_modules_that_are_norms(module: nn.Module, norm: Norm | None) -> None:
    gm = capture(nn.Sequential(module))
    assert norm_of(gm, list(gm.graph.nodes)[1]) == norm


class FunctionalNorm(nn.Module):
    def __init__(self, *, training: bool) -> None:
        super().__init__()
        self.inner = nn.BatchNorm2d(4)
        self.always = training

    def forward(self, x: Tensor) -> Tensor:
        n = self.inner
        return F.batch_norm(x, n.running_mean, n.running_var, training=self.always, momentum=0.3, eps=0.01)


def test_functions_that_are_norms() -> None:
    for training, key in ((False, "inner.running_mean"), (True, None)):
        gm = capture(FunctionalNorm(training=training))
        found = next(n for n in gm.graph.nodes if n.target is F.batch_norm)
        assert norm_of(gm, found) == Norm(True, key, 0.01, 0.3)
    graph = fx.Graph()
    x, mean, var = graph.placeholder("x"), graph.get_attr("mean"), graph.get_attr("var")
    root = {"mean": torch.zeros(4), "var": torch.ones(4)}
    for rest, expected in (
        ((None, None, False, 0.3, 0.01), Norm(True, "mean", 0.01, 0.3)),
        ((None, None, False, None, 0.01), Norm(True, "mean", 0.01, None)),
        ((None, None, True), Norm(True, None)),
        ((), Norm(True, "mean", 1e-5, 0.1)),
    ):
        normed = graph.call_function(F.batch_norm, (x, mean, var, *rest))
        assert norm_of(fx.GraphModule(root, graph), normed) == expected
    for function in (F.layer_norm, F.rms_norm, torch.layer_norm):
        graph = fx.Graph()
        normed = graph.call_function(function, (graph.placeholder("x"), (4,)))
        assert norm_of(fx.GraphModule({}, graph), normed) == Norm(False)


def test_render(gm: fx.GraphModule) -> None:
    lines = render_graph(gm).splitlines()
    assert lines[:2] == ["x = placeholder x ()", "conv = conv: Conv2d(3, 4, kernel_size=(1, 1), stride=(1, 1)) (x)"]
    assert "view = call_method view (contiguous, getitem)" in lines
    assert lines[-2:] == ["add_1 = call_function add (add, sum_1)", "output = output output (add_1)"]
