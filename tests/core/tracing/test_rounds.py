"""Runs until they agree, at other sizes and batches, with what is opaque whole; what holds for less is guarded."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.errors import CaptureError, PreconditionError
from nbcompile.core.graph.guards import require_same_choice, require_sizes
from nbcompile.core.graph.ranks import DIMENSIONS
from nbcompile.core.tracing.capture import capture, capture_call, opaque
from tests.core.tracing.runs import Does, X

SIZES_MATTER = r"^'x' has the sizes \(3, 4, 9\) behind its batch, but the graph holds for \(3, 7, 5\) only: "


def agree(model: nn.Module, gm: nn.Module, *shapes: tuple[int, ...]) -> None:
    for shape in shapes:
        x = torch.randn(shape, dtype=torch.float64)
        with torch.no_grad():
            assert torch.equal(gm(x.clone()), model.eval()(x.clone()))


def plain(number: Any) -> int:
    return int(str(number))


class Refined(nn.Module):
    """All that a network does with sizes in arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1).double()

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = self.conv(x).reshape(b, -1, h * w).transpose(1, 2)
        y = y[:, : h // 2] + torch.linspace(0, 1, 4).double() * (w / 2)
        return y.expand(b, h // 2, 4).contiguous().view(b * (h // 2), 4) + c  # type: ignore[no-any-return]


def test_sizes_stay_what_they_are_of() -> None:
    model = Refined()
    gm = capture(model, (X,))
    assert not gm.graph.find_nodes(op="call_function", target=require_sizes)
    assert gm.graph.find_nodes(op="placeholder")[0].meta[DIMENSIONS] == 4
    agree(model, gm, (2, 3, 7, 5), (1, 3, 4, 9), (5, 3, 12, 2))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("number", [plain, math.sqrt, lambda n: [*range(99)][n]])
def test_sizes_that_could_not_be_followed_are_guarded(number: Callable[..., Any], batch: int) -> None:
    """Also at a batch of one, where twice the size may look like twice the batch."""
    model = Does(lambda m, x: x * number(x.shape[2]))
    gm = capture(model, (X[:batch],))
    agree(model, gm, (2, 3, 7, 5), (1, 3, 7, 5), (9, 3, 7, 5))
    with pytest.raises(PreconditionError, match=SIZES_MATTER):
        gm(torch.ones(2, 3, 4, 9).double())


def test_a_map_without_a_batch_is_guarded_where_nothing_else_was_tried() -> None:
    """Its first dimension are channels, of which the network takes no more."""
    model = Does(lambda m, x: torch.nn.functional.conv2d(x, m.weight[None]) * max(x.shape[-2:]))
    with torch.no_grad():
        gm = capture(model, (X[0],))
        assert torch.equal(gm(-X[0]), model(-X[0]))
    with pytest.raises(
        PreconditionError, match=r"^'x' has the sizes \(4, 9\) behind its batch, but the graph holds for"
    ):
        gm(torch.ones(3, 4, 9).double())


def test_choices_by_sizes_are_guarded() -> None:
    model = Does(lambda m, x: x * 2 if x.shape[2] > 5 else x * 3)
    gm = capture(model, (X,))
    assert len(gm.graph.find_nodes(op="call_function", target=require_same_choice)) == 1
    agree(model, gm, (2, 3, 7, 5), (1, 3, 6, 9))
    with pytest.raises(
        PreconditionError, match=r"test_rounds\.py:\d+ in <lambda>: the network chooses its way by the s"
    ):
        gm(torch.ones(2, 3, 5, 9).double())


def test_another_way_on_small_maps_does_not_hold_a_graph_to_the_example() -> None:
    """A map of 128 is tried at a quarter and at half the size; where the graph itself says no, nothing is unseen."""

    def seen(m: Any, x: Tensor) -> Tensor:
        return (x.roll(1, 2) if x.shape[2] < 40 else x) * m.weight

    def unseen(m: Any, x: Tensor) -> Tensor:
        return (x.roll(1, 2) if plain(x.shape[2]) == 32 else x) * m.weight

    x = torch.randn(1, 3, 128, 130, dtype=torch.float64)
    model = Does(seen)
    gm = capture(model, (x,))
    agree(model, gm, (1, 3, 128, 130), (3, 3, 64, 50))
    with pytest.raises(PreconditionError, match=r"in seen: the network chooses its way by the sizes"):
        gm(x[:, :, :32])
    model = Does(unseen)
    gm = capture(model, (x,))
    agree(model, gm, (1, 3, 128, 130), (3, 3, 128, 130))
    with pytest.raises(PreconditionError, match=r"^'x' has the sizes \(3, 32, 130\) behind its batch"):
        gm(x[:, :, :32])


def test_how_a_value_lies_in_memory_is_another_at_a_batch_of_one() -> None:
    def lies(m: Any, x: Tensor) -> Tensor:
        y = x.permute(1, 0, 2, 3)
        return (y * m.weight.mean() if y.is_contiguous() else y.flip(1)).permute(1, 0, 2, 3)

    model = Does(lies)
    with torch.no_grad():
        assert not torch.equal(model(X)[:1], model(X[:1]))
    with pytest.raises(CaptureError, match=r"test_rounds\.py:\d+ in lies: it calls (flip|mean) for one input and "):
        capture(model, (X,))


def test_choices_by_channels_are_settled() -> None:
    gm = capture(nn.Sequential(nn.Conv2d(3, 4, 1).double(), Does(lambda m, x: x if x.shape[1] == 4 else -x)), (X,))
    assert not gm.graph.find_nodes(op="call_function", target=require_same_choice)


def test_a_choice_by_a_size_that_is_guessed_is_no_graph() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Does(lambda m, x: x * 2 if x.shape[2] > 5 else x * 3))
    found = capture_call(model, None)
    assert found.graph is not None
    assert list(opaque(found.graph)) == ["1"]
    assert found.recording.opaque["1"].why == ("chooses its way by the size of its input, of which no example is known")


def test_the_whole_is_refused_where_the_part_that_differs_is_the_whole() -> None:
    model = Does(lambda m, x: x * (1 + (x.shape[0] == 1) + 2 * (x.shape[0] > 4)) * len(x) ** 2)
    with pytest.raises(CaptureError, match=r"in <lambda>: it gives mul the number 4 for one input and 9 for another; "):
        capture(model, (X,))


def test_a_number_that_only_looks_as_if_it_grew_with_the_batch() -> None:
    """Of two batches any two numbers may be proportional: a third one has to agree."""
    model = Does(lambda m, x: x * {2: 4, 3: 6}.get(len(x), 1))
    with pytest.raises(CaptureError, match=r"in <lambda>: it gives mul another value for another input; "):
        capture(model, (X,))
    by_size = Does(
        lambda m, x: x * (plain(x.shape[3]) // 5 + 1)
    )  # 2 at a batch of 2; 3 at one of 3, and twice the size
    gm = capture(by_size, (X,))
    agree(by_size, gm, (2, 3, 7, 5), (1, 3, 7, 5), (3, 3, 7, 5))
    with pytest.raises(PreconditionError, match=r"^'x' has the sizes \(3, 14, 10\) behind its batch"):
        gm(torch.ones(3, 3, 14, 10).double())
    grows = Does(lambda m, x: x * (2 * len(x)))
    agree(grows, capture(grows, (X,)), (2, 3, 7, 5), (1, 3, 7, 5), (6, 3, 4, 9))


def test_the_part_in_which_runs_differ_is_opaque() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Sequential(Does(lambda m, x: x * len(x) ** 2)))
    gm = capture(model, (X,))
    assert list(opaque(gm)) == ["1.0"]
    agree(model, gm, (2, 3, 7, 5), (1, 3, 4, 9), (5, 3, 4, 2))


class Router(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.flag = bool(x.mean() > 0)
        return x * 2


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router, self.conv = Router(), nn.Conv2d(3, 4, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.router(x))
        return y if self.router.flag else -y


def test_a_flag_that_is_kept_may_be_read_by_all_code_around() -> None:
    with pytest.raises(
        CaptureError, match=r"in forward: it calls 'router', which keeps 'flag', by which other code may"
    ):
        capture(Routed(), (X,))
    with pytest.raises(CaptureError, match=r"it calls '0', which keeps 'router.flag', by which other code may choose"):
        capture(nn.Sequential(Routed(), nn.ReLU()), (X,))


def test_a_network_that_gives_more_with_every_call_is_refused() -> None:
    def counts(m: Any, x: Tensor) -> Tensor:
        m.calls = getattr(m, "calls", 0) + 1
        return x * m.calls

    model = Does(counts)
    with pytest.raises(
        CaptureError, match=r"gives another output when it is called again, because it keeps 'calls' fr"
    ):
        capture(model, (X,))
    assert capture(model, (X,), proof=False).graph.find_nodes(op="placeholder")
    assert not hasattr(model, "calls")


def test_without_other_inputs_that_it_takes_one_run_is_all_there_is() -> None:
    def fixed(m: Any, x: Tensor) -> Tensor:
        if not torch.equal(x, X):
            raise ValueError("only this")
        return x * 2

    with pytest.raises(CaptureError, match="reads a value by equal"):
        capture(Does(fixed), (X,))
