import inspect
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

import nbcompile
from nbcompile import zoo
from nbcompile.core.blocks import Expanded
from nbcompile.core.errors import CaptureError, PreconditionError
from nbcompile.core.graph.guards import require_sizes
from nbcompile.core.numerics import relative_error
from nbcompile.core.running import eval_mode
from nbcompile.core.tracing.capture import capture, capture_call, opaque
from nbcompile.testing import scramble_
from tests.core.tracing.scripted import scripted

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
    gm = capture(model, (X,))
    assert [m.training for m in (model, model.conv, model.head, model.auxiliary)] == [True, True, False, True]
    assert gm.conv is model.conv
    assert not hasattr(gm, "auxiliary")
    assert torch.equal(gm(X), model.eval()(X))


def test_what_is_computed_from_a_buffer_follows_it() -> None:
    model = Net().eval()
    gm = capture(model, (X,))
    before = gm(X)
    model.get_buffer("scale").mul_(3)
    assert torch.equal(gm(X), model(X))
    assert not torch.equal(gm(X), before)


def test_inputs_beyond_those_given_take_their_defaults() -> None:
    model, mask = Net().eval(), torch.rand(2, 4)
    assert torch.equal(capture(model, (X,))(X), model(X))
    gm = capture(model, (X, mask))
    assert [node.name for node in gm.graph.find_nodes(op="placeholder")] == ["x", "mask"]
    assert torch.equal(gm(X, mask), model(X, mask))


def test_blocks_stay_whole() -> None:
    giant = nbcompile.expand(zoo.dscnn(), torch.randn(2, 1, 8, 8), where="all")
    gm = capture(giant, (torch.randn(2, 1, 8, 8),))
    assert (
        sum(isinstance(gm.get_submodule(str(n.target)), Expanded) for n in gm.graph.find_nodes(op="call_module")) == 5
    )


def test_a_graph_module_is_its_own_capture() -> None:
    first = capture(Net(), (X,))
    second = capture(first)
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
        ("timm", "mobilevitv2_050"),
    ],
)
def test_libraries_networks(library: str, name: str) -> None:
    build = getattr(torchvision.models, name) if library == "torchvision" else lambda: timm.create_model(name)
    model = scramble_(build()).eval()
    with torch.no_grad():
        assert relative_error(capture(model, (X,))(X), model(X)) <= 1e-6


@pytest.mark.parametrize("norm", [BatchNormAct2d(4), FrozenBatchNormAct2d(4), FrozenBatchNorm2d(4), nn.BatchNorm2d(4)])
def test_norms_are_opened(norm: nn.Module) -> None:
    gm = capture(nn.Sequential(nn.Conv2d(3, 4, 1), norm, Branching()), (X,))
    assert list(opaque(gm)) == ["2"]
    assert (gm.graph.find_nodes(op="call_module", target="1") == []) == (type(norm) is not nn.BatchNorm2d)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Around(nn.Module):
    """Gives its conv's weight away before its child fails, so that the tracer has handed it out already."""

    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.conv, self.child, self.bias = nn.Conv2d(3, 3, 1), child, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.child(self.conv(x) + self.bias) * self.bias + self.conv.weight.sum()


class Deep(nn.Module):
    """Fails behind a call and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 3, 1), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) * self.scale
        return y if y.sum() > 0 else -y


class Pair(nn.Module):
    """Of no use for a parent that asks it what it is."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x, -x) if x.sum() > 0 else (-x, x)


class Asking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        out = self.pair(x)
        return out[0] if len(out) == 2 else x


class Unpacking(Asking):
    def forward(self, x: Tensor) -> Tensor:
        a, b = self.pair(x)
        return a - b  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), Branching())), ["0.1"]),
        (Around(Deep()), ["child"]),
        (nn.Sequential(Around(Around(Deep())), Deep()), ["0.child.child", "1"]),
        (nn.Sequential(Asking(), Unpacking()), ["0.pair", "1.pair"]),
    ],
)
def test_the_innermost_module_that_cannot_be_traced_is_opaque(model: nn.Module, wanted: list[str]) -> None:
    model.eval()
    gm = capture(model, (X,))
    assert list(opaque(gm)) == wanted
    assert all(gm.get_submodule(name) is model.get_submodule(name) for name in wanted)
    gm.graph.lint()
    assert all(node.users or node.target is require_sizes for node in gm.graph.nodes if node.op != "output")
    for x in (X, -X):
        assert torch.equal(gm(x), model(x))


