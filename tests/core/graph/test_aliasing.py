from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nbcompile.core.graph.aliasing import Aliasing, writes_in_place
from tests.symbolic import capture


class Net(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.act, self.written = nn.ReLU(inplace=True), forward
        self.register_buffer("count", torch.zeros(3))

    def forward(self, x: Tensor) -> Any:
        return self.written(self, x)


def graph(forward: Callable[[Any, Tensor], Any]) -> fx.GraphModule:
    return capture(Net(forward))


def iadd(m: Any, x: Tensor) -> Tensor:
    x += 1
    return x


def setitem(m: Any, x: Tensor) -> Tensor:
    x[:, 0] = 1
    return x


WRITES: list[Callable[[Any, Tensor], Any]] = [
    *(lambda m, x: m.act(x), lambda m, x: x.relu_(), lambda m, x: torch.relu_(x), lambda m, x: F.relu(x, True)),
    *(lambda m, x: F.rrelu(x, 0.1, 0.3, False, True), lambda m, x: F.hardtanh(x, -1, 1, True)),
    *(lambda m, x: F.elu(x, 1.0, True), lambda m, x: F.silu(x, inplace=True), lambda m, x: torch.add(x, 1, out=x)),
    *(iadd, setitem),
]


@pytest.mark.parametrize("forward", WRITES)
def test_writes(forward: Callable[[Any, Tensor], Any]) -> None:
    gm = graph(forward)
    assert [writes_in_place(gm, node) for node in gm.graph.nodes if node.op.startswith("call")][-1]
    again = graph(lambda m, x: (forward(m, x), x * 2))
    assert {node.name for node in Aliasing(again).changed} == {"x"}


@pytest.mark.parametrize(
    "forward", [lambda m, x: x + 1, lambda m, x: F.relu(x, False), lambda m, x: x.__abs__(), lambda m, x: m.count]
)
def test_writes_nothing(forward: Callable[[Any, Tensor], Any]) -> None:
    gm = graph(forward)
    assert not any(writes_in_place(gm, node) for node in gm.graph.nodes)


@pytest.mark.parametrize(
    "view",
    [
        *(lambda x: x.view(-1), lambda x: x[:, 1:], lambda x: x.chunk(2)[0], lambda x: x.T, lambda x: x.detach()),
        *(
            lambda x: x.cpu(),
            lambda x: torch.einsum("ij->ji", x),
            lambda x: F.alpha_dropout(x, 0.5),
            lambda x: x.long(),
        ),
        *(lambda x: torch.as_strided(x, (1,), (1,)), lambda x: x.squeeze().unsqueeze(0), lambda x: F.dropout(x)),
    ],
)
def test_a_view_changes_what_it_is_a_view_of(view: Callable[[Tensor], Tensor]) -> None:
    aliasing = Aliasing(graph(lambda m, x: (view(x).mul_(2), x + 1)))
    assert "x" in {node.name for node in aliasing.changed}
    assert [node.name for node in aliasing.writers] == ["mul_"]


@pytest.mark.parametrize("fresh", [lambda x: x + 1, lambda x: x.clone(), lambda x: F.relu(x), lambda x: x.mean()])
def test_new_memory_is_its_own(fresh: Callable[[Tensor], Tensor]) -> None:
    assert not Aliasing(graph(lambda m, x: (fresh(x).mul_(2), x + 1))).changed


def test_what_nobody_reads_again_is_written_and_not_changed() -> None:
    aliasing = Aliasing(graph(lambda m, x: x.mul_(2) + 1))
    assert (aliasing.changed, aliasing.writers) == ({}, {})
    assert {node.name for node in aliasing.written} == {"x", "mul_"}


def test_numbers_are_no_memory() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        n = x.shape[0]
        n += 1
        return x.view(-1), n

    assert not Aliasing(graph(forward)).changed


def test_a_buffer_written_through_a_view() -> None:
    aliasing = Aliasing(graph(lambda m, x: (m.count.view(-1).add_(1), x + m.count)))
    assert {node.name for node in aliasing.written} == {"count", "view", "add_"}
    (count,) = (node for node in aliasing.changed if node.name == "count")
    aliasing.forget(count)
    assert count not in aliasing.changed


def test_who_shares_the_memory_of_a_value_before_it() -> None:
    class Views(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            part, _ = y.chunk(2, 1)
            return part.relu_() * part.sigmoid()

    gm = capture(Views())
    shares = {node.name for node in gm.graph.nodes if node.op != "output" and Aliasing(gm).shares(node)}
    assert shares == {"chunk", "getitem", "getitem_1", "relu_"}
