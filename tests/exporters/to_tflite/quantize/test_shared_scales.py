"""Operators that share a scale with their operands, beside others that read these."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbcompile.exporters.to_tflite.build import Samples, build_file, filed
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.options import Recipe
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.lower.lowering import float_model
from nbcompile.exporters.to_tflite.quantize.quantize import quantize
from nbcompile.exporters.to_tflite.quantize.ranges import Ranges, measure_ranges
from nbcompile.exporters.to_tflite.quantize.shared_scales import with_shared_scales
from nbcompile.exporters.to_tflite.run.interpreters import run_file
from tests.exporters.to_tflite.lowered import Net


class Shared(nn.Module):
    """A clip, a maximum, a slice and a concatenation, each of a value that is read as it is, too."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 8, 3, padding=1) for _ in range(4))
        self.mix = nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a, b, c, d = (conv(x) for conv in self.convs)
        return (
            a - a.clamp(-0.2, 0.2),
            torch.maximum(b, 8 * self.mix(b)) - 8 * F.relu(b),
            F.relu(c) + 0.3 * c.clamp(max=0),
            torch.relu(d) + 0.01 * torch.cat([d[:, :4], d[:, 4:] * 100], 1),
        )


@pytest.fixture(scope="module")
def shared() -> tuple[nn.Module, list[tuple[Tensor]]]:
    torch.manual_seed(0)
    return Shared().eval(), [(torch.randn(1, 3, 7, 5),) for _ in range(24)]


def test_no_reader_sees_what_another_clips(shared: tuple[nn.Module, list[tuple[Tensor]]]) -> None:
    network, samples = shared
    data = Samples.of(network, samples[0], samples[8:], samples[:8])
    built = build_file(network, samples[0], data, Recipe(), micro=True)
    for kernels in ("xnnpack", "micro"):
        found = data.agreement(built.model, built.content, kernels)
        assert all(part.sqnr > 31 for part in found.parts), found.parts
    model = float_model(network, samples[0])
    plain = quantize(model, filed(model, data.samples))
    assert all(part.sqnr < 29 for part in data.agreement(model, plain).parts)  # TensorFlow's own way


def of(function: Callable[..., Any], *layers: nn.Module) -> tuple[FloatModel, FloatModel, Ranges, Ranges]:
    """A network's file and ranges, before and after."""
    model = float_model(Net(function, *layers).eval(), (torch.randn(1, 2, 4, 4),))
    random = np.random.default_rng(0)
    ranges = measure_ranges(model, [(random.uniform(-4, 4, (1, 4, 4, 2)).astype(np.float32),) for _ in range(5)])
    after, settled = with_shared_scales(model, ranges)
    return model, after, ranges, settled


def test_what_nothing_else_reads_stays_clipped() -> None:
    model, after, before, settled = of(lambda layers, x: layers[0](x).clamp(-0.1, 0.1), nn.Conv2d(2, 3, 1))
    assert after is model
    assert settled == before


@pytest.mark.slow
def test_a_copy_is_made_only_for_who_would_coarsen_it() -> None:
    def joined(factor: float) -> list[str]:
        _, after, _, settled = of(lambda layers, x: (torch.cat([x, factor * x], 1), x.tanh()))
        file = read_file(after.content)
        copies = [tensor for tensor in file.tensors if "/for " in tensor.name]
        assert all(settled.kept[tensor.index] == settled.kept[file.outputs[0]] for tensor in copies)
        return [tensor.name for tensor in copies]

    assert joined(1.5) == []
    assert joined(100.0) == ["input/for cat"]


@pytest.mark.slow
def test_a_view_of_a_shared_value_is_held_as_well() -> None:
    def view(layers: object, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :1].clamp(max=0), x.tanh()

    model, _, before, settled = of(view)
    index = {tensor.name: tensor.index for tensor in read_file(model.content).tensors}
    assert before.kept[index["clamp"]][1] == 0 < settled.kept[index["clamp"]][1]
    assert settled.kept[index["clamp"]] == settled.kept[index["input"]]


def test_limits_far_inside_of_a_shared_value_are_not_rounded_to_its_steps() -> None:
    def shrunk(layers: object, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.clamp(-0.1, 0.1), x.tanh()

    _, after, before, settled = of(shrunk)
    file = read_file(after.content)
    index = {tensor.name: tensor.index for tensor in file.tensors}
    narrow = [settled.kept[index[name]] for name in ("input/for clamp/maximum", "clamp/maximum", "clamp")]
    assert narrow == 3 * [before.kept[index["clamp"]]]
    content = quantize(after, [], ranges=settled)
    wide = [(np.full((1, 4, 4, 2), value, np.float32),) for value in (-3.0, 3.0)]
    for kernels in ("xnnpack", "micro"):
        low, high = (y[0] for y in run_file(content, wide, kernels=kernels))
        assert np.abs(low + 0.1).max() < 0.001 > np.abs(high - 0.1).max()  # a step of x: 0.03


@pytest.mark.parametrize("last", [lambda x: x.flip(3), lambda x: F.avg_pool2d(x, 2)])
def test_all_that_is_passed_on_to_what_does_not_rescale_has_one_scale(last: Callable[[Tensor], Tensor]) -> None:
    """A maximum has a narrower range than what it is taken of."""
    _, after, before, settled = of(
        lambda layers, x: last(F.max_pool2d(F.pad(layers[0](x), (1, 1, 1, 1), "reflect"), 3)), nn.Conv2d(2, 3, 1)
    )
    file = read_file(after.content)
    chain = [op.outputs[0] for op in file.ops]
    assert len({before.kept[i] for i in chain}) > 1
    assert len({settled.kept[i] for i in chain}) == 1


def test_a_maximum_leaves_its_scale_to_itself() -> None:
    """It has that of what it is taken of, which is twice what the mean beside it needs."""

    def both(layers: object, x: Tensor) -> Tensor:
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)

    model, after, before, settled = of(both)
    file = read_file(after.content)
    (joined,) = file.outputs
    index = {tensor.name: tensor.index for tensor in file.tensors}
    assert settled.kept[index["amax"]] == before.kept[index["input"]]
    assert settled.kept[joined] == before.kept[joined] == settled.kept[index["amax/for cat"]]
    assert after.layers["amax/for cat"] == "amax"  # what is said of it names the layer
    assert model.layers.items() <= after.layers.items()
