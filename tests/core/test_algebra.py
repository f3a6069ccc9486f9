"""Merging either equals the layers on the full map, border included, or is refused for a reason that holds."""

from dataclasses import dataclass, replace
from itertools import pairwise, product
from math import gcd

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, event, given, settings
from torch import Tensor
from torch.nn import functional as F

from nbcompile.core.algebra import AffineMap, NotExact, add, compose, embed_groups, frozen_norm, per_channel

MODES = ("zeros", "reflect", "replicate", "circular")
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
LARGEST = {1: 5, 2: 5, 3: 3}


@dataclass(frozen=True)
class Geometry:
    """One axis of a map."""

    kernel: int
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1

    @property
    def reach(self) -> int:
        return self.dilation * (self.kernel - 1)


def make(
    inputs: int, outputs: int, axes: list[Geometry], groups: int = 1, bias: bool = True, mode: str = "zeros"
) -> AffineMap:
    return AffineMap(
        weight=torch.randn(outputs, inputs // groups, *(a.kernel for a in axes), dtype=torch.float64),
        bias=torch.randn(outputs, dtype=torch.float64) if bias else None,
        stride=tuple(a.stride for a in axes),
        padding=tuple(a.padding for a in axes),
        dilation=tuple(a.dilation for a in axes),
        groups=groups,
        padding_mode=mode if any(any(a.padding) for a in axes) else "zeros",
    )


def run(m: AffineMap, x: Tensor) -> Tensor:
    """The map by torch's own operators."""
    if not m.kernel:
        return F.linear(x, m.weight, m.bias)
    sides = [side for pads in reversed(m.padding) for side in pads]
    padded = F.pad(x, sides, "constant" if m.padding_mode == "zeros" else m.padding_mode)
    return CONVOLVE[len(m.kernel)](padded, m.weight, m.bias, m.stride, 0, m.dilation, m.groups)


def size_after(m: AffineMap, size: tuple[int, ...]) -> tuple[int, ...] | None:
    """Spatial size of the output, or None where torch refuses the input."""
    after = []
    for n, k, s, (low, high), d in zip(size, m.kernel, m.stride, m.padding, m.dilation, strict=True):
        most = {"zeros": max(low, high), "reflect": n - 1, "replicate": max(low, high), "circular": n}[m.padding_mode]
        room = n + low + high - d * (k - 1) - 1
        if room < 0 or max(low, high) > most:
            return None
        after.append(room // s + 1)
    return tuple(after)


def inputs_of(m: AffineMap) -> int:
    return m.weight.shape[1] * m.groups


def error(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    worst, scale = float((found - wanted).abs().max()), float(wanted.abs().max())
    return worst / scale if scale else worst


def runs_at(chain: tuple[AffineMap, ...], size: tuple[int, ...]) -> bool:
    reached: tuple[int, ...] | None = size
    for m in chain:
        reached = None if reached is None else size_after(m, reached)
    return reached is not None


def run_all(chain: tuple[AffineMap, ...], x: Tensor) -> Tensor:
    for m in chain:
        x = run(m, x)
    return x


@st.composite
def geometries(draw: st.DrawFn, largest: int, pads: bool) -> Geometry:
    sides = st.integers(0, 2)
    return Geometry(
        draw(st.integers(1, largest)),
        draw(st.sampled_from((1, 1, 2, 3))),
        (draw(sides), draw(sides)) if pads else (0, 0),
        draw(st.sampled_from((1, 1, 2, 3))),
    )


@st.composite
def maps(draw: st.DrawFn, axes: int, inputs: int, outputs: int, pads: bool, mode: str) -> AffineMap:
    groups = draw(st.sampled_from([g for g in (1, 2, 3, 6) if gcd(inputs, outputs) % g == 0]))
    shape = [draw(geometries(LARGEST[axes], pads)) for _ in range(axes)]
    return make(inputs, outputs, shape, groups, draw(st.booleans()), mode)


@st.composite
def chains(draw: st.DrawFn) -> tuple[AffineMap, ...]:
    axes, mode = draw(st.integers(1, 3)), draw(st.sampled_from(MODES))
    channels = draw(st.lists(st.sampled_from((2, 3, 6)), min_size=3, max_size=4))
    later = st.sampled_from((False, False, True))  # padding in between is mostly refused
    modes = st.sampled_from((mode, mode, "zeros"))
    return tuple(
        draw(maps(axes, i, o, pads=position == 0 or draw(later), mode=draw(modes)))
        for position, (i, o) in enumerate(pairwise(channels))
    )


def fitting(*chains: tuple[AffineMap, ...]) -> list[tuple[int, ...]]:
    """The sizes of 1 to 9 that every chain takes."""
    everywhere = product(range(1, 10), repeat=len(chains[0][0].kernel))
    return [size for size in everywhere if all(runs_at(chain, size) for chain in chains)]


def compare(whole: AffineMap, chain: tuple[AffineMap, ...], size: tuple[int, ...]) -> None:
    x = torch.randn(2, inputs_of(chain[0]), *size, dtype=torch.float64)
    assert error(run(whole, x), run_all(chain, x)) < 1e-12


@settings(max_examples=400)
@given(chains(), st.data())
def test_a_composition_equals_its_layers_on_the_full_map(chain: tuple[AffineMap, ...], data: st.DataObject) -> None:
    try:
        whole = chain[0]
        for m in chain[1:]:
            whole = compose(whole, m)
    except NotExact as refusal:
        event(f"refused: {str(refusal)[:40]}")
        return
    assert whole.groups == gcd(*(m.groups for m in chain))
    if candidates := fitting(chain):
        event("compared")
        for _ in range(3):
            compare(whole, chain, data.draw(st.sampled_from(candidates)))


@given(chains())
def test_composition_is_associative(chain: tuple[AffineMap, ...]) -> None:
    a, b, c = (*chain, chain[-1])[:3]
    assume(c.weight.shape[1] * c.groups == b.weight.shape[0])
    try:
        left, right = compose(compose(a, b), c), compose(a, compose(b, c))
    except NotExact:
        return
    assert (left.stride, left.padding, left.dilation, left.groups) == (
        right.stride,
        right.padding,
        right.dilation,
        right.groups,
    )
    torch.testing.assert_close(left.weight, right.weight, rtol=0, atol=1e-10)


def naive(first: AffineMap, second: AffineMap) -> AffineMap:
    """What a merge that forgets the border would give."""
    mode = second.padding_mode if first.padding_mode == "zeros" else first.padding_mode
    bare = compose(first, replace(second, padding=((0, 0),) * len(second.kernel), padding_mode="zeros"))
    padding = tuple(
        (low + s * low2, high + s * high2)
        for (low, high), (low2, high2), s in zip(first.padding, second.padding, first.stride, strict=True)
    )
    return replace(bare, padding=padding, padding_mode=mode)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[AffineMap, AffineMap]:
    """Two layers as networks have them: the first pads at most half of its reach, and both have stride 1."""
    axes = draw(st.integers(1, 2))
    shapes = [draw(geometries(3, pads=False)) for _ in range(2 * axes)]
    halves = [draw(st.integers(0, shape.reach // 2)) for shape in shapes[:axes]]
    pads = halves + [draw(st.integers(0, 1)) for _ in range(axes)]
    shapes = [replace(shape, stride=1, padding=(p, p)) for shape, p in zip(shapes, pads, strict=True)]
    first = make(2, 2, shapes[:axes], 1, draw(st.booleans()), draw(st.sampled_from(MODES)))
    second = make(2, 2, shapes[axes:], 1, draw(st.booleans()), draw(st.sampled_from(MODES)))
    # a circular layer that keeps the size commutes with circular padding: refused, though it need not be
    assume(not first.padding_mode == second.padding_mode == "circular")
    return first, second


@settings(max_examples=150)
@given(pairs())
def test_a_refusal_is_necessary(pair: tuple[AffineMap, AffineMap]) -> None:
    try:
        compose(*pair)
    except NotExact:
        whole = naive(*pair)
        x = torch.randn(1, 2, *(17, 16)[: len(whole.kernel)], dtype=torch.float64)
        assert error(run(whole, x), run_all(pair, x)) > 1e-6
    else:
        assume(False)


LINE = [Geometry(1)]
THREE = [Geometry(3)]
SAME = [Geometry(3, padding=(1, 1))]


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (
            make(2, 2, THREE),
            make(2, 2, SAME),
            r"pads by 'zeros' between two kernels \(3,\) and \(3,\): the merged layer would differ at the border",
        ),
        (
            make(2, 2, LINE),
            make(2, 2, SAME),
            r"pads with zeros but the first adds a bias: the merged layer would differ at the border; pad before",
        ),
        (
            make(2, 2, SAME, mode="reflect"),
            make(2, 2, SAME),
            "the layers pad by 'reflect' and by 'zeros', which no one layer does",
        ),
        (
            make(2, 2, [Geometry(1, stride=2)]),
            make(2, 2, SAME, mode="circular"),
            "pads by 'circular' where the first strides or pads: the merged layer would differ at the border",
        ),
    ],
)
def test_compose_says_why_not(first: AffineMap, second: AffineMap, reason: str) -> None:
    with pytest.raises(NotExact, match=reason):
        compose(first, second)


def test_a_strided_map_under_reflection_would_differ() -> None:
    first, second = make(2, 2, [Geometry(1, stride=2)]), make(2, 2, SAME, mode="reflect")
    x = torch.randn(1, 2, 8, dtype=torch.float64)
    assert error(run(naive(first, second), x), run_all((first, second), x)) > 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_factorised_kernels_merge(mode: str) -> None:
    """1×3 then 3×1, each padding its own axis: padding one axis commutes with a convolution along the other."""
    first = make(2, 4, [Geometry(1), Geometry(3, padding=(1, 1))], bias=mode != "zeros", mode=mode)
    second = make(4, 2, [Geometry(3, stride=2, padding=(1, 1)), Geometry(1)], mode=mode)
    compare(compose(first, second), (first, second), (7, 5))


def test_a_bias_passes_under_padding_by_values_of_the_map() -> None:
    first, second = make(2, 4, LINE), make(4, 2, SAME, mode="reflect")
    whole = compose(first, second)
    assert (whole.padding, whole.padding_mode) == (((1, 1),), "reflect")
    compare(whole, (first, second), (6,))


@pytest.mark.parametrize(
    ("first", "second", "kernel", "dilation"),
    [
        (Geometry(3), Geometry(3), 5, 1),
        (Geometry(3, stride=2), Geometry(3), 7, 1),
        (Geometry(1, stride=2), Geometry(3), 3, 2),  # taps with holes between them
        (Geometry(3, dilation=2), Geometry(3, dilation=4), 7, 2),
        (Geometry(3, dilation=2), Geometry(2, dilation=3), 8, 1),
        (Geometry(1, dilation=3), Geometry(1, dilation=2), 1, 1),
    ],
)
def test_the_merged_kernel_is_no_larger_than_it_must_be(
    first: Geometry, second: Geometry, kernel: int, dilation: int
) -> None:
    whole = compose(make(2, 2, [first]), make(2, 2, [second]))
    assert (whole.kernel, whole.dilation, whole.stride) == (
        (kernel,),
        (dilation,),
        (first.stride * second.stride,),
    )


def test_a_depthwise_between_two_dense_pointwise_layers_is_dense() -> None:
    chain = (
        make(4, 6, [Geometry(1, padding=(1, 1))] * 2),
        make(6, 6, [Geometry(3)] * 2, groups=6),
        make(6, 8, [Geometry(1)] * 2),
    )
    whole = compose(compose(chain[0], chain[1]), chain[2])
    assert (whole.groups, whole.kernel, whole.padding) == (1, (3, 3), ((1, 1), (1, 1)))
    compare(whole, chain, (7, 5))


@st.composite
def branches(draw: st.DrawFn) -> tuple[AffineMap, AffineMap]:
    axes, mode = draw(st.integers(1, 3)), draw(st.sampled_from(MODES))
    inputs, outputs = draw(st.sampled_from(((2, 2), (6, 6), (2, 6), (6, 3))))
    a = draw(maps(axes, inputs, outputs, pads=True, mode=mode))
    b = draw(maps(axes, inputs, outputs, pads=draw(st.booleans()), mode=draw(st.sampled_from((mode, mode, "zeros")))))
    if draw(st.sampled_from((True, True, True, False))):  # the sides that give maps of the same size
        totals = [
            max(0, sum(pads) - da * (ka - 1) + db * (kb - 1))
            for pads, da, ka, db, kb in zip(a.padding, a.dilation, a.kernel, b.dilation, b.kernel, strict=True)
        ]
        lows = [draw(st.integers(0, total)) for total in totals]
        padding = tuple((low, total - low) for low, total in zip(lows, totals, strict=True))
        b = replace(b, stride=a.stride, padding=padding, padding_mode=mode if any(totals) else "zeros")
    return a, b


@settings(max_examples=300)
@given(branches(), st.data())
def test_a_sum_equals_its_branches_or_is_refused_for_a_reason(
    pair: tuple[AffineMap, AffineMap], data: st.DataObject
) -> None:
    a, b = pair
    try:
        whole = add(a, b)
    except NotExact as refusal:
        event(f"refused: {str(refusal)[:20]}")
        square = [(n,) * len(a.kernel) for n in range(9, 40)]
        sizes_differ = any(size_after(a, size) != size_after(b, size) for size in square)
        assert sizes_differ or (a.pads and b.pads and a.padding_mode != b.padding_mode)
        return
    if candidates := fitting((a,), (b,)):
        event("compared")
        for _ in range(3):
            x = torch.randn(2, inputs_of(a), *data.draw(st.sampled_from(candidates)), dtype=torch.float64)
            assert error(run(whole, x), run(a, x) + run(b, x)) < 1e-12


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        (make(2, 2, [Geometry(1, stride=2)]), make(2, 2, LINE), r"strides \(2,\) and \(1,\)"),
        (make(2, 4, LINE), make(2, 2, LINE), "4 and 2 output channels"),
        (make(2, 2, SAME, mode="reflect"), make(2, 2, SAME), "one branch pads by 'reflect', the other by 'zeros'"),
        (make(2, 2, THREE), make(2, 2, LINE), "the branches give maps of different sizes"),
    ],
)
def test_add_says_why_not(a: AffineMap, b: AffineMap, reason: str) -> None:
    with pytest.raises(NotExact, match=reason):
        add(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_a_pointwise_branch_beside_a_padded_one(mode: str) -> None:
    """RepVGG's 3×3 + 1×1 + identity, whatever the 3×3 pads by."""
    three = make(4, 4, SAME * 2, mode=mode)
    one = make(4, 4, LINE * 2, groups=2)
    identity = per_channel(torch.ones(4, dtype=torch.float64), None, 2)
    whole = add(add(three, one), identity)
    assert (whole.kernel, whole.padding, whole.padding_mode, whole.groups) == ((3, 3), ((1, 1), (1, 1)), mode, 1)
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    assert error(run(whole, x), run(three, x) + run(one, x) + x) < 1e-12


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True), (False, False)])
def test_linear_layers(biases: tuple[bool, bool]) -> None:
    first, second = make(3, 5, [], bias=biases[0]), make(5, 4, [], bias=biases[1])
    beside = make(3, 4, [], bias=biases[0])
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    merged = compose(first, second)
    assert (merged.bias is None) == (biases == (False, False))
    assert error(run(merged, x), run_all((first, second), x)) < 1e-12
    assert error(run(add(merged, beside), x), run(merged, x) + run(beside, x)) < 1e-12


