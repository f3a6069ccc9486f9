"""What PyTorch's exporter expresses wrongly is right in the file, and what is wrong is said with its place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nbcompile
from nbcompile.core.errors import ExportError
from nbcompile.core.numerics import relative_error
from nbcompile.exporters.to_onnx.export import write_onnx
from nbcompile.exporters.to_onnx.layers import onnx_layers


class Volumes(nn.Module):
    """Bias-free convolutions of volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv3d(4, 6, (3, 2, 1), 2, (1, 0, 0), bias=False)
        self.groups = nn.Conv3d(4, 6, 2, dilation=(1, 2, 2), groups=2, bias=False)
        self.same = nn.Conv3d(4, 5, 4, padding="same", bias=False)  # an odd sum of padding
        self.biased = nn.Conv3d(4, 5, 3, padding="valid")

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.plain(x).relu(), self.groups(x), self.same(x), self.biased(x)


class Pools(nn.Module):
    """Pools that divide by another number than that of their window's elements."""

    def __init__(self, of: Callable[..., Tensor]) -> None:
        super().__init__()
        self.of, self.scale = of, nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = x * self.scale
        return (
            self.of(x, 2, divisor_override=1),
            self.of(x, 3, 2, 1, divisor_override=2),
            self.of(x, 3, 2, 1, count_include_pad=False, divisor_override=5),
            self.of(x, 3, 3, 1, ceil_mode=True, divisor_override=4),  # its last window ends behind the padding
            self.of(x, 2, 3, ceil_mode=True, divisor_override=4),
            self.of(x, 3, 2, 1, count_include_pad=False, ceil_mode=True),
        )


class Attention(nn.Module):
    """Without heads, with and without masks and scales."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18)
        self.register_buffer("mask", torch.randn(7, 7))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = self.qkv(x).chunk(3, -1)
        of = F.scaled_dot_product_attention
        return (
            of(q, k, v),
            of(q, k[:, 2:], v[:, 2:], is_causal=True),
            of(q, k, v, self.mask, scale=0.3),
            of(q, k, v, q @ k.mT > 0.1 * self.mask.abs() - 1),
            of(q[0], k[0], v[0], self.mask[0]),
            of(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1)),
        )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Volumes(), (4, 6, 5, 7)),
        (Pools(F.avg_pool2d), (3, 7, 6)),
        (Pools(F.avg_pool3d), (2, 7, 6, 5)),
        (Attention(), (7, 6)),
    ],
    ids=["conv3d", "avg_pool2d", "avg_pool3d", "attention"],
)
def test_what_the_exporter_would_lose_is_in_the_file(model: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    path, x = tmp_path / "it.onnx", torch.randn(2, *shape)
    write_onnx(model.eval(), (x,), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for inputs in (torch.randn(3, *shape), torch.ones(1, *shape)):
        with torch.no_grad():
            wanted = model(inputs)
        made = session.run(None, {"input": inputs.numpy()})
        assert relative_error([torch.from_numpy(y) for y in made], list(wanted)) < 1e-5
    if isinstance(model, Volumes):
        params = {layer.name: layer.params for layer in onnx_layers(path)}
        assert params == {"plain": 144, "groups": 96, "same": 1280, "biased": 545}


class Net(nn.Module):
    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.head, self.inside = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), forward

    def forward(self, x: Tensor) -> Any:
        return self.head(self.inside(self.conv(x).relu())) + 1


def test_the_first_operator_that_differs_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("nbcompile.exporters.to_onnx.graph.mend", lambda program: None)
    model = Net(lambda x: F.avg_pool2d(x, 2, divisor_override=1)).eval()
    line = Net.forward.__code__.co_firstlineno + 1
    sentence = rf"is allowed, first at avg_pool2d at .*test_mend\.py:{line}; no file was kept$"
    with pytest.raises(ExportError, match=sentence):
        write_onnx(model, (torch.randn(1, 3, 7, 5),), tmp_path / "it.onnx")
    assert not list(tmp_path.iterdir())


def test_an_operator_that_onnx_lacks_has_a_place(tmp_path: Path) -> None:
    model = Net(lambda x: x.kthvalue(2, 1)[0][:, None].expand(-1, 4, -1, -1)).eval()
    line = Net.forward.__code__.co_firstlineno + 1
    sentence = rf"Net cannot be .* ONNX: aten\.kthvalue at .*test_mend\.py:{line} has no form there; write it in other"
    with pytest.raises(ExportError, match=sentence):
        write_onnx(model, (torch.randn(1, 3, 7, 5),), tmp_path / "it.onnx")


class Standardized(nn.Module):
    """Its tensors are called as operators are."""

    def __init__(self, how: str) -> None:
        super().__init__()
        mean = torch.rand(1, 3, 1, 1)
        if how == "tensor":
            self.mean = mean
        elif how == "parameter":
            self.mean = nn.Parameter(mean)
        else:
            self.register_buffer("mean", mean, persistent=how == "buffer")
        self.conv, self.add = nn.Conv2d(3, 4, 3), nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        x = x - self.mean
        y: Tensor = self.conv(x / (self.mean + 2)).mean((2, 3))
        return (y + self.add) * self.add


@pytest.mark.parametrize("how", ["tensor", "parameter", "buffer", "non-persistent"])
def test_a_tensor_may_be_called_like_an_operator(how: str, tmp_path: Path) -> None:
    """torch.export would take the operator's place in the code for the tensor's."""
    model, x = Standardized(how).eval(), torch.randn(2, 3, 7, 5)
    nbcompile.export(model, tmp_path / "it.onnx", x)
    assert nbcompile.verify(model, tmp_path / "it.onnx", x).passed


def test_a_number_that_depends_on_the_batch_size(tmp_path: Path) -> None:
    def own_kernels(x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        kernels = x.mean((2, 3)).view(b * c, 1, 1, 1).expand(-1, -1, 3, 3)
        return F.conv2d(x.reshape(1, b * c, h, w), kernels, groups=b * c).view(b, c, h - 2, w - 2)

    model, x = Net(own_kernels).eval(), torch.randn(2, 3, 7, 5)
    sentence = (
        r"Net cannot be .* ONNX: an option of an operator, such as groups, depends on the batch size; .* --batch 1$"
    )
    with pytest.raises(ExportError, match=sentence):
        write_onnx(model, (x,), tmp_path / "it.onnx")
    write_onnx(model, (x,), tmp_path / "it.onnx", batch=2)
