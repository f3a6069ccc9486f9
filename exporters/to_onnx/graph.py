"""From a module to an ONNX graph in memory: torch.export, then PyTorch's exporter."""

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Set
from typing import Any

import onnxscript.optimizer
import torch
from onnx import ModelProto, numpy_helper
from onnxscript import ir
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from nbcompile.core.errors import ExportError
from nbcompile.core.example import Inputs
from nbcompile.core.numerics import flatten
from nbcompile.core.progress import step
from nbcompile.core.words import first_line
from nbcompile.exporters.one_at_a_time import one_at_a_time
from nbcompile.exporters.program import UncapturedError, place, program_of
from nbcompile.exporters.to_onnx.check import ONE_BATCH, has_batch, resized
from nbcompile.exporters.to_onnx.mend import mend

_TRACED_BATCH = 2  # torch.export takes sizes 0 and 1 for constants


@one_at_a_time
def onnx_graph(graph: nn.Module, inputs: Inputs, *, output: Any, opset: int | None, dynamic_batch: bool) -> ModelProto:
    """``graph`` in ONNX, constants folded.

    PyTorch's own optimiser is left out: it drops biases that are zero, and a layer is to keep its parameters.

    Args:
        graph: on the CPU, in eval mode.
        inputs: example, batch first.
        output: what ``graph`` gives, for the names: ``output``, or ``output_0`` and so on; a dict names its own.
        opset: ONNX operator set; None: the exporter's default.
        dynamic_batch: whether the batch is symbolic; else it is that of ``inputs``.

    Raises:
        ExportError: if the graph cannot be captured, its batch cannot be dynamic, or ONNX has no such operator.
    """
    with step("capturing the graph"):
        program = aten_graph(graph, inputs, dynamic_batch)
    input_names = numbered("input", len(inputs))
    try:
        with step("expressing it in ONNX"):
            made = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                optimize=False,
                opset_version=opset,
                input_names=input_names,
                output_names=_output_names(output, input_names),
                dynamic_shapes=_batched(inputs, "batch") if dynamic_batch else None,
            )
    except Exception as error:  # the exporter raises many kinds
        raise ExportError(f"{type(graph).__name__} cannot be expressed in ONNX: {_why_not(error, program)}") from error
    assert made is not None
    with step("folding constants"):
        onnxscript.optimizer.inline(made.model)
        _transpose_once(made.model.graph)
        onnxscript.optimizer.fold_constants(made.model, onnx_shape_inference=False)
    written = made.model.opset_imports[""]
    if opset not in (None, written):
        raise ExportError(f"opset {opset} cannot be had: the exporter wrote opset {written}")
    model = made.model_proto
    _drop_zero_biases(model, {*program.state_dict})
    return model


def _transpose_once(graph: ir.Graph) -> None:
    """Let all calls of one layer read its weight by one transposition, or folding makes a weight for each of them."""
    first: dict[tuple[Any, ...], ir.Node] = {}
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is None or not source.is_initializer() or "perm" not in node.attributes:
            continue
        one = first.setdefault((source, tuple(node.attributes["perm"].as_ints())), node)
        if one is not node:
            node.outputs[0].replace_all_uses_with(one.outputs[0])
            graph.remove(node, safe=True)
    for node in list(graph):  # of two dimensions it is a Gemm, which reads the weight as it is
        transposed = first.get((node.inputs[1], (1, 0))) if node.op_type == "Gemm" else None
        if transposed is not None and "transB" in node.attributes and node.attributes["transB"].as_int():
            node.replace_input_with(1, transposed.outputs[0])
            del node.attributes["transB"]
    graph.sort()


def _drop_zero_biases(model: ModelProto, own: Set[str]) -> None:
    """Take the biases of zeros away that the exporter gives to convolutions without one.

    Args:
        model: with constants folded; changed in place.
        own: names of the network's parameters and buffers, whose zeros stay.
    """
    stored, gone = {tensor.name: tensor for tensor in model.graph.initializer}, set()
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose") and len(node.input) == 3 and node.input[2] not in own:
            bias = stored.get(node.input[2])
            if bias is not None and not numpy_helper.to_array(bias).any():
                del node.input[2]
                gone.add(bias.name)
    read = {name for node in model.graph.node for name in node.input}
    for name in gone - read:
        model.graph.initializer.remove(stored[name])


