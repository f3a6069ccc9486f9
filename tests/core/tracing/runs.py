"""Running a network under the recorder, and its graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from nbcompile.core.tracing.call import Call
from nbcompile.core.tracing.record import record
from nbcompile.core.tracing.recording import Recording
from nbcompile.core.tracing.rig import Rig

X = torch.randn(2, 3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def recorded(
    model: nn.Module, *args: Any, sizes: bool = True, opaque: tuple[str, ...] = (), **kwargs: Any
) -> Recording:
    call = Call.of(args, kwargs)
    assert call is not None
    return record(Rig(model), call, call.tensors(args, kwargs) or [], sizes=sizes, opaque=opaque)


def written(one: Recording) -> list[tuple[str, Any]]:
    return [(node.op, node.target) for node in one.graph.nodes]


def run(model: nn.Module, one: Recording, *inputs: Tensor) -> Any:
    """The graph's output."""
    root = nn.Module()
    root.__dict__.update(model.__dict__, _buffers={**model._buffers, **one.constants})
    one.graph.lint()
    with torch.no_grad():
        return fx.Interpreter(root, graph=one.graph).run(*(x.clone() for x in inputs), enable_io_processing=False)


def check(model: nn.Module, *args: Any, other: Any = None, **kwargs: Any) -> Recording:
    """Records, and compares graph and model on the inputs of the run and on another."""
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    given = args[0].clone()
    one = recorded(model, *args, **kwargs)
    assert one.refusal is None
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(args[0], given)
    for x in (args[0], -2 * args[0].flip(0) if other is None else other):
        with torch.no_grad():
            wanted = model(x.clone(), *args[1:], **kwargs)
        assert torch.equal(run(model, one, x, *(a for a in args[1:] if isinstance(a, Tensor))), wanted)
    return one


class Does(nn.Module):
    """Does ``what`` with itself, its input, and whatever else it is given."""

    def __init__(self, what: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.what, self.weight = what, nn.Parameter(torch.rand(3, 1, 1).double() + 1)
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Any, *more: Any) -> Any:
        return self.what(self, x, *more)


def branch(m: Any, x: Tensor) -> Tensor:
    return x * m.weight if x.sum() > 1e9 else x / m.weight


class Net(nn.Module):
    """Does ``what`` with a layer of its own, its input, and a parameter."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.conv, self.weight = nn.Conv2d(3, 3, 1).double(), nn.Parameter(torch.rand(3, 1, 1).double() + 1)
        self.register_buffer("table", torch.arange(1.0, 4).double().view(3, 1, 1))
        self.plain = torch.ones(1).double()
        self.what = what

    def forward(self, x: Tensor) -> Any:
        return self.what(self, x)
