from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx._lazy_graph_module import _LazyGraphModule

from nbcompile.core.tracing.call import SLOT, Call
from nbcompile.core.tracing.capture import capture

A, B = torch.zeros(1), torch.ones(2)


class Module(nn.Module):
    def forward(self, x: Any, sizes: Any = None, *rest: Any, mask: Any = None, scale: float = 1.0) -> Any:
        return x


def called(*args: Any, **kwargs: Any) -> Call:
    call = Call.of(args, kwargs)
    assert call is not None
    return call


def test_tensors_are_found_in_any_structure() -> None:
    call = called({"a": A, "b": [B, None]}, (3, A), scale=2.0)
    assert call.leaves == (SLOT, SLOT, None, 3, SLOT, 2.0)
    found = call.tensors(({"a": B, "b": [A, None]}, (3, B)), {"scale": 2.0})
    assert found is not None
    assert [id(x) for x in found] == [id(B), id(A), id(B)]
    assert call.filled("abc") == (({"a": "a", "b": ["b", None]}, (3, "c")), {"scale": 2.0})


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((A, A), {}),
        ((A,), {"scale": 1.0}),
        ((None,), {"scale": 2.0}),
        ((A,), {"scale": 2}),
        ((A,), {"scale": None}),
        ((A,), {"scale": A}),
        (([A],), {"scale": 2.0}),
        ((), {"x": A, "scale": 2.0}),
    ],
)
def test_another_kind_of_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert called(A, scale=2.0).tensors(args, kwargs) is None


def test_one_is_not_true() -> None:
    assert called(A, 1).tensors((A, True), {}) is None
    assert called(A, 1).tensors((A, 1), {}) == [A]


def test_other_objects_are_no_call() -> None:
    assert Call.of((A, object()), {}) is None
    assert Call.of((), {"hook": print}) is None


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (called(A), ["x"]),
        (called([A, A], 3), ["x_0", "x_1"]),
        (called(OrderedDict([("0", A), ("pool", A)]), A), ["x_0", "x_pool", "sizes"]),
        (called(A, None, A, mask=A), ["x", "rest_2", "mask"]),
        (called({"a b": A, "a-b": A}), ["x_a_b", "x_a_b_"]),
    ],
)
def test_slots_are_named_after_parameters(call: Call, names: list[str]) -> None:
    assert call.names(Module()) == names


def test_required() -> None:
    class Needs(nn.Module):
        def forward(self, x: Tensor, y: Tensor, z: Any = None, *, w: Tensor, v: int = 0, **rest: Any) -> Tensor:
            return x

    call = Call.required(Needs())
    assert call == called(A, A, w=A)
    assert call.names(Needs()) == ["x", "y", "w"]
    assert Call.required(Module()) is None  # it takes any number
    assert Call.positional(2) == called(A, A)


def test_a_graph_that_has_not_run_says_what_it_takes() -> None:
    """Its code is written when it first runs; until then its forward takes anything."""
    gm = capture(Module(), (A,))
    assert isinstance(gm, _LazyGraphModule)
    assert Call.required(gm) == called(A)
    assert called(A).names(capture(Module(), (A,))) == ["x"]
