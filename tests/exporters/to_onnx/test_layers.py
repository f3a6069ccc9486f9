from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from nbcompile.core.cost import cost
from nbcompile.core.errors import CheckpointError
from nbcompile.exporters.to_onnx.export import write_onnx
from nbcompile.exporters.to_onnx.layers import OnnxLayer, onnx_layers


class Mixed(nn.Module):
    """Every kind of layer, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, (3, 5), stride=2, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2, bias=False)
        self.again = nn.Conv2d(4, 4, 1)
        self.tokens = nn.Linear(5, 3)
        self.head = nn.Linear(4, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.again(self.again(self.up(self.conv(x))).relu())
        z = self.tokens(y[..., :5])
        return self.head(y.mean((2, 3))), z @ z.transpose(2, 3)


def write(path: Path, nodes: list[NodeProto], weights: dict[str, tuple[int, ...]], shape: list[int | str]) -> Path:
    """A file of another tool: no recorded sizes of inner values and outputs."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "other",
        [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, [None] * len(shape))],
        [numpy_helper.from_array(np.ones(dims, np.float32), name) for name, dims in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tiny.onnx"


def test_layers_cost_what_pytorch_counts(path: Path) -> None:
    model, x = Mixed().eval(), torch.randn(2, 4, 11, 13)
    write_onnx(model, (x,), path)
    layers = {layer.name: layer for layer in onnx_layers(path)}
    counted = {layer.name: layer for layer in cost(model, x).layers}
    matmul = layers.pop(next(name for name, layer in layers.items() if not layer.weight))
    assert matmul.macs == counted.pop("").macs
    assert list(layers) == ["conv", "up", "again", "tokens", "head"]
    for name, layer in layers.items():
        assert (layer.macs, layer.params, layer.calls) == (
            counted[name].macs,
            counted[name].params,
            counted[name].calls,
        )
        assert layer.weight == tuple(model.state_dict()[f"{name}.weight"].shape)
    assert layers["conv"].kind == "Conv"
    assert layers["up"].kind == "ConvTranspose"
    assert layers["head"].kind == "Gemm"


def test_a_fixed_batch_is_counted_per_sample(path: Path) -> None:
    model, x = Mixed().eval(), torch.randn(4, 4, 11, 13)
    write_onnx(model, (x,), path, dynamic_batch=False)
    assert sum(layer.macs for layer in onnx_layers(path)) == cost(model, x).macs


def test_what_the_file_says_about_itself_is_not_believed(path: Path) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8)
    write_onnx(model, (x,), path)
    before, proto = onnx_layers(path), onnx.load(path)
    helper.set_model_props(proto, {"layers": '["something", "else"]', "macs": "1"})
    for value in (*proto.graph.value_info, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_value = 1
    onnx.save(proto, path)
    assert onnx_layers(path) == before == (OnnxLayer("0", "Conv", 108 * 36, 112, (4, 3, 3, 3)),)


def test_weights_of_other_tools(path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "wt"], ["a"], name="MatMul_0"),
        helper.make_node("Add", ["b", "a"], ["c"]),
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones((5, 2), np.float32))),
        helper.make_node("Gemm", ["c", "k"], ["d"]),
        helper.make_node("MatMul", ["d", "e.weight"], ["f"]),
        helper.make_node("Add", ["f", "f"], ["y"]),
    ]
    write(path, nodes, {"w": (5, 3), "b": (5,), "e.weight": (2, 2)}, ["N", 3])
    assert onnx_layers(path) == (
        OnnxLayer("w", "MatMul", 15, 20, (3, 5)[::-1]),
        OnnxLayer("k", "Gemm", 10, 10, (2, 5)),
        OnnxLayer("e", "MatMul", 4, 4, (2, 2)),
    )


