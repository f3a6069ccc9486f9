"""From a module to a float ``.tflite`` file in memory.

    deploy form -> torch.export -> a handler per ATen operator (`ops`) -> TensorFlow -> TFLiteConverter -> names

What does not depend on the input is computed by PyTorch while lowering, and is a constant of the file.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_any, tree_leaves

from nbcompile.core.errors import ExportError
from nbcompile.core.example import Inputs
from nbcompile.core.progress import step
from nbcompile.exporters.program import WITHOUT_VALUES, place
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.ports import FloatModel, Port, is_channels_last, name_of_input, stored_order
from nbcompile.exporters.to_tflite.file.quiet_tensorflow import quiet_tensorflow, tf
from nbcompile.exporters.to_tflite.file.stderr import stderr_kept
from nbcompile.exporters.to_tflite.lower.capture import aten_name, captured
from nbcompile.exporters.to_tflite.lower.layout import axis_of
from nbcompile.exporters.to_tflite.lower.names import labels, owners, rename_tensors, scope
from nbcompile.exporters.to_tflite.lower.ops.table import HANDLERS, INSTEAD, NATIVE
from nbcompile.exporters.to_tflite.lower.refusal import LoweringError
from nbcompile.exporters.to_tflite.lower.value import Value, stored_array
from nbcompile.exporters.to_tflite.once import once

_NO_REMEDIES: Mapping[str, str] = {}


@once
def float_model(graph: nn.Module, inputs: Inputs, *, forbidden: Mapping[str, str] = _NO_REMEDIES) -> FloatModel:
    """``graph`` as a float32 ``.tflite`` file in memory: batch 1, stored as `file.ports` has it.

    Args:
        graph: on the CPU, in eval mode, in deploy form.
        inputs: example, batch first; of a batch, the first sample is looked at.
        forbidden: operators that the target lacks, by TFLite's names, and what to do instead, in the imperative:
            ``{"GELU": "use nn.Hardswish"}``.

    Raises:
        ExportError: if the graph cannot be captured, or an operator cannot be lowered: with its name, its layer, its
            place in the code, and what to do.
    """
    with quiet_tensorflow():
        with step("capturing the graph"):
            lowering = _Lowering(graph, inputs, forbidden)
        with step("converting it to TFLite"):
            return lowering.model()


class _Lowering:
    """One run over one graph: every node becomes a `Value`, or a constant."""

    def __init__(self, graph: nn.Module, inputs: Inputs, forbidden: Mapping[str, str]) -> None:
        self.forbidden = forbidden
        capture = captured(graph, inputs)
        program, self.constants = capture.program, capture.constants
        # what nothing reads are checks of shapes and dtypes
        self.nodes = [node for node in program.graph.nodes if node.op == "call_function" and node.users]
        self.numbers = {node: i for i, node in enumerate(self.nodes)}
        self.owners = owners(program, graph)
        self.names = labels(self.owners, self.nodes)
        self.placeholders = [n for n in program.graph.find_nodes(op="placeholder") if n.name not in self.constants]
        (output,) = program.graph.find_nodes(op="output")
        self.results = [node for node in cast(Sequence[Any], output.args[0]) if isinstance(node, fx.Node)]
        self._require_fixed_sizes()
        self.inputs = [_input_port(n, i, len(self.placeholders)) for i, n in enumerate(self.placeholders)]

    def model(self) -> FloatModel:
        """Lower, convert, name."""
        outputs: list[tuple[Value, bool]] = []

        def network(*tensors: tf.Tensor) -> list[tf.Tensor]:
            outputs[:] = self._lowered(tensors)
            return [value.tensor for value, _ in outputs]

        specs = [
            tf.TensorSpec(port.shape, _tf_dtype(node.meta["val"]), name=port.name)
            for port, node in zip(self.inputs, self.placeholders, strict=True)
        ]
        function = tf.function(network, input_signature=specs, autograph=False).get_concrete_function()
        content = self._converted(function)
        content, layers = rename_tensors(
            content, [port.name for port in self.inputs], self.names, [self.numbers.get(node) for node in self.results]
        )
        file = read_file(content)
        for op in file.ops:  # what the table could not foresee
            if op.name in self.forbidden:
                layer = file.tensors[op.outputs[0]].name
                raise ExportError(f"layer '{layer}' needs {op.name}, which the target lacks: {self.forbidden[op.name]}")
        ports = [
            Port(file.tensors[index].name, tuple(value.tensor.shape), channels_last)
            for index, (value, channels_last) in zip(file.outputs, outputs, strict=True)
        ]
        return FloatModel(content, tuple(self.inputs), tuple(ports), layers)

    def _require_fixed_sizes(self) -> None:
        for node in self.nodes:
            values = tree_leaves(node.meta.get("val"))
            if any(isinstance(x, torch.SymFloat | torch.SymBool) for x in values):
                raise self._error(node, "Python reads the value of a tensor there", WITHOUT_VALUES)
            if any(isinstance(n, torch.SymInt) for x in values for n in (x.shape if isinstance(x, Tensor) else (x,))):
                reason = "the size of its result depends on the values of its input, and TFLite's sizes are fixed"
                raise self._error(node, reason, "keep all elements and multiply with a mask")

    def _lowered(self, tensors: Sequence[tf.Tensor]) -> list[tuple[Value, bool]]:
        """The outputs, and whether each is channels-last."""
        values: dict[fx.Node, Any] = {}
        for node in self.placeholders[0].graph.find_nodes(op="placeholder"):
            values[node] = self.constants.get(node.name)
        for node, tensor in zip(self.placeholders, tensors, strict=True):
            values[node] = _input_value(node, tensor)
        for node in self.nodes:
            with tf.name_scope(scope(self.numbers[node])):
                values[node] = self._result(node, values)
        return [_output(values[node]) for node in self.results]

    def _result(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        args, kwargs = cast(Any, fx.node.map_arg((node.args, node.kwargs), lambda n: values[n]))
        if node.target is operator.getitem:
            return args[0][args[1]]
        if not tree_any(lambda x: isinstance(x, Value), (args, kwargs), is_leaf=lambda x: isinstance(x, Value)):
            return self._constant(node, args, kwargs)
        kwargs = {key: value for key, value in kwargs.items() if key not in _NO_MEANING}
        try:
            result = self._handler(node)(*args, **kwargs)
        except LoweringError as refusal:
            raise self._error(node, refusal.reason, refusal.remedy) from refusal
        except Exception as error:  # handlers know the calls that networks make, and others fail in many ways
            said = str(error).splitlines() or [type(error).__name__]
            reason = f"it is called in a way that cannot be lowered ({said[0]})"
            raise self._error(node, reason, _REPLACE) from error
        if isinstance(result, Value):
            wanted = node.meta["val"]
            if result.shape != tuple(wanted.shape):
                reason = f"it is lowered to shape {result.shape}, where PyTorch has {tuple(wanted.shape)}"
                raise self._error(node, reason, _REPLACE)
            if _kind(result.tensor.dtype) != _kind(_tf_dtype(wanted)):
                reason = f"it turns {_kind(result.tensor.dtype)} into {_kind(_tf_dtype(wanted))}"
                raise self._error(node, reason, "call .float() on them before")
        return result

    def _handler(self, node: fx.Node) -> Callable[..., Any]:
        name = aten_name(node.target)
        if name not in HANDLERS:
            raise LoweringError("nbcompile has no TFLite form of it", _REPLACE)
        native = NATIVE.get(name, "")
        if native not in self.forbidden:
            return HANDLERS[name]

        def other(*args: Any, **kwargs: Any) -> Any:
            try:
                return INSTEAD[name](*args, **kwargs)
            except (KeyError, LoweringError):
                raise LoweringError(f"it needs {native}, which the target lacks", self.forbidden[native]) from None

        return other

    def _constant(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """What PyTorch computes of constants."""
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise self._error(node, "it draws random numbers", "remove it, or make its result a buffer")
        with torch.no_grad():
            return cast(Callable[..., Any], node.target)(*args, **kwargs)

    def _converted(self, function: Any) -> bytes:
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
        try:
            with stderr_kept():
                return bytes(converter.convert())
        except Exception as error:  # the converter raises many kinds; its message names the operator
            text = str(error)
            names = ", ".join(dict.fromkeys(re.findall(r"'(tf\.\w+)' op is neither", text)))
            what = f"TFLite has no {names}" if names else text.strip().splitlines()[0]
            if number := re.search(r'"n(\d+)/', text):
                node = self.nodes[int(number[1])]
                raise self._error(node, f"TensorFlow's converter refuses it: {what}", _REPLACE) from error
            raise ExportError(f"TensorFlow's converter refuses the network: {what}; {_REPLACE}") from error

    def _error(self, node: fx.Node, reason: str, remedy: str) -> ExportError:
        owner = self.owners[node]
        where = f"layer '{owner}'" if owner else "the network itself"
        return ExportError(f"aten.{aten_name(node.target)} in {where}{place(node)}: {reason}; {remedy}")


_REPLACE = "replace it, or export to .onnx"

_NO_MEANING = ("memory_format", "layout", "device", "pin_memory", "non_blocking", "copy")
"""Arguments that say where and how PyTorch keeps a tensor."""


def _input_port(node: fx.Node, number: int, count: int) -> Port:
    shape = tuple(node.meta["val"].shape)
    stored_as = tuple(shape[d] for d in stored_order(len(shape)))
    return Port(name_of_input(number, count), stored_as, is_channels_last(len(shape)))


def _input_value(node: fx.Node, tensor: tf.Tensor) -> Value:
    shape = tuple(node.meta["val"].shape)
    return Value(tensor, shape, tuple(axis_of(d, shape) for d in stored_order(len(shape))))


def _output(result: Value | Tensor) -> tuple[Value, bool]:
    """A result as the file gives it, and whether that is channels-last."""
    rank = len(result.shape)
    if isinstance(result, Tensor):
        return Value.of(tf.constant(stored_array(result.permute(stored_order(rank))))), is_channels_last(rank)
    return result.arranged(stored_order(rank)), is_channels_last(rank)


def _tf_dtype(x: Tensor) -> Any:
    return tf.float32 if x.is_floating_point() else tf.as_dtype(str(x.dtype).removeprefix("torch."))


def _kind(dtype: Any) -> str:
    return "floating-point numbers" if dtype.is_floating else "booleans" if dtype.is_bool else "whole numbers"
