import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbcompile.core.blocks import sites
from nbcompile.core.errors import CaptureError, PreconditionError
from nbcompile.core.graph.nodes import activation_of, calls, norm_of, readers
from nbcompile.core.tracing.capture import capture
from nbcompile.core.tracing.observe import observe
from nbcompile.passes import ExpandSites

X = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))


@dataclass
class Outcome:
    logits: Tensor
    hidden: list[Tensor]


class Net(nn.Module):
    """Control flow on values, a loop on a buffer, functions, in-place writes, containers."""

    def __init__(self, also: str = "") -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.loop, self.second = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.never = nn.Conv2d(3, 4, 1)
        self.register_buffer("rounds", torch.tensor(2))
        self.drop = nn.Dropout(0.5)
        self.seen: list[Tensor] = []
        self.also = also

    def forward(self, x: Tensor) -> Tensor | Outcome:
        self.get_buffer("rounds").add_(0)
        if x.mean() > 1e9:
            return self.never(x)  # type: ignore[no-any-return]
        y = self.conv(x)
        z = self.drop(F.relu(self.norm(y)))
        match self.also:
            case "functional":
                z = z + y
            case "list":
                z = torch.cat([z, y], 1)[:, :4]
            case "keyword":
                z = torch.add(input=z, other=y)
            case "write":
                z[0] = y[0]
            case "numpy":
                z = z * float(y.sum().item())
            case "output":
                return Outcome(z, [y])
            case "shape":
                z = z.view(y.shape[0], -1).view(y.size()) * len(y)
        i = 0
        while i < int(self.get_buffer("rounds")):
            z = F.relu_(self.second(self.loop(z)))
            i += 1
        return z


@pytest.mark.parametrize(
    ("also", "only_the_norm"),
    [
        ("", True),
        ("shape", True),  # asking for a shape is no reading
        ("functional", False),
        ("list", False),
        ("keyword", False),
        ("write", False),
        ("numpy", False),
        ("output", False),
    ],
)
def test_all_readers_are_seen(also: str, only_the_norm: bool) -> None:
    model = Net(also)
    with pytest.raises(CaptureError, match="Net cannot be traced"):
        capture(model, (X,))
    gm = observe(model, (X,))
    gm.graph.lint()
    (node,) = calls(gm)[model.conv]
    assert all(norm_of(gm, reader) for reader in readers(node)) == only_the_norm
    ExpandSites(["conv"])(gm)
    spec = sites(gm)["conv"].spec  # one path is no proof: another may read the layer without its norm
    assert (spec.inner, spec.absorbers, spec.activation.name) == ("scale", (), "relu")


def test_a_layer_in_a_loop_is_called_as_often_as_it_ran() -> None:
    model = Net()
    gm = observe(model, (X,))
    nodes = calls(gm)
    assert len(nodes[model.loop]) == 2
    assert model.never not in nodes
    assert all(norm_of(gm, reader) for node in nodes[model.loop] for reader in readers(node))
    names = [node.target for node in gm.graph.nodes if activation_of(gm, node)]
    assert len(names) == 3


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        assert x.mean() < 1e9
        n, y = self.norm, self.conv(x)
        y = F.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias, False, 0.1, n.eps)
        tokens = y.flatten(2).transpose(1, 2)
        out: Tensor = self.attention(tokens, tokens, value=tokens)[0]
        return out.relu_()


def test_leaf_modules_are_whole_and_functions_keep_their_tensors() -> None:
    gm = observe(Functional(), (X,))
    assert [node.target for node in gm.graph.find_nodes(op="get_attr")] == [
        "norm.running_mean",
        "norm.running_var",
        "norm.weight",
        "norm.bias",
    ]
    (norm,) = (found for node in gm.graph.nodes if (found := norm_of(gm, node)))
    assert norm.running_mean == "norm.running_mean"
    (attention,) = gm.graph.find_nodes(op="call_module", target="attention")
    assert attention.kwargs == {"value": attention.args[0]}


def test_the_model_is_left_as_it_was() -> None:
    model = Net().train()
    model.norm.eval()
    model.conv.register_forward_hook(lambda *_: None)
    before, kept, random = copy.deepcopy(model.state_dict()), X.clone(), torch.get_rng_state()
    rounds = model.get_buffer("rounds")
    observe(model, (X,))
    assert torch.equal(X, kept)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.get_buffer("rounds") is rounds
    assert (model.training, model.norm.training, model.loop.training) == (True, False, True)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()].count(0) == 6
    assert len(model.conv._forward_hooks) == 1


def test_a_model_that_does_not_run() -> None:
    with pytest.raises(PreconditionError, match=r"Net does not run on the example input: RuntimeError: .*channels"):
        observe(Net(), (torch.randn(1, 7, 4, 4),))


def test_what_was_observed_cannot_be_run() -> None:
    with pytest.raises(PreconditionError, match="observed in one run is not the model and cannot be run"):
        observe(Net(), (X,))(X)


def test_a_leaf_that_fails_and_is_caught_hides_nothing() -> None:
    class Catches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wrong, self.right = nn.Linear(99, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.wrong(x)
            except RuntimeError:
                return self.right(x).relu()

    gm = observe(Catches(), (torch.ones(1, 3),))
    (output,) = gm.graph.find_nodes(op="output")
    assert [node.name for node in output.all_input_nodes] == ["relu"]


def test_what_a_leaf_calls_gets_its_keywords() -> None:
    """``ceil_mode`` is one: without it the map, and what the linear layer takes, would be smaller."""
    model = nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(3 * 3, 2))
    gm = observe(model, (torch.rand(1, 1, 5, 5),))
    assert [node.target for node in gm.graph.find_nodes(op="call_module")] == ["0", "1", "2"]
