import pytest
import torch
from torch import Tensor, fx, nn

from nbcompile.core.graph.replace import keep_what_is_read


class Reads(nn.Module):
    """Calls a layer, reads one tensor of a norm that is not called, and keeps more than that."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.unread = nn.Conv2d(3, 4, 1)
        self.n = nn.BatchNorm2d(4)
        self.n.inner = nn.Linear(2, 2)
        self.n.register_buffer("mask", torch.ones(4), persistent=False)
        self.s = nn.Softmax(1)
        self.s.register_buffer("mask", torch.ones(4), persistent=False)
        self.register_buffer("scale", torch.ones(()), persistent=False)
        self.register_buffer("unread_scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.s(self.a(x)) * self.scale
        return y * (self.n.weight * self.n.mask * self.s.mask).view(1, -1, 1, 1)


def held(module: nn.Module) -> dict[str, set[str]]:
    return {
        name: {*m._parameters, *m._buffers, *m._modules, *(f"-{x}" for x in m._non_persistent_buffers_set)}
        for name, m in module.named_modules()
    }


def buffer_reading_graph(model: nn.Module) -> fx.GraphModule:
    graph = fx.Tracer().trace(model)
    return fx.GraphModule(model, graph)


def test_what_is_not_read_goes_and_the_model_keeps_it() -> None:
    model, x = Reads().eval(), torch.randn(2, 3, 5, 5)
    before, wanted = held(model), model(x)
    gm = buffer_reading_graph(model)
    for name in ("a", "n", "s", "unread"):
        gm.add_module(name, model.get_submodule(name))  # as a graph module has them where a child is called, too
    gm.register_buffer("unread_scale", model.unread_scale)
    for name in ("scale", "unread_scale"):
        gm._non_persistent_buffers_set.add(name)
    order = [name for name, _ in gm.named_children()]
    keep_what_is_read(gm)
    assert held(model) == before
    assert torch.equal(gm(x), wanted)
    assert gm.a is model.a
    assert gm.s is model.s  # called: it is taken whole
    assert held(gm) == {
        "": {"a", "n", "s", "scale", "-scale"},
        "a": {"weight", "bias"},
        "n": {"weight", "mask", "-mask"},
        "s": {"mask", "-mask"},
    }
    assert [name for name, _ in gm.named_children()] == [name for name in order if name != "unread"]
    assert type(gm.n) is nn.Module
    assert gm.n.weight is model.n.weight
    assert not gm.n.training


@pytest.mark.parametrize("value", [3, "text"])
def test_a_plain_value_that_is_read_stays(value: object) -> None:
    inner = nn.Module()
    inner.number, inner.other = value, 5
    root = nn.Module()
    root.inner = inner
    graph = fx.Graph()
    graph.output(graph.get_attr("inner.number"))
    gm = fx.GraphModule(root, graph)
    gm.inner.other = 5
    keep_what_is_read(gm)
    assert gm() == value
    assert not hasattr(gm.inner, "other")
