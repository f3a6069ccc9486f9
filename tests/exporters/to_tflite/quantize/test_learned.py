from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.errors import UsageError
from nbcompile.exporters.to_tflite.build import quantized_form
from nbcompile.exporters.to_tflite.file.flatbuffer import File, read_file
from nbcompile.exporters.to_tflite.file.options import Recipe
from nbcompile.exporters.to_tflite.quantize.learned import LearnedRanges
from nbcompile.exporters.to_tflite.quantize.ranges import Ranges
from nbcompile.exporters.to_tflite.quantize.shared_scales import copies_in


class Net(nn.Module):
    """A clip of its own, and a concatenation with a part that is far too wide."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        clipped = nn.functional.relu6(x.flip(1))
        return torch.cat([30 * clipped, self.two(x), x], 1)


def scales(file: File) -> list[tuple[Any, ...]]:
    return [(t.shape, t.quantization.scale.tolist()) for t in file.tensors if t.quantization is not None]


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, Tensor, bytes, LearnedRanges]:
    """A network, its example, its file from a calibration set, and the ranges of that."""
    torch.manual_seed(0)
    model, images = Net().eval(), torch.randn(16, 3, 7, 5)
    form, ranges, content = quantized_form(model, (images[:1],), [(x[None],) for x in images], Recipe())
    assert isinstance(ranges, Ranges)
    file = read_file(form.content)
    assert copies_in(file), "there is nothing that is copied"
    return model, images[:1], content, LearnedRanges.of(file, ranges.kept)


def test_the_same_ranges_give_the_same_file(made: tuple[nn.Module, Tensor, bytes, LearnedRanges]) -> None:
    model, example, content, learned = made
    again = LearnedRanges.from_json(learned.to_json())
    assert again == learned
    _, _, found = quantized_form(model, (example,), [], Recipe(), learned=again)
    assert scales(read_file(found)) == scales(read_file(content))
    inputs = learned.within((100 * torch.randn(2, 3, 7, 5), torch.arange(3)))
    assert (float(inputs[0].min()), float(inputs[0].max())) == pytest.approx(learned.values[0].limits)


def test_the_form_for_tflite_micro_has_them_too(made: tuple[nn.Module, Tensor, bytes, LearnedRanges]) -> None:
    model, example, content, learned = made
    _, _, found = quantized_form(model, (example,), [], Recipe(), micro=True, learned=learned)
    lite, micro = read_file(content), read_file(found)
    assert "MINIMUM" in {op.name for op in micro.ops} - {op.name for op in lite.ops}
    assert [lite.step(i) for i in lite.outputs] == [micro.step(i) for i in micro.outputs]


def grown(net: Net) -> None:
    net.two = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))  # type: ignore[assignment]


def wider(net: Net) -> None:
    net.two = nn.Conv2d(4, 6, 3, padding=1)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (grown, "'.*' is CONV_2D .* where they have "),
        (wider, r"'two' is CONV_2D \(1, 7, 5, 6\) where they have CONV_2D \(1, 7, 5, 4\)"),
    ],
)
def test_another_network_is_refused(
    made: tuple[nn.Module, Tensor, bytes, LearnedRanges], change: Callable[[Net], None], sentence: str
) -> None:
    net = Net().eval()
    change(net)
    beginning = "the ranges that training with --int8 recorded are of another network: "
    with pytest.raises(UsageError, match=f"^{beginning}{sentence}.*; train again with --int8, or give --calibration"):
        quantized_form(net, (made[1],), [], Recipe(), learned=made[3])


def test_fewer_values_are_refused(made: tuple[nn.Module, Tensor, bytes, LearnedRanges]) -> None:
    model, example, _, learned = made
    short = replace(learned, values=learned.values[:-1])
    with pytest.raises(UsageError, match=r"another network: it computes \d+ values, and they are of \d+; train again"):
        quantized_form(model, (example,), [], Recipe(), learned=short)


@pytest.mark.parametrize(
    "record",
    [
        None,
        {},
        {"ranges": 3, "copies": []},
        {"ranges": [["input", [1], 0.0, float("nan")]], "copies": []},
        {"ranges": [["input", [1], 0.5, 1.0]], "copies": []},
        {"ranges": [["input", [1], 0.0, 1.0]], "copies": [[0, 1, 0.0, 1.0]]},
        {"ranges": [["input", [1], 0.0]], "copies": []},
        {"ranges": [["input", [1], "0", "1"]], "copies": []},
    ],
)
def test_a_damaged_record_is_refused(record: Any) -> None:
    with pytest.raises(UsageError, match=r"^the ranges that training with --int8 recorded are damaged: train again"):
        LearnedRanges.from_json(record)
