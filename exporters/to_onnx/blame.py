"""Where an ONNX graph first gives another value than PyTorch, operator by operator."""

import onnxruntime
import torch
from onnx import ModelProto, ValueInfoProto
from torch import Tensor, fx
from torch.export import ExportedProgram

from nbcompile.core.errors import PreconditionError
from nbcompile.core.example import Inputs
from nbcompile.core.numerics import relative_error
from nbcompile.exporters.program import place
from nbcompile.exporters.to_onnx.check import session_options


def first_difference(program: ExportedProgram, model: ModelProto, inputs: Inputs, limit: float) -> str:
    """The first operator whose value in ONNX Runtime differs by more than ``limit``, with its place in the user's code.

    Args:
        program: what ``model`` was made of; values of one name are the same.
        model: not simplified.
        inputs: of both.
        limit: relative error, no unit.

    Returns:
        Such as ``, first at avg_pool2d at net.py:12``; empty where that cannot be told.
    """
    seen: dict[str, tuple[fx.Node, Tensor]] = {}

    class Looking(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor) and n.op == "call_function":
                seen[n.name] = n, value.clone()  # a later node may write into it
            return value

    written = {name for node in model.graph.node for name in node.output}
    hidden = written - {value.name for value in model.graph.output}
    try:
        with torch.no_grad():
            Looking(program.module()).run(*(x.clone() for x in inputs))
        with_all = ModelProto()
        with_all.CopyFrom(model)
        with_all.graph.output.extend(ValueInfoProto(name=name) for name in seen if name in hidden)
        values = _run(with_all, inputs)
        for name, (node, value) in seen.items():
            if name in values and _differ(values[name], value, limit):
                return f", first at {name}{place(node)}"
    except Exception:  # it is an explanation of an error, not another error
        return ""
    return ""


def _differ(given: Tensor, wanted: Tensor, limit: float) -> bool:
    try:
        return relative_error(given, wanted) > limit
    except PreconditionError:
        return True


def _run(model: ModelProto, inputs: Inputs) -> dict[str, Tensor]:
    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, map(torch.as_tensor, session.run(names, feed)), strict=True))
