"""Operators of their own that TFLite Micro lacks or computes otherwise: the same numbers in both interpreters."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbcompile.exporters.to_tflite.build import Samples, build_file
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.options import Recipe
from nbcompile.exporters.to_tflite.targets.micro_operators import check_ops
from tests.exporters.to_tflite.lowered import lowered


class Clips(nn.Module):
    """Clips that are part of no convolution, and a choice."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.conv = nn.ConvTranspose2d(2, 2, 2, 2, bias=False), nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = 8 * self.conv(x)
        return (
            F.relu6(F.interpolate(y, scale_factor=2.0)),
            F.relu6(self.up(x)),
            F.relu6(x),
            F.relu6(y) * y.tanh(),
            F.hardtanh(x),
            torch.where(y > 0, y.tanh(), -y),
        )


def test_clips_and_choices_are_the_same_everywhere() -> None:
    torch.manual_seed(0)
    network, samples = Clips().eval(), [(3 * torch.randn(1, 2, 5, 3),) for _ in range(24)]
    data = Samples.of(network, samples[0], samples[8:], samples[:8])
    built = build_file(network, samples[0], data, Recipe(), micro=True)
    file = read_file(built.content)
    check_ops(file)
    assert {"RELU", "MINIMUM", "MAXIMUM", "SELECT_V2"} <= {op.name for op in file.ops}
    assert [t.name for t in file.tensors if t.dtype.kind == "f"] == []
    for kernels in ("xnnpack", "micro"):
        found = data.agreement(built.model, built.content, kernels)
        assert [part.output for part in found.parts if part.sqnr < 28] == [], kernels


@pytest.mark.slow
def test_other_targets_keep_the_one_operator() -> None:
    model, _ = lowered(Clips(), torch.randn(1, 2, 5, 3))
    assert "RELU6" in {op.name for op in read_file(model.content).ops}


class Lacking(nn.Module):
    """What TFLite Micro has no kernel for, or none for integers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.steps = nn.Conv2d(2, 3, 1), nn.RNN(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = 3 * self.conv(x)
        return (
            y.repeat_interleave(3, 2),
            x.repeat(1, 2, 12, 1),
            self.steps(x.flatten(0, 2)[None, :, :4])[0][:, -1],
            F.softplus(y),
            F.mish(y),
            y.std((2, 3)),
        )


@pytest.mark.slow
def test_what_it_lacks_is_put_together() -> None:
    torch.manual_seed(0)
    network, samples = Lacking().eval(), [(torch.randn(1, 2, 6, 4),) for _ in range(24)]
    data = Samples.of(network, samples[0], samples[8:], samples[:8])
    built = build_file(network, samples[0], data, Recipe(), micro=True)
    file = read_file(built.content)
    check_ops(file)
    assert max(len(op.inputs) for op in file.ops if op.name == "CONCATENATION") == 10
    assert {"softplus/exp", "softplus/log", "sqrt"} <= set(built.in_float)
    for kernels in ("xnnpack", "micro"):
        found = data.agreement(built.model, built.content, kernels)
        assert [part.output for part in found.parts if part.sqnr < 15] == [], kernels
