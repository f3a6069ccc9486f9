"""The networks of MLPerf Tiny: what they cost, and what they compute, against their Keras definitions by hand."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import nbcompile
from nbcompile import zoo
from nbcompile.core.cost import cost
from nbcompile.core.errors import NBCompileError, UsageError
from nbcompile.models import build
from nbcompile.testing import enliven_
from nbcompile.zoo import NETWORKS

NAMES = ("dscnn_kws", "mobilenetv1_25", "resnet8", "autoencoder")


@pytest.mark.parametrize(
    ("name", "shape", "macs", "params", "stored"),
    [  # numbers in the trained files of github.com/mlcommons/tiny; MACs of the convolutions and linear layers there
        ("dscnn_kws", (1, 1, 49, 10), 2_656_768, 23_756, 24_908),
        ("mobilenetv1_25", (1, 3, 96, 96), 7_489_664, 216_322, 221_794),
        ("resnet8", (1, 3, 32, 32), 12_501_632, 78_186, 78_666),
        ("autoencoder", (1, 640), 264_192, 267_928, 269_992),
    ],
)
def test_costs_what_its_reference_costs(name: str, shape: tuple[int, ...], macs: int, params: int, stored: int) -> None:
    network = NETWORKS[name]
    assert network.input_shape == shape
    model = network.factory()
    counted = cost(model, torch.zeros(shape))
    assert (counted.macs, counted.params, counted.unread_params) == (macs, params, 0)
    statistics = sum(b.numel() for key, b in model.named_buffers() if key.endswith(("running_mean", "running_var")))
    assert params + statistics == stored  # "Total params" of Keras


class Keras:
    """The layers of a network in the order of its ``keras_model.py``, called by their Keras arguments."""

    def __init__(self, model: nn.Module) -> None:
        kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
        self.left: Iterator[nn.Module] = iter([m for m in model.modules() if isinstance(m, kinds)])

    def conv(
        self, x: Tensor, filters: int, kernel: tuple[int, int], stride: int = 1, depthwise: bool = False
    ) -> Tensor:
        """``padding="same"``: ``ceil(size / stride)`` outputs, the odd zero at the end."""
        layer = next(self.left)
        assert isinstance(layer, nn.Conv2d)
        assert layer.weight.shape == (filters, 1 if depthwise else x.shape[1], *kernel)
        pads: list[int] = []
        for size, k in zip((x.shape[3], x.shape[2]), reversed(kernel), strict=True):
            total = max((-(-size // stride) - 1) * stride + k - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), layer.weight, layer.bias, stride, groups=x.shape[1] if depthwise else 1)

    def norm(self, x: Tensor) -> Tensor:
        layer = next(self.left)
        assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
        return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=0.001)

    def dense(self, x: Tensor, units: int) -> Tensor:
        layer = next(self.left)
        assert isinstance(layer, nn.Linear)
        assert layer.out_features == units
        return x @ layer.weight.T + layer.bias

    def unit(
        self, x: Tensor, filters: int, kernel: tuple[int, int], stride: int = 1, depthwise: bool = False
    ) -> Tensor:
        return self.norm(self.conv(x, filters, kernel, stride, depthwise)).relu()


def kws(keras: Keras, x: Tensor) -> Tensor:
    height, width = x.shape[2] // 2, x.shape[3] // 2
    x = keras.unit(x, 64, (10, 4), 2)
    for _ in range(4):
        x = keras.unit(keras.unit(x, 64, (3, 3), depthwise=True), 64, (1, 1))
    return keras.dense(F.avg_pool2d(x, (height, width)).flatten(1), 12)


def vww(keras: Keras, x: Tensor) -> Tensor:
    x = keras.unit(x, filters := 8, (3, 3), 2)
    for factor, stride in [(2, 1), (2, 2), (1, 1), (2, 2), (1, 1), (2, 2), *[(1, 1)] * 5, (2, 2), (1, 1)]:
        x = keras.unit(x, filters, (3, 3), stride, depthwise=True)
        x = keras.unit(x, filters := factor * filters, (1, 1))
    return keras.dense(x.mean((2, 3)), 2)


def image_classification(keras: Keras, x: Tensor) -> Tensor:
    x = keras.unit(x, 16, (3, 3))
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        y = keras.norm(keras.conv(keras.unit(x, filters, (3, 3), stride), filters, (3, 3)))
        x = (y + (x if stride == 1 else keras.conv(x, filters, (1, 1), stride))).relu()
    return keras.dense(F.avg_pool2d(x, min(x.shape[2:])).flatten(1), 10)


def anomaly_detection(keras: Keras, x: Tensor) -> Tensor:
    for units in (128, 128, 128, 128, 8, 128, 128, 128, 128):
        x = keras.norm(keras.dense(x, units)).relu()
    return keras.dense(x, 640)


DEFINITIONS: dict[str, Callable[[Keras, Tensor], Tensor]] = {
    "dscnn_kws": kws,
    "mobilenetv1_25": vww,
    "resnet8": image_classification,
    "autoencoder": anomaly_detection,
}


def lively(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """One of the networks in float64, and an input of its size."""
    x = torch.randn(3, *NETWORKS[name].input_shape[1:], generator=torch.Generator().manual_seed(seed)).double()
    return enliven_(NETWORKS[name].factory().double().eval(), x), x


@pytest.mark.parametrize("name", NAMES)
def test_computes_what_its_keras_definition_says(name: str) -> None:
    model, x = lively(name)
    keras = Keras(model)
    with torch.no_grad():
        expected = DEFINITIONS[name](keras, x)
    assert next(keras.left, None) is None
    assert float(expected.std(0).max()) > 1e-3 * float(expected.abs().max())  # inputs matter
    assert torch.allclose(model(x), expected, rtol=1e-11, atol=1e-12)


def test_symmetric_padding_would_be_another_network() -> None:
    """What the padding is for: PyTorch's own gives as many outputs, of other windows."""
    model, x = lively("resnet8")
    wrong = nn.ZeroPad2d((1, 0, 1, 0))
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.ZeroPad2d):
            model.set_submodule(name, wrong)
    assert not torch.allclose(model(x), image_classification(Keras(model), x), rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_any_classes_and_channels_in_layers_that_trace(name: str) -> None:
    given = {"in_features": 7} if name == "autoencoder" else {"num_classes": 5, "in_channels": 2}
    _, first, *sizes = NETWORKS[name].input_shape
    model = NETWORKS[name].factory(**given).eval()
    x = torch.randn(2, given.get("in_channels", 7), *sizes)
    assert model(x).shape == ((2, 7) if name == "autoencoder" else (2, 5))
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))
    assert all(type(leaf).__module__.startswith("torch.nn") for leaf in model.modules() if not list(leaf.children()))
    assert first != 2


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("nbcompile:dscnn_kws", (1, 1, 49, 10)),
        ("nbcompile:mobilenetv1_25?num_classes=3&in_channels=1", (1, 1, 96, 96)),
        ("nbcompile:autoencoder", (1, 640)),
        ("nbcompile:autoencoder?in_features=320", (1, 320)),
    ],
)
def test_is_a_model_string(spec: str, shape: tuple[int, ...]) -> None:
    built = build(spec)
    assert built.inputs[0].shape == shape
    built.model.eval()(torch.zeros(shape))


def test_options_that_a_network_has_not() -> None:
    with pytest.raises(UsageError, match=r"building 'nbcompile:autoencoder\?num_classes=3' failed: TypeError"):
        build("nbcompile:autoencoder?num_classes=3")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in ("dscnn_kws", "mobilenetv1_25") else []) for name in NAMES],
)
def test_giant_and_back(name: str) -> None:
    """Expanded at strided layers, too, which stand behind their padding; then contracted into the original."""
    model, x = lively(name)
    giant = nbcompile.expand(model, x[:1], where="all", preserve=True)
    plt = nbcompile.PLT(giant, steps=1)
    plt.step()
    tiny = nbcompile.fuse(giant)
    nbcompile.verify(giant, tiny).raise_on_failure()
    assert type(tiny) is type(model)


def test_keyword_spotting_says_no_to_other_sizes() -> None:
    with pytest.raises(NBCompileError):
        nbcompile.expand(zoo.dscnn_kws(), torch.zeros(1, 1, 20, 10))
