from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nbcompile
from nbcompile.core.errors import CheckpointError
from nbcompile.exporters import TFLITE
from nbcompile.exporters.to_tflite.file.flatbuffer import pack, unpack
from tests.exporters.to_tflite.small_networks import small


def test_layers_cost_what_pytorch_counts(tmp_path: Path) -> None:
    model, images = small((15, 9))
    nbcompile.export(
        model, tmp_path / "x.tflite", images[:1], calibration=images, equalize="never", correct_bias="never"
    )
    found = TFLITE.read_layers(tmp_path / "x.tflite")
    expected = nbcompile.cost(model, images[:1])
    assert [layer.name for layer in found if layer.macs] == ["0", "3", "5", "8", "11"]
    assert sum(layer.macs for layer in found) == expected.macs
    assert {layer.kind for layer in found} >= {"CONV_2D int8", "DEPTHWISE_CONV_2D int8", "FULLY_CONNECTED int8"}


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 3, stride=2)
        self.project = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(x).flatten(2)
        return self.project((y.transpose(1, 2) @ y).softmax(-1) @ y.transpose(1, 2))


def test_transposed_convolutions_and_products(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 3, 2)
    nbcompile.export(Mixed().eval(), tmp_path / "x.tflite", x, quantize="float32")
    found = {layer.kind.split()[0]: layer for layer in TFLITE.read_layers(tmp_path / "x.tflite") if layer.macs}
    n = 7 * 5
    assert found["TRANSPOSE_CONV"].macs == 3 * 2 * 3 * 4 * 9
    assert found["FULLY_CONNECTED"].macs == n * 4 * 6
    assert found["BATCH_MATMUL"].macs == n * n * 4


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "x.tflite").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"x\.tflite cannot be read: "):
        TFLITE.read_layers(tmp_path / "x.tflite")
    with pytest.raises(CheckpointError, match=r"none\.tflite cannot be read: No such file"):
        TFLITE.read_layers(tmp_path / "none.tflite")


def test_an_operator_without_its_operands(tmp_path: Path) -> None:
    path = tmp_path / "x.tflite"
    nbcompile.export(nn.Linear(4, 6).eval(), path, torch.randn(1, 4), quantize="float32")
    model = unpack(path.read_bytes())
    model.subgraphs[0].operators[0].inputs = np.array([0], np.int32)
    path.write_bytes(pack(model))
    with pytest.raises(
        CheckpointError,
        match=r"x\.tflite cannot be read: operator 0 \(FULLY_CONNECTED\) of tensors \[\(1, 4\)\] cannot",
    ):
        TFLITE.read_layers(path)
