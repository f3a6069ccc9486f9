"""What ``fuse`` merges stays merged in every file: as many convolutions as the network has, and no norms."""

from collections import Counter
from pathlib import Path

import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter
from torch import Tensor

import nbcompile
from nbcompile.core.example import change_tensors
from tests.habits import blocks  # noqa: F401  registers rows
from tests.habits.table import HABITS

CONVOLUTIONS = {"OrepaLike": 3, "EcbsrLike": 4, "YoloLike": 19}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_layers_in_files(name: str, tmp_path: Path) -> None:
    row = next(row for row in HABITS if row.name == name)
    model, inputs = row.build().float(), change_tensors(Tensor.float, row.example())
    nbcompile.export(nbcompile.fuse(model, example_input=inputs), tmp_path / "it.onnx", inputs)
    nbcompile.export(model, tmp_path / "it.tflite", inputs, quantize="float32")
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "it.onnx").graph.node)
    assert (operators["Conv"], operators["BatchNormalization"]) == (CONVOLUTIONS[name], 0)
    assert operators["Mul"] == operators["Sigmoid"]  # of SiLU, and of no norm
    lite = Counter(one["op_name"] for one in Interpreter(str(tmp_path / "it.tflite"))._get_ops_details())
    assert (lite["CONV_2D"], lite["DEPTHWISE_CONV_2D"], lite["MUL"]) == (CONVOLUTIONS[name], 0, lite["LOGISTIC"])
