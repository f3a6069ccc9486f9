import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.judging.decibels import sqnr
from nbcompile.exporters.to_tflite.file.flatbuffer import pack, read_file, unpack
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.lower.lowering import float_model
from nbcompile.exporters.to_tflite.quantize.bias import corrected
from nbcompile.exporters.to_tflite.quantize.quantize import quantize
from nbcompile.exporters.to_tflite.run.interpreters import Sample, run_file


class Net(nn.Module):
    """Positive inputs and one scale for all weights of a layer: rounding shifts the mean of every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 12, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.head = nn.Linear(6, 5)
        with torch.no_grad():
            for layer in (self.first, self.depthwise, self.up):
                layer.weight.abs_()
                layer.weight.view(-1)[0] *= 20

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return self.head(self.up(y + self.depthwise(y).relu()).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> FloatModel:
    torch.manual_seed(0)
    return float_model(Net().eval(), (torch.randn(1, 2, 9, 11),))


def samples(count: int, seed: int = 0) -> list[Sample]:
    random = np.random.default_rng(seed)
    return [(random.random((1, 9, 11, 2)).astype(np.float32),) for _ in range(count)]


def outputs(content: bytes, given: list[Sample]) -> np.ndarray:
    return np.concatenate([y[0] for y in run_file(content, given)])


@pytest.mark.parametrize(("scheme", "io"), [("int8", "int8"), ("int8", "float"), ("int16x8", "int8")])
def test_takes_back_the_mean_error(scheme: str, io: str, model: FloatModel) -> None:
    given, fresh = samples(40), samples(20, seed=1)
    plain = quantize(model, given, scheme=scheme, io=io, per_channel=scheme == "int16x8")
    better = corrected(model, plain, given)
    wanted = outputs(model.content, fresh)
    before, after = outputs(plain, fresh) - wanted, outputs(better, fresh) - wanted
    assert np.abs(after.mean(0)).max() < 0.5 * np.abs(before.mean(0)).max()
    assert sqnr(wanted + after, wanted) > sqnr(wanted + before, wanted) + 3


def test_only_biases_change(model: FloatModel) -> None:
    given = samples(8)
    plain = quantize(model, given, per_channel=False)
    better = corrected(model, plain, given)
    assert len(better) == len(plain)
    assert plain == quantize(model, given, per_channel=False)  # the argument is left as it was
    file, changed = read_file(plain), set()
    read_by = {i: file.tensors[op.outputs[0]].name for op in file.ops for i in op.inputs}
    for before, after in zip(file.tensors, read_file(better).tensors, strict=True):
        if before.data is not None and not np.array_equal(before.data, after.data):
            assert before.dtype == np.int32
            changed.add(read_by[before.index])
    assert changed == {"first", "depthwise", "up", "head"}


def test_float_layers_and_float_files_are_left_alone(model: FloatModel) -> None:
    given = samples(4)
    assert corrected(model, model.content, given) == model.content
    content = quantize(model, given, float_layers=["*"])
    assert corrected(model, content, given) == content


def test_biases_that_two_layers_share_are_left_alone() -> None:
    layer = nn.Linear(3, 3)
    model = float_model(nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(3, 2, bias=False)).eval(), (torch.rand(1, 3),))
    given = [(np.random.default_rng(i).random((1, 3)).astype(np.float32),) for i in range(4)]
    network = unpack(quantize(model, given, per_channel=False))
    graph = network.subgraphs[0]
    first, second = (graph.tensors[op.inputs[2]] for op in graph.operators[:2])
    second.buffer = first.buffer
    content = pack(network)
    assert corrected(model, content, given) == content


def test_errors_that_may_be_chance_are_left_alone(model: FloatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    given = samples(6)
    content = quantize(model, given)
    monkeypatch.setattr("nbcompile.exporters.to_tflite.quantize.bias.SURE", float("inf"))
    assert corrected(model, content, given) == content