@one_at_a_time
def aten_graph(graph: nn.Module, inputs: Inputs, dynamic_batch: bool) -> ExportedProgram:
    """The ATen graph that is to be expressed.

    Raises:
        ExportError: as :func:`onnx_graph`.
    """
    program = _capture(graph, inputs, dynamic_batch)
    _out_of_place(program)
    mend(program)
    return program


def _capture(graph: nn.Module, inputs: Inputs, dynamic_batch: bool) -> ExportedProgram:
    """The ATen graph; with a symbolic batch if it is to be dynamic."""
    if not dynamic_batch:
        try:
            return program_of(graph, inputs)
        except UncapturedError as error:
            raise ExportError(
                f"torch.export cannot capture {type(graph).__name__}{error.place}: {error.reason}; {error.remedy}"
            ) from error
    shapes = _by_parameter(graph, _batched(inputs, Dim("batch")))
    try:
        return program_of(graph, resized(inputs, _TRACED_BATCH), dynamic_shapes=shapes)
    except UncapturedError as error:
        _capture(graph, inputs, dynamic_batch=False)  # raises if the batch is not to blame
        raise ExportError(
            f"the batch size of {type(graph).__name__} cannot be dynamic{error.place}, because {_why_fixed(error)}, or "
            f"export at one batch size: {ONE_BATCH}"
        ) from error


def _why_fixed(error: UncapturedError) -> str:
    """What torch.export has against a symbolic batch, and what to write instead if that can be told."""
    said = [line.strip(" -") for line in str(error.__cause__).splitlines()]
    if any("specialized it to be a constant" in line for line in said):
        return "its forward uses it as a fixed number: write x.flatten(1) or x.shape[0] instead of that number"
    guard = next((line for line in said if line.startswith("Not all values of batch")), None)
    if guard is not None:
        return f"its forward takes some batch sizes only ({guard.rstrip('.')}): write it for all"
    return f"torch.export stops at it ({error.reason}): write that part of forward in another way"


def _why_not(error: BaseException, program: ExportedProgram) -> str:
    """What PyTorch's exporter stops at, with its line in the user's code if it is an operator of ``program``."""
    said = first_line(error)
    if "Unsupported attribute type" in said and "Symbolic" in said:
        return f"an option of an operator, such as groups, depends on the batch size; export at one: {ONE_BATCH}"
    lacking = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", said)
    if lacking is None:
        return said
    name = lacking[1]
    where = next((place(node) for node in program.graph.nodes if str(node.target).rpartition(".")[0] == name), "")
    return f"{name}{where} has no form there; write it in other operators"


def _out_of_place(program: ExportedProgram) -> None:
    """``relu_(x)`` becomes ``relu(x)`` where nothing else reads x, which then is the same function.

    Only for speed: PyTorch makes in-place operators functional through their reference implementations, which takes
    60 ms for each ``hardtanh_`` with a symbolic batch (MobileNetV2 has 35).
    """
    for node in program.graph.nodes:
        target = node.target
        if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
            continue
        name = target._opname
        fresh = name.endswith("_") and getattr(getattr(torch.ops.aten, name[:-1], None), target._overloadname, None)
        if fresh and _owns_memory(node.args[0]) and len(node.args[0].users) == 1:
            node.target = fresh
    program.graph_module.recompile()


def _owns_memory(node: fx.Node) -> bool:
    """Whether the tensor that ``node`` makes is nobody else's: no input or weight, and no view of one."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and all(r.alias_info is None for r in target._schema.returns)


def _batched(inputs: Inputs, batch: Any) -> tuple[dict[int, Any] | None, ...]:
    """``batch`` for the first dimension of every input that has it."""
    return tuple({0: batch} if has_batch(x, inputs) else None for x in inputs)


def _by_parameter(graph: nn.Module, values: tuple[Any, ...]) -> dict[str, Any]:
    """``values`` by the parameters of ``forward`` that take them: for torch.export, ``*args`` is one tuple."""
    return dict(inspect.signature(graph.forward).bind(*values).arguments)


def _output_names(output: Any, taken: list[str]) -> list[str]:
    if isinstance(output, Mapping) and all(isinstance(value, Tensor) for value in output.values()):
        names = [str(key) for key in output]
        if not {*names} & {*taken}:
            return names
    return numbered("output", len(flatten(output)))


def numbered(name: str, count: int) -> list[str]:
    """``name``, or ``name_0`` and so on."""
    return [name] if count == 1 else [f"{name}_{i}" for i in range(count)]


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep the tools' prints, warnings and log lines from the user: what matters is raised or noted."""
    before = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(max(before, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(before)