def test_einsum(path: Path) -> None:
    def einsum(equation: str, *inputs: str) -> list[NodeProto]:
        return [helper.make_node("Einsum", inputs, ["y"], "node_e", equation=equation)]

    write(path, einsum("b i j, k j -> b i k", "x", "w"), {"w": (5, 4)}, ["N", 3, 4])
    assert onnx_layers(path) == (OnnxLayer("w", "Einsum", 3 * 4 * 5, 20, (5, 4)),)
    write(path, einsum("bij,bkj->bik", "x", "x"), {}, [2, 3, 4])
    assert onnx_layers(path) == (OnnxLayer("node_e", "Einsum", 3 * 4 * 3, 0),)
    write(path, einsum("bij,bkj", "x", "x"), {}, [2, 3, 4])  # its result is ik
    assert onnx_layers(path) == (OnnxLayer("node_e", "Einsum", 3 * 4 * 3, 0),)
    assert onnx_layers(write(path, einsum("bij,bkj->bijk", "x", "x"), {}, [2, 3, 4])) == ()  # it sums over nothing
    for nodes in (einsum("...j->...", "x"), einsum("...j,jk->...k", "x", "w")):
        with pytest.raises(CheckpointError, match=r"the MACs of node '.+' \(Einsum '\.\.\.j.*'\) cannot be counted"):
            onnx_layers(write(path, nodes, {"w": (4, 4)}, [2, 3, 4]))


@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers(operator: str, gates: int, path: Path) -> None:
    node = helper.make_node(operator, ["x", "w", "r", "b"], ["y"], "node_r", hidden_size=5)
    weights = {"w": (1, gates * 5, 4), "r": (1, gates * 5, 5), "b": (1, gates * 10)}
    write(path, [node], weights, [6, 1, 4])
    row = onnx_layers(path)[0]
    assert (row.name, row.kind, row.calls) == ("w", operator, 1)
    assert row.params == gates * (5 * 4 + 5 * 5 + 10)
    assert row.macs == gates * (5 * 4 + 5 * 5)  # per sample: the file's first dimension counts as the batch


def test_layers_inside_functions_are_found(path: Path) -> None:
    function = helper.make_function(
        "own", "Double", ["i", "w"], ["o"], [helper.make_node("MatMul", ["i", "w"], ["o"])],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    write(path, [helper.make_node("Double", ["x", "a.weight"], ["y"], domain="own")], {"a.weight": (3, 4)}, [1, 3])
    model = onnx.load(path)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, path)
    assert onnx_layers(path) == (OnnxLayer("a", "MatMul", 12, 12, (4, 3)),)


def _conv(path: Path, shape: list[int | str], **attributes: Any) -> Path:
    node = helper.make_node("Conv", ["x", "stem.weight"], ["y"], "stem", **attributes)
    return write(path, [node], {"stem.weight": (4, 3, 3, 3)}, shape)


def test_files_that_are_not_onnx_are_refused(tmp_path: Path) -> None:
    good = _conv(tmp_path / "good.onnx", [1, 3, 8, 8]).read_bytes()
    for name, data, reason in [
        ("truncated", good[: len(good) // 2], "it is no ONNX file, or not a complete one"),
        ("empty", b"", "it holds no ONNX graph"),
        ("text", b"hello, this is no protobuf", "it is no ONNX file, or not a complete one"),
        ("headless", ModelProto(ir_version=9).SerializeToString(), "it holds no ONNX graph"),
    ]:
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=f"^cannot read {path}: {reason}$"):
            onnx_layers(path)


def test_every_truncation_is_refused(path: Path) -> None:
    data = _conv(path, [1, 3, 8, 8]).read_bytes()
    for length in range(0, len(data), 5):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            onnx_layers(path)


def test_files_that_cannot_be_opened_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^cannot read .*none.onnx: No such file or directory$"):
        onnx_layers(tmp_path / "none.onnx")
    with pytest.raises(CheckpointError, match="Is a directory"):
        onnx_layers(tmp_path)


def test_sizes_behind_a_range_are_those_that_the_file_records(path: Path) -> None:
    zero, one = (numpy_helper.from_array(np.array(n)) for n in (0, 1))
    nodes = [
        helper.make_node("Constant", [], ["zero"], value=zero),
        helper.make_node("Constant", [], ["one"], value=one),
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("ReduceMin", ["sizes"], ["least"], keepdims=0),
        helper.make_node("Range", ["zero", "least", "one"], ["rows"]),
        helper.make_node("Gather", ["x", "rows"], ["taken"]),
        helper.make_node("MatMul", ["taken", "head.weight"], ["y"]),
    ]
    write(path, nodes, {"head.weight": (3, 5)}, ["batch", 3])
    with pytest.raises(CheckpointError, match=r"the size of '(taken|y)' at layer 'head' cannot be inferred"):
        onnx_layers(path)
    model = onnx.load(path)
    model.graph.value_info.append(helper.make_tensor_value_info("taken", TensorProto.FLOAT, ["batch", 3]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5]))
    onnx.save(model, path)
    assert onnx_layers(path) == (OnnxLayer("head", "MatMul", 15, 15, (5, 3)),)


