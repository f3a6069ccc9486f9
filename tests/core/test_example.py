import json

import pytest
import torch
from torch.utils._pytree import tree_map

from nbcompile.core.errors import CheckpointError
from nbcompile.core.example import (
    Origin,
    TensorSpec,
    as_inputs,
    change_tensors,
    inputs_for,
    random_inputs,
    remember,
    spec_to_json,
    specs,
)
from nbcompile.core.serialization.rebuild import origin_from_json


def test_numbers_of_every_kind() -> None:
    kinds = (torch.float32, torch.int64, torch.uint8, torch.bool)
    wanted = [TensorSpec((1, 50), dtype) for dtype in kinds]
    drawn = random_inputs(wanted, batch=2)
    assert [(x.shape, x.dtype) for x in drawn] == [((2, 50), dtype) for dtype in kinds]
    assert all(set(x.flatten().tolist()) == {0, 1} for x in drawn[1:])


def test_the_seed_decides_and_the_global_one_is_left_alone() -> None:
    wanted = [TensorSpec((4, 50)), TensorSpec((4, 50), torch.int64)]
    before = torch.get_rng_state()
    one, two, other = (random_inputs(wanted, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_scalar_has_no_batch() -> None:
    (x,) = random_inputs([TensorSpec((), torch.int64)], batch=3)
    assert x.shape == ()


IMAGES = [torch.zeros(3, 4, 5), torch.zeros(3, 6, 7)]
NESTED = (IMAGES, {"mask": torch.zeros(2, 3, dtype=torch.bool)}, torch.zeros(2, 3))


def test_structures_of_tensors_are_inputs() -> None:
    inputs = as_inputs(NESTED)
    images, masks, x = specs(inputs)
    assert images == [TensorSpec((3, 4, 5)), TensorSpec((3, 6, 7))]
    assert masks == {"mask": TensorSpec((2, 3), torch.bool)}
    drawn = random_inputs((images, masks, x), batch=9)
    shapes = ([(3, 4, 5), (3, 6, 7)], {"mask": (2, 3)}, (9, 3))
    assert tree_map(lambda x: tuple(x.shape), drawn) == shapes  # a list of images is a batch by itself
    assert torch.equal(change_tensors(torch.ones_like, inputs)[0][1], torch.ones(3, 6, 7))


def test_structures_are_read_back_from_json() -> None:
    wanted = specs(NESTED)
    data = json.loads(json.dumps({"inputs": [spec_to_json(spec) for spec in wanted]}))
    assert origin_from_json(data) == Origin(wanted)


@pytest.mark.parametrize(
    "entry",
    [
        [[3, 4], "complex32"],
        [],
        {},
        [[[3, 4], "float32"], 7],
        "float32",
        {"a": [[-1], "float32"]},
        [[[10**6, 10**6], "float32"]],
        [[[1] * 9, "float32"]],
    ],
)
def test_malformed_inputs_are_refused(entry: object) -> None:
    with pytest.raises(CheckpointError, match=r"the record's inputs are malformed|the recorded inputs have"):
        origin_from_json({"inputs": [entry]})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
def test_inputs_get_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    """Those that are floating point, where the weights are; what is given is left alone."""
    model = torch.nn.Module()
    model.register_parameter("weight", torch.nn.Parameter(torch.zeros(1, dtype=dtype), requires_grad=False))
    given = (torch.ones(2), [torch.ones(2, dtype=torch.int64)], torch.tensor(True))
    x, (at,), flag = inputs_for(model, given, who="the test")
    assert (x.dtype, at.dtype, flag.dtype) == (
        dtype if dtype.is_floating_point else torch.float32,
        *(torch.int64, torch.bool),
    )
    assert (given[0].dtype, x.tolist(), at.tolist()) == (torch.float32, [1, 1], [1, 1])
    remember(model, Origin((TensorSpec((3, 4)),)))
    (drawn,) = inputs_for(model, None, who="the test")
    assert drawn.dtype == x.dtype
    (bare,) = inputs_for(torch.nn.ReLU(), torch.ones(2, dtype=torch.float16), who="the test")
    assert bare.dtype == torch.float16
