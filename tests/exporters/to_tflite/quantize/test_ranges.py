from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.lower.lowering import float_model
from nbcompile.exporters.to_tflite.quantize.ranges import (
    ALL_ZERO,
    BINS,
    FLAT,
    Ranges,
    _Histogram,
    _histograms,
    measure_ranges,
)
from nbcompile.exporters.to_tflite.run.interpreters import Sample
from tests.exporters.to_tflite import lowered
from tests.exporters.to_tflite.lowered import to_torch


class Net(nn.Module):
    """A map of its own for every case: halved, one that can die, a logarithm that can fail."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.act = nn.ReLU()
        self.head = nn.Conv2d(3, 4, 1)
        with torch.no_grad():
            self.conv.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.conv(x))) * 2.5


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def model(net: Net) -> FloatModel:
    return float_model(net, (torch.randn(1, 2, 5, 7),))


def samples(count: int, scale: float = 1.0) -> list[Sample]:
    random = np.random.default_rng(0)
    return [((scale * random.standard_normal((1, 5, 7, 2))).astype(np.float32),) for _ in range(count)]


def of(ranges: Ranges, model: FloatModel, layer: str) -> tuple[float, float]:
    names = {tensor.name: tensor.index for tensor in read_file(model.content).tensors}
    return ranges.kept[names[layer]]


def test_minmax_is_what_pytorch_computes(net: Net, model: FloatModel) -> None:
    given = samples(6)
    found = measure_ranges(model, given)
    x = torch.cat([to_torch(model.inputs[0], one[0]) for one in given])
    with torch.no_grad():
        hidden, y = net.act(net.conv(x)), net(x)
    assert of(found, model, "input") == pytest.approx((float(x.min()), float(x.max())))
    assert of(found, model, "conv") == pytest.approx((0, float(hidden.max())))
    assert of(found, model, model.outputs[0].name) == pytest.approx((float(y.min()), float(y.max())), rel=1e-5)
    assert found.samples == 6
    assert found.dead == found.notes == ()


def test_zero_is_always_inside(model: FloatModel) -> None:
    above = [(np.abs(x) + 1,) for (x,) in samples(2)]
    lowest, highest = of(measure_ranges(model, above), model, "input")
    assert lowest == 0 < highest


def test_percentile_leaves_out_what_is_rare_and_outputs_keep_all(model: FloatModel) -> None:
    given = samples(400)
    given[0][0][0, 0, 0], given[0][0][0, 1, 1] = (80.0, -80.0), (-80.0, 80.0)  # two pixels of 14,000
    seen = measure_ranges(model, given)
    for estimator in ("percentile", "mse"):
        found = measure_ranges(model, given, estimator)
        if estimator == "percentile":
            for name in ("input", "conv"):
                assert of(found, model, name)[1] < 0.2 * of(seen, model, name)[1]
        assert of(found, model, model.outputs[0].name) == of(seen, model, model.outputs[0].name), estimator
        assert found.seen == seen.seen


def histogram(x: np.ndarray) -> _Histogram:
    limits = float(x.min()), float(x.max())
    nonzero = x[x != 0]
    return _Histogram(limits, np.histogram(nonzero, BINS, limits)[0], x.size - nonzero.size)


@pytest.mark.parametrize("levels", [16, 256, 65536])
def test_least_error_is_that_of_rounding_and_clipping(levels: int) -> None:
    x = np.random.default_rng(0).laplace(size=50_000)
    x[::2] = 0

    def error(lowest: float, highest: float) -> float:
        step = (highest - lowest) / (levels - 1)
        rounded = np.round(x.clip(lowest, highest) / step) * step
        return float(((rounded - x) ** 2).mean())

    best = histogram(x).least_error(levels)
    shares = np.linspace(0.1, 1, 19)
    tried = min(error(a * x.min(), b * x.max()) for a in shares for b in shares)
    assert error(*best) <= 1.05 * tried


def test_histograms_count_what_is_exactly_zero_apart(net: Net, model: FloatModel) -> None:
    given = samples(3)
    (index,) = (tensor.index for tensor in read_file(model.content).tensors if tensor.name == "conv")
    found = _histograms(model, given)[index]
    with torch.no_grad():
        hidden = net.act(net.conv(torch.cat([to_torch(model.inputs[0], x) for (x,) in given])))
    assert found.zeros == int((hidden == 0).sum()) > 0
    assert found.counts.sum() == int((hidden != 0).sum())


def test_without_tails_counts_zeros_and_takes_both_ends() -> None:
    x = np.random.default_rng(0).standard_normal(1_000_000)
    lowest, highest = histogram(x).without_tails()
    assert (lowest, highest) == pytest.approx(np.quantile(x, [1e-4, 1 - 1e-4]), abs=0.02)
    mostly_zero = np.concatenate([np.zeros(990_000), np.abs(x[:10_000])])
    assert histogram(mostly_zero).without_tails()[1] == pytest.approx(np.quantile(mostly_zero, 1 - 1e-4), abs=0.02)


def test_a_layer_that_is_constant_is_named_and_has_a_range(model: FloatModel) -> None:
    found = measure_ranges(model, [(np.zeros((1, 5, 7, 2), np.float32),)] * 3)
    assert of(found, model, "conv") == ALL_ZERO
    (note,) = found.notes
    assert note.startswith("the output of act was")
    assert note.endswith(
        "one constant over all 3 calibration samples: its range is not known; calibrate on samples that differ"
    )


def test_what_no_sample_can_change_is_no_layer_to_be_named() -> None:
    """The first state of an LSTM is 0, and so is what its gate lets through."""
    x = torch.randn(1, 3, 4)
    for network in (nn.LSTM(4, 5, batch_first=True), nn.GRU(4, 5, batch_first=True)):
        model = float_model(lowered.Net(lambda m, x: m[0](x)[0], network).eval(), (x,))
        found = measure_ranges(model, [(torch.randn(1, 3, 4).numpy(),) for _ in range(3)])
        assert found.notes == ()
        assert isinstance(network, nn.GRU) or ALL_ZERO in found.kept.values()


@pytest.mark.parametrize(
    ("dead", "named"),
    [
        (lambda m, x: x + m[0](x), ()),  # weights of 0
        (lambda m, x: x + m[1](m[0](x)).relu(), ()),  # what reads only that
        (lambda m, x: x + m[0](x) * x.sigmoid(), ()),  # a product with that
        (lambda m, x: x + m[2](x), ()),
        (lambda m, x: x + torch.relu(m[1](x) - 100), ("relu",)),  # where the input counts, samples might tell
        (lambda m, x: x + m[0](x) + torch.relu(m[0](x) + m[1](x) - 100), ("relu",)),
    ],
    ids=["weights", "what reads it", "a product", "transposed", "a ReLU", "a sum with it"],
)
def test_layers_of_zeros_are_not_named(dead: Any, named: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.ConvTranspose2d(2, 2, 1)
    for layer in (layers[0], layers[2]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    model = float_model(lowered.Net(dead, *layers).eval(), (torch.randn(1, 2, 5, 7),))
    assert measure_ranges(model, samples(3)).dead == named


def test_values_that_are_not_finite_are_refused_by_layer(model: FloatModel) -> None:
    given = samples(3)
    given[1][0][0, 0, 0, 0] = np.nan
    with pytest.raises(PreconditionError, match=r"input 'input' has 1 of 70 values that are NaN or infinite on "
                       r"calibration sample 1 \(counted from 0\): no integers can stand for them"):  # fmt: skip
        measure_ranges(model, given)
    large = nn.Conv2d(2, 2, 1)
    nn.init.constant_(large.weight, 1e25)
    overflowing = float_model(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), large, large), (torch.randn(1, 2, 5, 7),))
    with pytest.raises(
        PreconditionError, match=r"the output of layer '2' has \d+ of 70 values that are NaN or infinit"
    ):
        measure_ranges(overflowing, samples(1))


def test_refusals(model: FloatModel) -> None:
    with pytest.raises(UsageError, match="ranges='median' is not known; known are minmax, mse, percentile"):
        measure_ranges(model, samples(1), "median")
    with pytest.raises(UsageError, match="are measured: give calibration samples, there are none"):
        measure_ranges(model, [])


class Scores(nn.Module):
    """Two softmaxes of scores of which half are far below the rest; the second's are read by others, too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        masked = x + torch.tensor([0.0, -100.0]).repeat(3)
        return (masked * 1.5).reshape(1, 2, 2, 3).softmax(-1), (masked * 0.5).softmax(-1) + masked * 0.5