def test_sizes_that_cannot_be_inferred_are_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the size of 'y' at layer 'stem' cannot be inferred; export the model"):
        onnx_layers(_conv(path, ["N", 3, "H", "W"]))


def test_shapes_that_do_not_fit_are_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"its shapes do not fit together \(.*Conv"):
        onnx_layers(_conv(path, [1, 3, 8, 8], kernel_shape=[3, 3, 3]))


def test_graphs_that_are_not_valid_are_refused(path: Path) -> None:
    unsorted = [helper.make_node("Identity", ["a"], ["b"]), helper.make_node("Identity", ["b"], ["a"])]
    layer = helper.make_node("MatMul", ["x", "a"], ["y"])
    for nodes in ([*unsorted, layer], [helper.make_node("Gemm", ["x"], ["y"])]):
        with pytest.raises(CheckpointError, match=r"^cannot read .*tiny.onnx: it is no valid ONNX graph \(.+\)$"):
            onnx_layers(write(path, nodes, {}, [1, 3]))


def test_weights_may_be_in_another_file(path: Path) -> None:
    _conv(path, [1, 3, 8, 8])
    before = onnx_layers(path)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights", size_threshold=0)
    assert onnx_layers(path) == before
    (path.parent / "weights").unlink()
    with pytest.raises(CheckpointError, match=r"it is no valid ONNX graph \(.*weights"):
        onnx_layers(path)


def test_quantized_layers_are_refused(path: Path) -> None:
    node = helper.make_node("ConvInteger", ["x", "w"], ["y"], "node_q")
    with pytest.raises(
        CheckpointError, match=r"node 'node_q' is a quantized or fused layer \(ConvInteger\); only Conv, "
    ):
        onnx_layers(write(path, [node], {"w": (4, 3, 3, 3)}, [1, 3, 8, 8]))


def test_layers_in_branches_are_refused(path: Path) -> None:
    output = helper.make_tensor_value_info("o", TensorProto.FLOAT, [None, None])
    inner = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["o"])], "branch", [], [output])
    flag = helper.make_node("Constant", [], ["flag"], value=numpy_helper.from_array(np.array(True)))
    node = helper.make_node("If", ["flag"], ["y"], "node_if", then_branch=inner, else_branch=inner)
    deep = helper.make_node("If", ["flag"], ["z"], "deep", then_branch=inner, else_branch=inner)
    around = helper.make_graph([deep], "outer", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)])
    outer = helper.make_node("If", ["flag"], ["y"], "node_if", then_branch=around, else_branch=around)
    for nodes in ([flag, node], [flag, outer]):
        with pytest.raises(CheckpointError, match=r"node 'node_if' \(If\) has layers inside a branch or loop"):
            onnx_layers(write(path, nodes, {"w": (3, 3)}, [1, 3]))


@pytest.mark.parametrize("opset", [11, 13, 21])
def test_sizes_that_a_graph_computes_are_known(opset: int, tmp_path: Path) -> None:
    """Queries are repeated once a sample, as exporters write it; until opset 13 axes were no input."""
    numbers = {"first": np.array(0), "axis": np.array([0]), "once": np.array([1])}
    weights = {"queries": np.ones((1, 4), np.float32), "f.weight": np.ones((4, 5), np.float32)}
    unsqueeze = {"inputs": ["batch"], "axes": [0]} if opset < 13 else {"inputs": ["batch", "axis"]}
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "first"], ["batch"]),
        helper.make_node("Unsqueeze", outputs=["row"], **unsqueeze),
        helper.make_node("Concat", ["row", "once"], ["times"], axis=0),
        helper.make_node("Tile", ["queries", "times"], ["repeated"]),
        helper.make_node("MatMul", ["repeated", "f.weight"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 4), ("y", 5)))
    stored = [numpy_helper.from_array(value, name) for name, value in (numbers | weights).items()]
    graph = helper.make_graph(nodes, "it", [x], [y], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, tmp_path / "it.onnx")
    (layer,) = onnx_layers(tmp_path / "it.onnx")
    assert (layer.name, layer.macs, layer.params) == ("f", 20, 20)