@pytest.mark.parametrize(("groups", "fewer"), [(6, 1), (6, 2), (6, 3), (6, 6), (2, 1), (3, 1)])
def test_embed_groups_changes_nothing_but_the_groups(groups: int, fewer: int) -> None:
    m = make(6, 12, SAME * 2, groups=groups)
    fewer_weight = embed_groups(m.weight, groups, fewer)
    assert fewer_weight.shape == (12, 6 // fewer, 3, 3)
    x = torch.randn(2, 6, 7, 5, dtype=torch.float64)
    assert error(run(replace(m, weight=fewer_weight, groups=fewer), x), run(m, x)) < 1e-12


@pytest.mark.parametrize("affine", [True, False])
def test_a_frozen_norm_is_torchs_own(affine: bool) -> None:
    mean, var = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.1
    gamma, beta = (torch.randn(2, 4, dtype=torch.float64)).unbind() if affine else (None, None)
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    wanted = F.batch_norm(x, mean, var, gamma, beta, eps=1e-3)
    assert error(run(frozen_norm(mean, var, gamma, beta, 1e-3, 2), x), wanted) < 1e-12


def test_works_in_the_dtype_of_its_operands() -> None:
    def halved(m: AffineMap) -> AffineMap:
        return replace(m, weight=m.weight.float(), bias=None if m.bias is None else m.bias.float())

    first, second = halved(make(4, 4, SAME * 2, groups=2)), halved(make(4, 4, LINE * 2))
    for whole in (compose(first, second), add(first, second)):
        assert whole.bias is not None
        assert whole.weight.dtype == whole.bias.dtype == torch.float32


def test_is_differentiable() -> None:
    """collapse_ trains through it: every operand's gradient, through groups, dilation, stride and a sum."""
    norm = torch.rand(4, 4, dtype=torch.float64) + 0.5
    first = make(2, 4, [Geometry(2, 1, (1, 1), 2)])
    second = make(4, 2, [Geometry(2, 2)], groups=2)
    beside = make(2, 2, [Geometry(3, 2, (0, 1))])

    def merged(w1: Tensor, b1: Tensor, w2: Tensor, w3: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:
        a, c = replace(first, weight=w1, bias=b1), replace(beside, weight=w3)
        mean, var, gamma, beta = statistics
        chain = compose(compose(a, frozen_norm(mean, var, gamma, beta, 1e-5, 1)), replace(second, weight=w2))
        whole = add(chain, c)
        assert whole.bias is not None
        return whole.weight, whole.bias

    operands = [
        t.requires_grad_() for t in (first.weight, first.bias, second.weight, beside.weight, norm) if t is not None
    ]
    assert torch.autograd.gradcheck(merged, operands)
