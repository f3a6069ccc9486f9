"""Networks of other dtypes than float32 become files that run."""

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import nbcompile
from nbcompile.core.errors import PreconditionError
from nbcompile.core.numerics import relative_error
from nbcompile.deploy.single_precision import in_float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.slow
def test_a_giant_of_another_dtype_becomes_a_file_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    x, path = torch.randn(2, 3, 7, 5, dtype=dtype), tmp_path / "tiny.onnx"
    giant = nbcompile.expand(model.to(dtype).eval(), x)
    nbcompile.PLT(giant, steps=1).step()
    tiny = nbcompile.fuse(giant)
    result = nbcompile.export(tiny, path)
    name = str(dtype).removeprefix("torch.")
    assert result.notes == (
        f"the network computes in {name}, the file in float32, and it was compared with the network in float32",
    )
    assert {p.dtype for p in tiny.parameters()} == {dtype}
    nbcompile.verify(giant, path).raise_on_failure()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    made = torch.from_numpy(session.run(None, {"input": x.float().numpy()})[0])
    with torch.no_grad():
        assert relative_error(made, tiny.double()(x.double())) < 1e-6
        giant.get_parameter("3.bias" if "3.bias" in dict(giant.named_parameters()) else "1.bias").add_(1.0)
    assert not nbcompile.verify(giant, path).passed


class Mixes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 4, 1), nn.Parameter(torch.ones(4, 1, 1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) * self.scale
        return y


class SumsInDouble(nn.Module):
    """A part that asks for float64, whose output is; the weights are in float32, and so are files."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return y.softmax(1, dtype=torch.float64), torch.full_like(y, 1 / 3, dtype=torch.float64) * y


def test_outputs_in_float64_are_judged_as_what_computed_them(tmp_path: Path) -> None:
    model, x, path = SumsInDouble().eval(), torch.randn(2, 3, 7, 5), tmp_path / "f.onnx"
    nbcompile.export(model, path, x)
    assert nbcompile.verify(model, path, x).passed
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] += 1e-3
    assert not nbcompile.verify(model, path, x).passed


class CastsItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(x.double())
        return y


@pytest.mark.parametrize("name", ["f.onnx", "f.tflite"])
def test_a_network_that_asks_for_another_dtype_is_told_so(name: str, tmp_path: Path) -> None:
    options: dict[str, str] = {"quantize": "float32"} if name.endswith("tflite") else {}
    said = r"^CastsItself computes in float64, a file in float32, where it does not run \(RuntimeError: .*\): cast to n"
    with pytest.raises(PreconditionError, match=said):
        nbcompile.export(CastsItself().eval(), tmp_path / name, torch.randn(2, 4), **options)
    assert not (tmp_path / name).exists()


class TakesTwo(nn.Module):
    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        return x + words.sum()


def test_what_is_in_float32_or_mixes_is_left_alone() -> None:
    x, words = torch.randn(1, 3, 4, 4), torch.arange(3)
    for model, inputs in ((nn.Conv2d(3, 4, 1), (x,)), (Mixes(), (x,)), (nn.ReLU(), (x,)), (nn.Identity(), (words,))):
        assert in_float32(model, inputs) == (model, inputs, "")
    model, inputs, note = in_float32(TakesTwo(), (x.double(), words))
    assert [y.dtype for y in inputs] == [torch.float32, torch.int64]
    assert note.startswith("the network computes in float64")