def test_a_shared_opaque_module_is_one() -> None:
    child = Deep()
    gm = capture(nn.Sequential(child, nn.ReLU(), child), (X,))
    assert list(opaque(gm)) == ["0"]
    assert len(gm.graph.find_nodes(op="call_module", target="0")) == 2


@pytest.mark.parametrize("how", ["hook", "pre-hook", "forward"])
def test_what_is_changed_on_the_object_stays_whole(how: str) -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1)), nn.ReLU()).eval()
    match how:
        case "hook":
            model[0].register_forward_hook(lambda *args: args[-1] * (2 if args[-1].sum() > 0 else 3))
        case "pre-hook":
            model[0].register_forward_pre_hook(lambda _, args: (args[0] * 2,))
        case "forward":
            model[0].forward = lambda x: -x
    gm = capture(model, (X,))
    assert list(opaque(gm)) == ["0"]
    assert torch.equal(gm(X), model(X))


def test_a_call_says_what_is_traced() -> None:
    model, mask = Net().eval(), torch.rand(2, 4)
    gm = capture_call(model, ((X,), {"mask": mask, "tail": True})).graph
    assert gm is not None
    assert [node.name for node in gm.graph.find_nodes(op="placeholder")] == ["x", "mask"]
    found, wanted = gm(X, mask), model(X, mask, tail=True)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert torch.equal(capture(model)(X), model(X))  # what has a default keeps it


class Summing(nn.Module):
    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        return first + others[0] + others[1]


def test_any_number_of_inputs() -> None:
    gm = capture(Summing(), (X, X, X))
    assert [node.name for node in gm.graph.find_nodes(op="placeholder")] == ["first", "others_1", "others_2"]
    assert torch.equal(gm(X, X, X), 3 * X)
    with pytest.raises(
        CaptureError, match=r"^what Summing takes cannot be guessed from its layers: give an example input "
    ):
        capture(Summing())


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("as it does")


@pytest.mark.parametrize("inputs", [None, (X,)])
def test_what_cannot_be_said_is_placed(inputs: Any) -> None:
    model = Branching()
    with pytest.raises(CaptureError) as caught:
        capture(model, inputs)
    line = inspect.getsourcelines(Branching.forward)[1] + 1
    assert str(caught.value) == (
        f"Branching cannot be traced into a graph: {__file__}:{line} in forward: it branches on a value, which depends "
        "on the inputs; make that code independent of the values of tensors"
    )
    assert model.training


def test_what_does_not_run() -> None:
    with pytest.raises(PreconditionError, match=r"^Failing does not run on the example input: ValueError: as it does$"):
        capture(Failing(), (X,))
    with pytest.raises(
        CaptureError,
        match=r"^what Failing takes cannot be guessed from its layers: give an example input "
        r"\(example_input=\.\.\., or --input\)$",
    ):
        capture(Failing())


def test_what_is_called_with_more_than_tensors() -> None:
    with pytest.raises(CaptureError, match=r"^Net takes more than tensors, which a graph as a whole does not$"):
        capture(Net(), (X, None))
    with pytest.raises(CaptureError, match=r"^Net is called with what is neither tensor nor constant$"):
        capture(Net(), (X, None, print))


def test_torchscript_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"is TorchScript, which no graph shows: give the module it was made from$"):
        capture(scripted(nn.Sequential(nn.Conv2d(3, 4, 1))), (X,))


def test_a_name_that_graphs_need() -> None:
    model = nn.Sequential()
    model.add_module("graph", nn.ReLU())
    with pytest.raises(CaptureError) as caught:
        capture(model, (X,))
    assert str(caught.value) == (
        "Sequential has a child called 'graph', a name that torch.fx.GraphModule needs for itself: rename it"
    )


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
