"""The stand-in's tools, one by one: names, tensors, order, copies."""

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from nbcompile.core.errors import CheckpointError
from nbcompile.core.serialization.stand_in import StandIn, alias, fill, hollow, order, tie
from nbcompile.core.serialization.weight_files import EXTRA


def stand_in() -> StandIn:
    """Calls ``a.conv`` and reads ``table``."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_module("a.conv", (x,))
    graph.output(graph.call_function(torch.add, (y, graph.get_attr("table"))))
    with torch.device("meta"):
        root = {"a.conv": nn.Conv1d(2, 2, 1), "table": torch.empty(1)}
    return StandIn(root, graph, "StandIn")


def weights() -> dict[str, Tensor]:
    return {"a.conv.weight": torch.rand(2, 2, 1), "a.conv.bias": torch.rand(2), "head.0.weight": torch.rand(3)}


def filled(parameters: set[str] = frozenset({"head.0.weight"})) -> StandIn:  # type: ignore[assignment]
    gm = stand_in()
    fill(gm, weights(), {"table": torch.rand(1)}, parameters)
    return gm


def test_what_the_graph_does_not_read_is_kept_under_its_key() -> None:
    torch.manual_seed(3)
    gm = filled()
    torch.manual_seed(3)
    wanted = weights()
    assert set(gm.state_dict()) == set(wanted)  # a constant is not among the keys
    assert all(torch.equal(value, wanted[key]) for key, value in gm.state_dict().items())
    assert {key for key, _ in gm.named_parameters()} == {"a.conv.weight", "a.conv.bias", "head.0.weight"}
    assert not gm.get_parameter("head.0.weight").requires_grad
    assert [key for key, _ in gm.named_buffers()] == ["table"]
    x = torch.rand(1, 2, 5)
    torch.testing.assert_close(
        gm(x), nn.functional.conv1d(x, wanted["a.conv.weight"], wanted["a.conv.bias"]) + gm.table
    )
    buffer = filled(set())
    assert {key for key, _ in buffer.named_buffers()} == {"table", "head.0.weight"}
    assert "head.0.weight" in buffer.state_dict()


def test_filled_twice_it_holds_the_last() -> None:
    """First with what takes no memory, to see what it does; then with the weights."""
    gm = stand_in()
    last = weights()
    fill(gm, hollow(last), hollow({"table": torch.rand(1)}), {"head.0.weight"})
    assert {value.device.type for value in gm.state_dict().values()} == {"meta"}
    fill(gm, last, {"table": torch.ones(1)}, {"head.0.weight"})
    assert all(value is not None and torch.equal(value, last[key]) for key, value in gm.state_dict().items())
    assert float(gm.get_buffer("table")) == 1


def test_weights_of_another_shape() -> None:
    wrong = weights() | {"a.conv.weight": torch.rand(2, 3, 1)}
    with pytest.raises(CheckpointError) as caught:
        fill(stand_in(), wrong, {}, set())
    message = str(caught.value)
    assert message.startswith("the weights do not fit the recorded model: size mismatch for a.conv.weight: copying a")
    assert "\n" not in message


def test_hollow_keeps_all_but_the_numbers() -> None:
    record = torch.zeros(5, dtype=torch.uint8)
    found = hollow({"w": torch.ones(2, 3, dtype=torch.float16), f"block.{EXTRA}": record})
    assert (found["w"].device.type, found["w"].shape, found["w"].dtype) == ("meta", (2, 3), torch.float16)
    assert found[f"block.{EXTRA}"] is record


def test_further_names() -> None:
    gm = filled()
    alias(gm, "b", "a.conv")
    alias(gm, "c.d.e", "a")
    assert gm.get_submodule("b") is gm.get_submodule("a.conv") is gm.get_submodule("c.d.e.conv")
    alias(gm, "f", "nothing.here")  # its tensors come with their own keys
    assert "f" not in dict(gm.named_modules(remove_duplicate=False))


def test_copies_keep_everything() -> None:
    gm = filled()
    alias(gm, "b", "a.conv")
    for again in (copy.deepcopy(gm), copy.deepcopy(copy.deepcopy(gm))):
        assert isinstance(again, StandIn)
        assert list(again.state_dict()) == list(gm.state_dict())
        assert again.get_submodule("b") is again.get_submodule("a.conv")
        assert again.get_submodule("b") is not gm.get_submodule("b")
        assert "table" not in again.state_dict()  # still outside the keys
        x = torch.rand(1, 2, 5)
        assert torch.equal(again(x), gm(x))
        before = gm.get_parameter("head.0.weight").clone()
        again.get_parameter("head.0.weight").add_(1)
        assert torch.equal(gm.get_parameter("head.0.weight"), before)


def test_tied_weights() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    net.register_parameter("own", nn.Parameter(net["a"].weight.detach().clone()))
    with torch.no_grad():
        net["b"].weight.copy_(net["a"].weight)
    tie(
        net, {"b.weight": "a.weight", "c.weight": "a.weight", "own": "a.weight", "c.bias": "a.none", "a.none": "c.bias"}
    )
    assert net["b"].weight is net["a"].weight
    assert net.own is net["a"].weight
    assert net["c"].weight is not net["a"].weight  # trained apart
    assert net["c"].bias is not None
    assert list(net["b"]._parameters) == ["weight", "bias"]


def test_the_order_of_keys() -> None:
    net = nn.Module()
    net.add_module("z", nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)))
    net.add_module("a", nn.Linear(1, 1))
    net.register_parameter("m", nn.Parameter(torch.zeros(1)))
    net.register_buffer("k", torch.zeros(1))
    net.register_buffer("g", torch.zeros(1))
    net.add_module("nowhere", nn.Module())
    wanted = ["m", "k", "g", "a.bias", "a.weight", "z.1.running_var", "z.1.weight", "z.0.weight", "z.0.bias"]
    wanted += ["z.1.bias", "z.1.num_batches_tracked", "z.1.running_mean"]
    order(net, wanted)
    assert [name for name, _ in net.named_children()] == ["a", "z", "nowhere"]
    assert [name for name, _ in net.get_submodule("z").named_children()] == ["1", "0"]
    assert list(net._buffers) == ["k", "g"]
    assert list(net.get_submodule("a")._parameters) == ["bias", "weight"]
    assert list(net.get_submodule("z.1")._buffers) == ["running_var", "num_batches_tracked", "running_mean"]
    order(net, wanted[:3][::-1])
    assert list(net._buffers) == ["g", "k"]
