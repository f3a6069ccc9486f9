import numpy as np
import pytest
import torch
from torch import nn

from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileTensor, read_file
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.lower.lowering import float_model
from nbcompile.exporters.to_tflite.quantize.weights_only import to_dynamic, to_float16
from nbcompile.exporters.to_tflite.run.interpreters import Sample, run_file


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 40, 3, padding=1)
        self.depthwise = nn.Conv2d(40, 40, 5, groups=40)
        self.small = nn.Conv2d(40, 2, 1)
        self.twice = nn.Conv2d(2, 64, 3, padding=1)
        self.back = nn.Conv2d(64, 2, 3, padding=1)
        self.head = nn.Linear(2, 600)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.small(self.depthwise(self.first(x).relu()))
        for _ in range(2):
            y = self.back(self.twice(y).relu())
        return self.head(y.mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> FloatModel:
    torch.manual_seed(0)
    return float_model(Net().eval(), (torch.randn(1, 3, 9, 7),))


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    random = np.random.default_rng(0)
    return [(random.standard_normal((1, 9, 7, 3)).astype(np.float32),) for _ in range(4)]


def constants(content: bytes) -> dict[str, FileTensor]:
    return {t.name: t for t in read_file(content).tensors if t.data is not None}


def error(model: FloatModel, content: bytes, samples: list[Sample], kernels: str) -> float:
    """The largest error of an output over the largest output."""
    found, wanted = (
        np.concatenate([y[0] for y in run_file(c, samples, kernels=kernels)]) for c in (content, model.content)
    )
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def versions(file: File, name: str) -> set[int]:
    return {op.version for op in file.ops if op.name == name}


@pytest.mark.parametrize("kernels", ["xnnpack", "reference"])
def test_float16_halves_the_file(kernels: str, model: FloatModel, samples: list[Sample]) -> None:
    content = to_float16(model.content)
    assert error(model, content, samples, kernels) < 2e-3
    exact = constants(model.content)
    for name, tensor in constants(content).items():
        if tensor.dtype == np.float16:
            np.testing.assert_array_equal(tensor.data, exact[name.removesuffix(".float16")].data.astype(np.float16))
    weights = sum(t.nbytes for t in constants(content).values() if t.name.endswith(("weight.float16", "bias.float16")))
    assert 2 * weights == sum(t.nbytes for name, t in exact.items() if name.endswith(("weight", "bias")))
    assert len(content) < len(model.content) - 0.9 * weights + 5000  # what names and operators take


def test_a_number_that_float16_cannot_hold_stays_float32() -> None:
    layer = nn.Conv2d(2, 3, 1)
    with torch.no_grad():
        layer.weight[0] = 1e5
    content = to_float16(float_model(layer.eval(), (torch.randn(1, 2, 3, 3),)).content)
    kept = {tensor.dtype.name for name, tensor in constants(content).items() if "weight" in name}
    assert kept == {"float32"}


@pytest.mark.parametrize("kernels", ["xnnpack", "reference"])
def test_dynamic_has_int8_weights_where_it_pays(kernels: str, model: FloatModel, samples: list[Sample]) -> None:
    content = to_dynamic(model.content)
    assert error(model, content, samples, kernels) < 0.05
    found = {name: t.dtype.name for name, t in constants(content).items() if name.endswith("weight")}
    large = {f"{layer}.weight" for layer in ("first", "twice", "twice_2", "back", "back_2", "head")}
    assert {name for name, dtype in found.items() if dtype == "int8"} == large
    assert {name for name, dtype in found.items() if dtype == "float32"} == {"depthwise.weight", "small.weight"}
    assert versions(read_file(content), "FULLY_CONNECTED") == {12}


def test_dynamic_rounds_each_channel_by_itself(model: FloatModel) -> None:
    exact, found = constants(model.content), constants(to_dynamic(model.content))
    for name, channels in (("first.weight", 40), ("head.weight", 600)):
        tensor = found[name]
        assert tensor.quantization is not None
        assert tensor.quantization.scale.shape == (channels,)
        error = np.abs(tensor.dequantized(tensor.data) - exact[name].data).reshape(channels, -1).max(1)
        assert (error <= 0.501 * tensor.quantization.scale).all()
    whole = constants(to_dynamic(model.content, per_channel=False))
    assert all(t.quantization.scale.size == 1 for t in whole.values() if t.quantization)
    dense = constants(to_dynamic(model.content, dense_per_channel=False))
    assert [dense[name].quantization.scale.size for name in ("first.weight", "head.weight")] == [40, 1]


def test_a_channel_of_zeros_stays_zero() -> None:
    layer = nn.Conv2d(32, 32, 3)
    with torch.no_grad():
        layer.weight[3] = 0
        layer.bias.zero_()
    model = float_model(layer.eval(), (torch.randn(1, 32, 4, 4),))
    sample = (np.ones((1, 4, 4, 32), np.float32),)
    ((y,),) = run_file(to_dynamic(model.content), [sample])
    assert (y[..., 3] == 0).all()
    assert np.abs(y[..., 4]).max() > 0


@pytest.mark.parametrize("change", [to_float16, to_dynamic])
def test_named_operators_keep_their_constants(change: object, model: FloatModel, samples: list[Sample]) -> None:
    content = change(model.content, except_for={"first", "back"})  # type: ignore[operator]
    found = constants(content)
    for name in ("first.weight", "back.weight"):
        np.testing.assert_array_equal(found[name].data, constants(model.content)[name].data)
    assert "head.weight" not in found or found["head.weight"].dtype == np.int8
    assert error(model, content, samples, "xnnpack") < 0.05
