"""ONNX files that are damaged, or made to be more than they look: one sentence, and little work."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper

from nbcompile.core.errors import CheckpointError
from nbcompile.exporters.to_onnx.file import onnx_input_sizes
from nbcompile.exporters.to_onnx.layers import OnnxLayer, onnx_layers
from tests.exporters.to_onnx.test_layers import write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiny.onnx"


def _conv(path: Path, shape: list[int | str]) -> Path:
    node = helper.make_node("Conv", ["x", "stem.weight"], ["y"], "stem")
    return write(path, [node], {"stem.weight": (4, 3, 3, 3)}, shape)


def _nested(path: Path, depth: int, calls: int, weight: tuple[int, ...] = (3, 3)) -> ModelProto:
    """Functions that call the one below ``calls`` times each; the lowest multiplies by a weight."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]

    def chained(kind: str, times: int, domain: str) -> list[NodeProto]:
        names = ["i", *(f"v{k}" for k in range(times - 1)), "o"]
        return [helper.make_node(kind, [a, "w"], [b], domain=domain) for a, b in pairwise(names)]

    write(path, [helper.make_node(f"F{depth}", ["x", "a.weight"], ["y"], domain="own")], {"a.weight": weight}, [1, 3])
    model = onnx.load(path)
    model.functions.append(helper.make_function("own", "F0", ["i", "w"], ["o"], chained("MatMul", 1, ""), opsets))
    for level in range(1, depth + 1):
        body = chained(f"F{level - 1}", calls, "own")
        model.functions.append(helper.make_function("own", f"F{level}", ["i", "w"], ["o"], body, opsets))
    model.opset_import.append(opsets[1])
    onnx.save(model, path)
    return model


def test_functions_are_counted_before_they_are_inlined(path: Path) -> None:
    _nested(path, depth=3, calls=4)
    assert onnx_layers(path)[0].calls == 4**3
    _nested(path, depth=24, calls=2)
    with pytest.raises(
        CheckpointError, match=r"with its functions inlined the graph has 16,777,216 nodes of .*at most 100,000 nodes"
    ):
        onnx_layers(path)
    _nested(path, depth=101, calls=1)
    with pytest.raises(CheckpointError, match="its functions call each other more than 100 deep"):
        onnx_layers(path)


def test_a_function_that_calls_itself(path: Path) -> None:
    model = _nested(path, depth=1, calls=1)
    model.functions[0].node[0].CopyFrom(helper.make_node("F1", ["i", "w"], ["o"], domain="own"))
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match="its functions call each other more than 100 deep"):
        onnx_layers(path)


def test_functions_do_not_multiply_what_they_hold(path: Path) -> None:
    model = _nested(path, depth=12, calls=2)
    held = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones(2**15, np.float32)))
    model.functions[0].node.append(held)
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match=r"the graph has 8,192 nodes of 53\d,\d+,\d+ bytes; .* in proportion"):
        onnx_layers(path)


def test_a_weight_behind_thousands_of_views(path: Path) -> None:
    names = ["a.weight", *(f"v{k}" for k in range(5_000))]
    views = [helper.make_node("Identity", [a], [b]) for a, b in pairwise(names)]
    write(path, [*views, helper.make_node("MatMul", ["x", names[-1]], ["y"])], {"a.weight": (3, 4)}, [1, 3])
    assert onnx_layers(path) == (OnnxLayer("a", "MatMul", 12, 12, (4, 3)),)


def test_sizes_below_zero_are_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'y' has the sizes \(1, 4, -1, 6\), and no size is below 0"):
        onnx_layers(_conv(path, [1, 3, 1, 8]))
    with pytest.raises(CheckpointError, match=r"'x' has the sizes \(1, 3, -8, 8\), and no size is below 0"):
        onnx_layers(_conv(path, [1, 3, -8, 8]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 99), "is no valid ONNX graph"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", 99), "is no valid ONNX graph"),
        (lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"), "cannot be inferred|is no valid ONNX graph"),
    ],
)
def test_damage_inside_of_a_graph(path: Path, damage: Callable[[ModelProto], None], message: str) -> None:
    model = onnx.load(_conv(path, [1, 3, 8, 8]))
    damage(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=message) as caught:
        onnx_layers(path)
    assert str(path) in str(caught.value)
    with pytest.raises(CheckpointError, match=r"is no valid ONNX graph|the size of input 'x' is not fixed"):
        onnx_input_sizes(path)


def test_names_that_are_no_text(path: Path) -> None:
    whole = _conv(path, [1, 3, 8, 8]).read_bytes()
    path.write_bytes(whole.replace(b"stem.weight", b"st\xffm.weight"))
    with pytest.raises(CheckpointError, match=r"^cannot read .*tiny.onnx: it is no valid ONNX graph \(.+\)$"):
        onnx_layers(path)
