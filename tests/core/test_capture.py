from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F

import nbcompile
from nbcompile import zoo
from nbcompile.core.blocks import Expanded
from nbcompile.core.capture import capture, eval_mode, is_leaf
from nbcompile.core.errors import CaptureError
from nbcompile.core.numerics import relative_error
from nbcompile.testing import scramble_

X = torch.randn(2, 3, 33, 33, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, 2)
        self.auxiliary = nn.Linear(4, 2)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: Tensor, mask: Tensor | None = None, hook: Any = None, *, tail: bool = False) -> Any:
        y = F.dropout(self.conv(x).mean((2, 3)), training=self.training) * (1 + self.get_buffer("scale"))
        if mask is not None:
            y = y * mask
        if hook is not None:
            y = hook(y)
        out = self.head(y)
        return (out, self.auxiliary(y)) if self.training or tail else out


def test_eval_mode_is_captured_and_left() -> None:
    model = Net()
    model.head.eval()
    gm = capture(model, 1)
    assert [m.training for m in (model, model.conv, model.head, model.auxiliary)] == [True, True, False, True]
    assert gm.conv is model.conv
    assert not hasattr(gm, "auxiliary")
    assert torch.equal(gm(X), model.eval()(X))


def test_what_is_computed_from_a_buffer_follows_it() -> None:
    model = Net().eval()
    gm = capture(model, 1)
    before = gm(X)
    model.get_buffer("scale").mul_(3)
    assert torch.equal(gm(X), model(X))
    assert not torch.equal(gm(X), before)


def test_inputs_beyond_those_given_take_their_defaults() -> None:
    model, mask = Net().eval(), torch.rand(2, 4)
    assert torch.equal(capture(model, 1)(X), model(X))
    gm = capture(model, 2)
    assert [node.name for node in gm.graph.find_nodes(op="placeholder")] == ["x", "mask"]
    assert torch.equal(gm(X, mask), model(X, mask))


def test_blocks_stay_whole() -> None:
    giant = nbcompile.expand(zoo.dscnn(), torch.randn(2, 1, 8, 8), where="all")
    gm = capture(giant, 1)
    assert (
        sum(isinstance(gm.get_submodule(str(n.target)), Expanded) for n in gm.graph.find_nodes(op="call_module")) == 5
    )


def test_leaves() -> None:
    assert is_leaf(nn.Conv2d(3, 3, 1), "conv")
    assert is_leaf(nn.MultiheadAttention(4, 2), "attention")
    assert not is_leaf(nn.Sequential(), "features")
    assert not is_leaf(Net(), "net")


def test_a_graph_module_is_its_own_capture() -> None:
    first = capture(Net(), 1)
    second = capture(first, 1)
    assert second.graph is not first.graph
    assert second.code == first.code
    assert second.conv is first.conv


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("torchvision", "mobilenet_v3_small"),
        ("torchvision", "shufflenet_v2_x0_5"),
        ("torchvision", "squeezenet1_1"),
        ("torchvision", "resnet18"),
        ("timm", "mobilenetv3_small_050"),
        ("timm", "efficientnet_b0"),
        ("timm", "resnet10t"),
        ("timm", "convnext_atto"),
    ],
)
def test_libraries_networks(library: str, name: str) -> None:
    build = getattr(torchvision.models, name) if library == "torchvision" else lambda: timm.create_model(name)
    model = scramble_(build()).eval()
    with torch.no_grad():
        assert relative_error(capture(model, 1)(X), model(X)) <= 1e-6


def test_timms_norms_are_opened() -> None:
    gm = capture(nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4)), 1)
    assert any(node.target is F.batch_norm for node in gm.graph.nodes)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError


@pytest.mark.parametrize(
    ("model", "what"),
    [
        (Branching(), "TraceError: symbolically traced variables cannot be used as inputs to control flow"),
        (nn.Sequential(nn.Sequential(Branching())), "TraceError"),
        (Failing(), "ValueError: no message"),
    ],
)
def test_what_cannot_be_traced_is_placed(model: nn.Module, what: str) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(model, 1)
    message = str(caught.value)
    assert message.startswith(f"{type(model).__name__} cannot be traced into a graph: {__file__}:")
    assert f" in forward: {what}" in message
    assert message.endswith("independent of tensor values, or name the layers to expand with where=[...]")
    assert model.training


def test_eval_mode_calls_no_eval_of_the_models_own() -> None:
    """A model's own ``eval`` may merge weights."""

    class Merging(nn.Module):
        def train(self, mode: bool = True) -> "Merging":
            raise RuntimeError("merged")

    model = nn.Sequential(Merging(), nn.Dropout())
    with eval_mode(model):
        assert not any(m.training for m in model.modules())
    assert all(m.training for m in model.modules())
    with pytest.raises(KeyError), eval_mode(model):
        raise KeyError
    assert all(m.training for m in model.modules())


ASSERTING = """
class Asserting(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.conv, self.how = nn.Conv2d(3, 4, 1), how

    def forward(self, x):
        if self.how == "plain":
            assert x.shape[1] == 3
        elif self.how == "message":
            assert x.shape[1] == self.conv.in_channels, f"{x.shape[1]} channels"
        elif x.shape[1] == 3:
            raise ValueError("a choice, no assert")
        return self.conv(x)
"""


def asserting(how: str) -> nn.Module:
    """Compiled here: pytest rewrites the asserts of test modules."""
    space: dict[str, Any] = {"nn": nn}
    exec(compile(ASSERTING, "asserting.py", "exec"), space)
    model: nn.Module = space["Asserting"](how)
    return model


@pytest.mark.parametrize("how", ["plain", "message"])
def test_an_assert_on_a_shape_is_no_control_flow(how: str) -> None:
    assert capture(asserting(how)).graph.find_nodes(op="call_module", target="conv")


def test_a_choice_that_raises_is_control_flow() -> None:
    with pytest.raises(CaptureError, match=r"asserting\.py:\d+ in forward"):
        capture(asserting("choice"))
