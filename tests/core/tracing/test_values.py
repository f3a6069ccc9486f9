"""Which node a tensor is, where code is, and what numbers and tensors are in a structure."""

import inspect
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from nbcompile.core.tracing.places import code_place
from nbcompile.core.tracing.values import bare, tensors_in, tensors_within
from tests.core.tracing.runs import Does, X, recorded

A, B = torch.zeros(1), torch.ones(2)


@dataclass
class Pair:
    first: Any
    second: Any


@pytest.mark.parametrize(
    ("value", "inside", "within"),
    [
        (A, 1, 1),
        ((A, [B, {A}], 3, "a"), 3, 3),
        ({"a": {"b": A}, "c": (B,)}, 2, 2),
        (Pair(A, [B]), 0, 2),
        ([Pair(A, Pair(B, A))], 0, 3),
        (nn.Linear(1, 1), 0, 0),
        (Pair, 0, 0),
        (None, 0, 0),
    ],
)
def test_tensors_in_structures_and_within_objects(value: Any, inside: int, within: int) -> None:
    assert len(list(tensors_in(value))) == inside
    assert len(list(tensors_within(value))) == within


def test_an_object_that_holds_itself_has_an_end() -> None:
    pair = Pair(A, None)
    pair.second = pair
    assert [x is A for x in tensors_within(pair)] == [True]


def test_numbers_that_torch_is_given_have_no_past() -> None:
    kinds: list[Any] = []

    def look(m: Any, x: Tensor) -> Tensor:
        h = x.shape[2]
        given = bare({"a": [h, (h / 2,)], "b": slice(h, None, 2), "c": x.shape, "d": "e"})
        kinds.extend([type(h), type(given["a"][0]), type(given["a"][1][0]), type(given["b"].start), given["d"]])
        kinds.extend([type(given["c"]), *map(type, given["c"])])
        return x

    recorded(Does(look), X)
    assert kinds[0] is not int
    assert kinds[1:] == [int, float, int, "e", torch.Size, int, int, int, int]


def test_the_place_is_that_of_the_innermost_code_that_is_not_torchs() -> None:
    def here() -> str:
        return code_place()

    line = inspect.getsourcelines(here)[1] + 1
    assert here() == f"{__file__}:{line} in here"
    assert nn.Sequential(Place())(A) == f"{__file__}:{inspect.getsourcelines(Place.forward)[1] + 1} in forward"


class Place(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return code_place()


def test_torchvision_is_not_torch() -> None:
    """A folder's name may begin with another's."""
    one = recorded(torchvision.ops.Permute([0, 1, 3, 2]), X)
    (node,) = one.graph.find_nodes(op="call_function", target=torch.permute)
    assert f"torchvision{'/' if '/' in __file__ else chr(92)}ops" in node.meta["place"]