def test_scores_that_softmax_turns_to_nothing_do_not_count() -> None:
    x = torch.randn(1, 2, 6)
    model = float_model(Scores(), (x,))
    found = measure_ranges(model, [(x.numpy(),)])
    ops = read_file(model.content).ops
    assert [op.name for op in ops[:3]] == ["ADD", "MUL", "RESHAPE"]
    assert found.kept[ops[1].outputs[0]] == found.kept[ops[2].outputs[0]]
    scores = [found.kept[op.inputs[0]] for op in ops if op.name == "SOFTMAX"]
    rows = (x + torch.tensor([0.0, -100.0]).repeat(3)).reshape(1, 2, 2, 3).amax(-1)
    assert scores[0] == pytest.approx((1.5 * float(rows.min()) - 16, 1.5 * float(rows.max())))
    assert scores[1][0] < -45


class Flat(nn.Module):
    """What a sigmoid reads, a tanh in another shape, a sigmoid and others, and a sigmoid of what is far beyond."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            (90 * x).sigmoid(),
            (3 * x - 8).reshape(1, 2, 3, 2).tanh(),
            (y := 70 * x).sigmoid() + y,
            (1e6 * x).sigmoid(),
        )


@pytest.mark.parametrize("estimator", ["minmax", "percentile", "mse"])
def test_where_a_sigmoid_or_a_tanh_is_flat_does_not_count(estimator: str) -> None:
    model = float_model(Flat(), (torch.randn(1, 2, 6),))
    random = np.random.default_rng(0)
    given = [(random.uniform(-3, 3, (1, 2, 6)).astype(np.float32),) for _ in range(4)]
    file = read_file(model.content)
    first, second, third, last = (op.inputs[0] for op in file.ops if op.name in FLAT)
    for levels, limit in ((256, 6.93), (65536, 12.48)):
        found = measure_ranges(model, given, estimator, levels=levels)
        assert found.kept[first] == pytest.approx((-limit, limit), abs=0.01)
        assert found.kept[second] == pytest.approx((-limit / 2, max(found.seen[second][1], 0)), abs=0.01)
        assert found.kept[third][0] < -2 * limit
        low, high = found.seen[last]
        assert found.kept[last][1] == pytest.approx((high - low) / 4096)  # kernels could not scale it to less
        assert found.dead == ()
