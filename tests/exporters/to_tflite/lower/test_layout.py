import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcompile.exporters.to_tflite.lower.layout import Axis, along, digits, groups, merged, runs, simplest, torch_axes

SHAPE = (1, 4, 3, 5)


def elements(axes: tuple[Axis, ...], shape: tuple[int, ...]) -> np.ndarray:
    """The flat number of every element, as ``axes`` store them."""
    one = merged(axes, shape)
    order = sorted(one.dims)
    coordinates = one.coordinates(shape)
    return np.ravel_multi_index([coordinates[d] for d in order], [shape[d] for d in order])


def test_a_plain_layout_is_in_order_and_holds_no_dimension_of_size_1() -> None:
    assert torch_axes(SHAPE) == (Axis(), Axis((1,)), Axis((2,)), Axis((3,)))
    assert elements(torch_axes(SHAPE), SHAPE).tolist() == list(range(60))


def test_channels_last_is_an_order_of_the_axes() -> None:
    stored = elements((Axis(), Axis((2,)), Axis((3,)), Axis((1,))), SHAPE)
    assert np.array_equal(stored, np.arange(60).reshape(4, 3, 5).transpose(1, 2, 0).ravel())


def test_dims_in_another_order_are_an_index_and_back() -> None:
    axis = merged((Axis((2,)), Axis((1,))), SHAPE)
    assert axis == Axis((2, 1))
    turned = along((1, 2), axis.coordinates(SHAPE), SHAPE)
    assert turned.index is not None
    assert turned.index[:4] == (0, 3, 6, 9)
    assert simplest(turned, SHAPE) == axis


@given(st.lists(st.integers(2, 4), min_size=1, max_size=4), st.data())
def test_the_digits_of_a_transposition_are_its_sizes_and_strides(sizes: list[int], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(sizes))))
    index = np.arange(math.prod(sizes)).reshape(sizes).transpose(order).ravel()
    found = digits(index)
    assert found is not None
    assert math.prod(size for size, _ in found) == len(index)
    counted = sum(g * stride for g, (_, stride) in zip(np.indices([n for n, _ in found]), found, strict=True))
    assert np.array_equal(np.ravel(counted), index)


@pytest.mark.parametrize("index", [(0, 2, 1, 3, 5, 4), (1, 0), (0, 1, 3, 2), (5, 4, 3, 2, 1, 0)])
def test_what_is_no_transposition_has_no_digits(index: tuple[int, ...]) -> None:
    assert digits(index) is None


def test_runs_are_neighbours() -> None:
    assert runs(np.array([0, 1, 2, 5, 7, 8])) == [(0, 3), (5, 6), (7, 9)]


def test_a_reshape_regroups_as_little_as_it_can() -> None:
    assert list(groups((1, 4, 3, 5), (1, 12, 5))) == [((1, 2), (1,)), ((3,), (2,))]
    assert list(groups((1, 6, 4), (1, 2, 3, 2, 2))) == [((1,), (1, 2)), ((2,), (3, 4))]
    assert list(groups((2, 3), (3, 2))) == [((0, 1), (0, 1))]
