"""A draft as a file, with its memory plan.

Source: tflite-micro's docs/offline_memory_plan.md: metadata ``OfflineMemoryAllocation`` holds a version, the number of
the graph, how many offsets follow, and an offset for each tensor, -1 for those that the interpreter is to place. Other
interpreters do not read it.
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nbcompile.exporters.to_tflite.file.edit import add_buffer, drop_unused_codes, operator_code
from nbcompile.exporters.to_tflite.file.flatbuffer import MEMORY_PLAN, pack, unpack
from nbcompile.exporters.to_tflite.memory.draft import Draft, DraftStep

INT8_SINCE = 2
"""Version of PAD, SLICE and CONCATENATION that first took int8."""

_OPTIONS = {
    "PAD": (schema.BuiltinOptions.PadOptions, schema.PadOptionsT),
    "SLICE": (schema.BuiltinOptions.SliceOptions, schema.SliceOptionsT),
    "CONCATENATION": (schema.BuiltinOptions.ConcatenationOptions, schema.ConcatenationOptionsT),
}


def emit(content: bytes, draft: Draft, offsets: Mapping[int, int] | None = None) -> bytes:
    """The file of ``draft``.

    Args:
        content: what the draft was made of.
        draft: the rewritten graph.
        offsets: of tensors, by their numbers in the draft; None leaves their places to the interpreter.
    """
    model = unpack(content)
    writing = _Writing(model, draft)
    numbers = writing.write()
    drop_unused_codes(model)
    if offsets is not None:
        places = np.full(len(model.subgraphs[0].tensors), -1, np.int32)
        for number, offset in offsets.items():
            places[numbers[number]] = offset
        row = schema.MetadataT()
        numbers_of_plan = np.concatenate([np.array([1, 0, len(places)], np.int32), places])
        row.name, row.buffer = MEMORY_PLAN.encode(), add_buffer(model, numbers_of_plan)
        others = [one for one in model.metadata or [] if one.name != row.name]
        model.metadata = [*others, row]
    return pack(model)


class _Writing:
    """A model that is being changed."""

    def __init__(self, model: Any, draft: Draft) -> None:
        self.model, self.graph, self.draft = model, model.subgraphs[0], draft
        self.before = list(self.graph.operators)
        self.constants: dict[tuple[tuple[int, ...], ...], int] = {}

    def write(self) -> dict[int, int]:
        """Change it; numbers of tensors in the file, by those in the draft."""
        for made in self.draft.made:
            tensor = copy.copy(self.graph.tensors[made.like])
            tensor.name, tensor.buffer, tensor.shape = made.name.encode(), 0, np.array(made.shape, np.int32)
            tensor.shapeSignature = None
            self.graph.tensors.append(tensor)
        self.graph.operators = [self._operator(step) for step in self.draft.steps]
        return self._compacted()

    def _operator(self, step: DraftStep) -> Any:
        if step.op is None:
            return self._new(step)
        op = copy.copy(self.before[step.op])
        op.inputs, op.outputs = list(step.inputs), list(step.outputs)
        if step.valid and hasattr(op.builtinOptions, "padding"):
            op.builtinOptions = copy.copy(op.builtinOptions)
            op.builtinOptions.padding = schema.Padding.VALID
        return op

    def _new(self, step: DraftStep) -> Any:
        op = schema.OperatorT()
        op.opcodeIndex = operator_code(self.model, step.name, INT8_SINCE)
        kind, options = _OPTIONS[step.name]
        op.builtinOptionsType, op.builtinOptions = kind, options()
        if step.name == "CONCATENATION":
            op.builtinOptions.axis = 1
        numbers = (step.numbers,) if step.name == "PAD" else tuple((row,) for row in step.numbers)
        op.inputs = [*step.inputs, *(self._constant(rows, step.name == "PAD") for rows in numbers)]
        op.outputs = list(step.outputs)
        return op

    def _constant(self, rows: tuple[tuple[int, ...], ...], matrix: bool) -> int:
        """The number of a constant of int32, the same for all that need it."""
        if rows not in self.constants:
            values = np.array(rows if matrix else rows[0], np.int32)
            tensor = schema.TensorT(shape=np.array(values.shape, np.int32), type=schema.TensorType.INT32)
            tensor.name = f"numbers {len(self.constants)}".encode()
            tensor.buffer = add_buffer(self.model, values)
            self.graph.tensors.append(tensor)
            self.constants[rows] = len(self.graph.tensors) - 1
        return self.constants[rows]

    def _compacted(self) -> dict[int, int]:
        """Leave out tensors that nobody reads or writes."""
        graph = self.graph
        used = {int(n) for op in graph.operators for n in (*op.inputs, *op.outputs)} - {-1}
        used |= {int(n) for n in (*graph.inputs, *graph.outputs)}
        order = {old: new for new, old in enumerate(sorted(used))}
        graph.tensors = [graph.tensors[old] for old in order]
        for op in graph.operators:
            op.inputs, op.outputs = ([order.get(int(n), -1) for n in ends] for ends in (op.inputs, op.outputs))
        graph.inputs, graph.outputs = ([order[int(n)] for n in ends] for ends in (graph.inputs, graph.outputs))
        for signature in self.model.signatureDefs or []:
            for port in (*signature.inputs, *signature.outputs):
                port.tensorIndex = order[port.tensorIndex]
        return order
