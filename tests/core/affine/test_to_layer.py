"""The layer of a map computes that map; a map that no layer is says why."""

from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, event, given, settings
from torch import nn

from nbcompile.core.affine.to_layer import to_layer, why_no_one_layer, why_rounding_loses
from nbcompile.core.algebra import AffineMap
from tests.core.algebra.maps import Axis, any_map, error, fitting, make, normal, run, transposed

LIKE = torch.empty(0, dtype=torch.float64)


@settings(max_examples=150)
@given(any_map(), st.data())
def test_a_layer_is_its_map_or_there_is_none(m: AffineMap, data: st.DataObject) -> None:
    reason = why_no_one_layer(m.geometry)
    even = all(low == high for low, high in m.padding)
    event(str(reason)[:30])
    if reason is not None and m.transposed:
        assert not even or any(b >= max(s, d) for b, s, d in zip(m.output_padding, m.stride, m.dilation, strict=True))
        return
    if reason is not None:
        same = m.padding == tuple((r // 2, r - r // 2) for r in m.geometry.reach)
        assert not even
        assert not same or any(s > 1 for s in m.stride)
        return
    layer = to_layer(m, LIKE)
    assert not layer.training
    candidates = fitting((m,)) if m.kernel else [()]
    assume(candidates)
    x = normal(2, m.geometry.inputs, *data.draw(st.sampled_from(candidates)))
    wanted = run(m, x) if m.kernel or m.groups == 1 else grouped(m, x)
    with torch.no_grad():
        assert error(layer(x), wanted) < 1e-12


def grouped(m: AffineMap, x: torch.Tensor) -> torch.Tensor:
    """A linear map of several groups, which torch has no function for."""
    parts = zip(x.tensor_split(m.groups, 1), m.weight.tensor_split(m.groups), strict=True)
    y = torch.cat([part @ rows.T for part, rows in parts], 1)
    return y if m.bias is None else y + m.bias


@pytest.mark.parametrize(
    ("m", "reason"),
    [
        (
            replace(make(2, 2, [Axis(3, padding=(1, 1))]), pad_value=torch.ones(2)),
            "the result pads with a value that is not zero, which no one layer does",
        ),
        (
            make(2, 2, [Axis(3, padding=(1, 1)), Axis(3, padding=(0, 1))]),
            "the result pads its two sides by different amounts (((1, 1), (0, 1))), which no one layer does",
        ),
        (
            make(2, 2, [Axis(2, 2, padding=(0, 1))]),
            "the result pads its two sides by different amounts (((0, 1),)), which no one layer does",
        ),
        (
            transposed(make(2, 2, [Axis(3, padding=(1, 0))])),
            "the result crops its two sides by different amounts (((1, 0),)), which no one layer does",
        ),
        (
            transposed(make(2, 2, [Axis(3, 2, dilation=1)]), (2,)),
            "the result adds (2,) positions at the end, more than torch's layer can",
        ),
        (transposed(make(2, 2, [Axis(3, 2, dilation=3)]), (2,)), None),
        (transposed(make(2, 2, [Axis(3, 3), Axis(3, 2)]), (2, 1)), None),
        (make(2, 2, [Axis(2, padding=(0, 1))]), None),  # "same": what cannot be halved goes to the high side
        (make(2, 2, [Axis(2, padding=(1, 0))]), "the result pads its two sides by different amounts (((1, 0),))"),
        (make(2, 2, [Axis(2, padding=(0, 1)), Axis(3, padding=(1, 1))]), None),
        (make(2, 2, [Axis(2, padding=(0, 1)), Axis(3)]), "the result pads its two sides by different amounts"),
        (make(2, 2, []), None),
    ],
)  # fmt: skip
def test_why_not(m: AffineMap, reason: str | None) -> None:
    found = why_no_one_layer(m.geometry)
    assert found == reason or (reason is not None and str(found).startswith(reason))


@pytest.mark.parametrize(
    ("m", "built"),
    [
        (make(4, 6, [Axis(3, 2, (1, 1), 2)], 2), nn.Conv1d(4, 6, 3, 2, 1, 2, 2)),
        (make(4, 6, [Axis(2, padding=(0, 1)), Axis(1)]), nn.Conv2d(4, 6, (2, 1), padding="same")),
        (
            make(4, 4, [Axis(3, padding=(1, 1))] * 3, 4, mode="circular"),
            nn.Conv3d(4, 4, 3, padding=1, groups=4, padding_mode="circular"),
        ),
        (
            transposed(make(4, 6, [Axis(3, 2, (1, 1))] * 2, 2), (1, 0)),
            nn.ConvTranspose2d(4, 6, 3, 2, 1, (1, 0), 2),
        ),
        (make(4, 6, [], bias=False), nn.Linear(4, 6, bias=False)),
        (make(4, 6, [], 2), nn.Linear(4, 6)),
    ],
)  # fmt: skip
def test_the_layer_is_as_torch_builds_it(m: AffineMap, built: nn.Module) -> None:
    """In all of its fields; and nobody's random numbers are used up."""
    state = torch.get_rng_state()
    layer = to_layer(m, LIKE)
    assert torch.equal(state, torch.get_rng_state())
    assert type(layer) is type(built)
    own, theirs = ({k: v for k, v in vars(one.eval()).items() if k != "_parameters"} for one in (layer, built))
    assert own == theirs
    assert {k: v.shape for k, v in layer.state_dict().items()} == {k: v.shape for k, v in built.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("grad", [True, False])
def test_it_is_like_the_weight_that_is_given(dtype: torch.dtype, grad: bool) -> None:
    m = make(4, 6, [Axis(3)] * 2)
    assert m.bias is not None
    like = nn.Parameter(torch.empty(4, 4, 3, 3, dtype=dtype).to(memory_format=torch.channels_last), grad)
    layer = to_layer(m, like)
    assert {(p.dtype, p.requires_grad) for p in layer.parameters()} == {(dtype, grad)}
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert torch.equal(weight, m.weight.to(dtype))
    assert torch.equal(bias, m.bias.to(dtype))
    plain = to_layer(m, torch.empty(4, 4, 3, 3, dtype=dtype)).get_parameter("weight")
    assert plain.is_contiguous()
    meta = to_layer(m, torch.empty(0, device="meta"))
    assert {p.device.type for p in meta.parameters()} == {"meta"}


def test_its_numbers_are_its_own() -> None:
    m = make(4, 6, [Axis(3)])
    layer = to_layer(m, LIKE)
    with torch.no_grad():
        for p in layer.parameters():
            p.fill_(9)
    assert m.bias is not None
    assert not (m.weight == 9).any()
    assert not (m.bias == 9).any()


TINY, HUGE = "the merged weights would be too small for float16", "the merged weights would not be finite in float16"


@pytest.mark.parametrize(
    ("weight", "bias", "reason"),
    [
        (1.0, 1.0, None),
        (1e6, 1.0, HUGE),
        (-1e6, 1.0, HUGE),
        (1.0, 1e6, HUGE),
        (float("nan"), 1.0, HUGE),
        (1e-5, 1.0, TINY),
        (-1e-5, 1.0, TINY),
        (1e-9, 1.0, TINY),  # rounded to zeros
        (1.0, 1e-5, TINY),
        (0.0, 1.0, None),
        (1.0, 0.0, None),
        (1.0, None, None),
        (7e-5, 1.0, None),  # just above the smallest normal number
    ],
)
def test_what_rounding_loses(weight: float, bias: float | None, reason: str | None) -> None:
    m = AffineMap(
        torch.full((2, 3, 1), weight, dtype=torch.float64),
        None if bias is None else torch.full((2,), bias, dtype=torch.float64),
        *((1,), ((0, 0),), (1,)),
    )
    assert why_rounding_loses(m, to_layer(m, torch.empty(0, dtype=torch.float16))) == reason


def test_small_numbers_beside_larger_ones_lose_nothing() -> None:
    m = AffineMap(
        torch.tensor([[1.0, 1e-9]], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64), (), (), ()
    )
    assert why_rounding_loses(m, to_layer(m, torch.empty(0, dtype=torch.float16))) is None
    empty = AffineMap(torch.empty(0, 3, dtype=torch.float64), None, (), (), ())
    assert why_rounding_loses(empty, nn.Linear(3, 1, bias=False)) is None
