import math
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.core.judging.rounding import own_rounding
from nbcompile.core.numerics import flatten, is_finite, relative_error, tolerance


@dataclass
class Detections:
    boxes: Tensor
    scores: Tensor | None = None


ONE, TWO = torch.ones(2, 3), torch.full((2, 3), 2.0)


def test_the_largest_difference_over_the_largest_expected_value() -> None:
    expected = torch.tensor([1.0, -4.0, 2.0])
    assert relative_error(expected + torch.tensor([0.0, 0.0, 0.5]), expected) == 0.125


def test_each_tensor_has_its_own_scale() -> None:
    assert relative_error((ONE * 1.5, TWO * 1000), (ONE, TWO * 1000)) == 0.5


def test_computed_in_float64() -> None:
    a = torch.tensor([1.0, 1 + 2**-40], dtype=torch.float64)
    assert relative_error(a, torch.ones(2)) == 2**-40


def test_half_types_do_not_overflow() -> None:
    big = torch.tensor([60000.0], dtype=torch.float16)
    assert relative_error(-big, big) == 2.0


def test_complex_and_integers() -> None:
    assert relative_error(torch.tensor([1 + 1j]), torch.tensor([1 + 2j])) == 0.5
    assert relative_error(torch.tensor([3]), torch.tensor([4])) == 0.25
    assert relative_error(torch.tensor([True]), torch.tensor([True])) == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_must_be_equal(value: float) -> None:
    bad = torch.tensor([1.0, value])
    assert relative_error(bad, bad.clone()) == 0.0
    assert relative_error(bad, torch.ones(2)) == math.inf
    assert relative_error(torch.ones(2), bad) == math.inf


def test_finite_differences_beside_equal_infinities_are_measured() -> None:
    expected = torch.tensor([math.inf, 2.0])
    assert relative_error(torch.tensor([math.inf, 3.0]), expected) == 0.5
    assert relative_error(torch.tensor([math.inf, 3.0]), -expected) == math.inf


def test_zeros_and_nothing() -> None:
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_error(torch.ones(2), torch.zeros(2)) == math.inf
    assert relative_error(torch.empty(0), torch.empty(0)) == 0.0
    assert relative_error((), ()) == 0.0


@pytest.mark.parametrize(
    "output",
    [
        ONE,
        [ONE, (TWO, {"a": ONE})],
        OrderedDict(z=ONE, a=TWO),
        Detections(ONE, TWO),
        Detections(ONE),
        (ONE, None),
    ],
)
def test_nested_outputs(output: object) -> None:
    assert relative_error(output, output) == 0.0
    assert all(isinstance(x, Tensor) for x in flatten(output))


def test_flatten_keeps_the_order() -> None:
    tensors = [torch.full((1,), float(i)) for i in range(5)]
    nested = {"z": tensors[0], "a": [tensors[1], (tensors[2],)], "m": Detections(tensors[3], tensors[4])}
    assert [float(x) for x in flatten(nested)] == [0, 1, 2, 3, 4]


def test_different_structures_are_refused() -> None:
    with pytest.raises(PreconditionError, match=r"different structure.*output\[0\], output\[1\] against output$"):
        relative_error((ONE, TWO), ONE)
    with pytest.raises(PreconditionError, match=r"output\['a'\] against output\['b'\]"):
        relative_error({"a": ONE}, {"b": ONE})
    with pytest.raises(PreconditionError, match=r"output\.boxes against nothing"):
        relative_error(Detections(ONE), None)


def test_different_shapes_are_refused() -> None:
    with pytest.raises(PreconditionError, match=r"different shape.*output\[1\] is \(2, 3\) against \(3,\)"):
        relative_error((ONE, ONE), (ONE, torch.ones(3)))


def test_a_leaf_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(PreconditionError, match=r"output\[1\] of the model is of type str; only tensors"):
        flatten((ONE, "label"))


def test_a_leaf_that_is_no_dense_tensor_is_refused() -> None:
    with pytest.raises(PreconditionError, match=r"^output of the model is a sparse_coo tensor; only dense ones can be"):
        flatten(ONE.to_sparse())


def test_whole_numbers_of_64_bits_are_told_apart() -> None:
    large = torch.tensor([2**60, 5])
    assert relative_error(large, large) == 0
    assert relative_error(large, large + torch.tensor([1, 0])) > 0


def test_tolerances_fall_with_precision() -> None:
    order = [torch.int64, torch.float64, torch.float32, torch.float16, torch.bfloat16]
    values = [tolerance(dtype) for dtype in order]
    assert values == sorted(values)
    assert values[:3] == [0.0, 1e-12, 1e-5]


def test_a_dtype_without_a_tolerance_is_refused() -> None:
    with pytest.raises(UsageError, match=r"dtype torch.complex64 cannot be compared; these can: float64, float32"):
        tolerance(torch.complex64)


def test_not_finite_anywhere_is_found() -> None:
    fine = {"a": torch.zeros(2), "b": [torch.tensor([True]), torch.tensor([1 + 2j]), None]}
    assert is_finite(fine)
    for bad in (torch.nan, torch.inf, -torch.inf):
        assert not is_finite((fine, torch.tensor([0.0, bad])))


class Looked(nn.Module):
    """Indices stay indices."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.table, self.linear, self.dtype = nn.Embedding(5, 3), nn.Linear(3, 3), dtype

    def forward(self, at: Tensor, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.table(at) + x)
        return y if self.dtype is None else y + torch.eye(3, dtype=self.dtype) @ x.to(torch.float32)


def test_what_a_networks_own_arithmetic_rounds() -> None:
    inputs = (torch.tensor([1, 4]), torch.rand(3, 2, 3))
    model = Looked().eval()
    assert 0 < own_rounding(model, [(inputs, model(*inputs))]) < 1e-6
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert own_rounding(model, []) == 0
    cancels = Cancels()
    cases = [((x,), cancels(x)) for x in (torch.rand(9), torch.rand(9) / 50)]
    assert own_rounding(cancels, cases) == own_rounding(cancels, cases[::-1]) > 0.5  # the largest of all


class Cancels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 1e6) - 1e6


class Keeps(nn.Module):
    kept: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.kept * 0.5 + x
        return x - self.kept


def test_what_a_network_keeps_from_call_to_call_is_no_rounding() -> None:
    model, x = Keeps(), torch.rand(3)
    model(x)
    assert own_rounding(model, [((x,), model(x))]) == 0


def test_a_network_that_cannot_run_in_float64() -> None:
    inputs = (torch.tensor([1, 4, 2]), torch.rand(3, 3))
    assert own_rounding(Looked(torch.float16), [(inputs, torch.zeros(3, 3))]) == 0
