"""Run one operator of a ``.tflite`` file by itself."""

from collections.abc import Mapping
from copy import copy

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileOp, pack, read_file, unpack
from nbcompile.exporters.to_tflite.run.interpreters import Sample, load_file


class OperatorByOperator:
    """A file whose operators can be run one by one.

    Args:
        content: the file.

    Attributes:
        file: what is in it.
    """

    def __init__(self, content: bytes) -> None:
        self.file: File = read_file(content)
        self._model = unpack(content)

    def start(self, op: FileOp, kernels: str, constants: Mapping[int, np.ndarray] | None = None) -> "OneOperator":
        """``op`` of this file in an interpreter of its own.

        Args:
            op: the operator.
            kernels: one of `interpreters.KERNELS`.
            constants: values that take the place of its constants, by the tensor's index.

        Raises:
            ExportError: if the interpreter refuses the operator; with what it said.
        """
        return OneOperator(self.content(op, constants or {}), self.inputs(op), kernels)

    def inputs(self, op: FileOp) -> tuple[int, ...]:
        """Indices of the tensors that ``op`` reads and that are no constants, each once."""
        return tuple(dict.fromkeys(tensor.index for tensor in self.file.operands(op) if tensor.data is None))

    def content(self, op: FileOp, constants: Mapping[int, np.ndarray]) -> bytes:
        """A file that holds ``op`` alone; its inputs are those of `inputs`."""
        graph = self._model.subgraphs[0]
        taken = list(dict.fromkeys(i for i in (*op.inputs, *op.outputs) if i >= 0))
        tensors, buffers = [copy(graph.tensors[i]) for i in taken], [schema.BufferT()]
        for i, tensor in zip(taken, tensors, strict=True):
            data = constants.get(i, self.file.tensors[i].data)
            tensor.buffer = 0 if data is None else len(buffers)
            if data is not None:
                buffers.append(schema.BufferT(data=np.frombuffer(data.tobytes(), np.uint8)))
        operator, code = copy(graph.operators[op.index]), copy(self._model.operatorCodes)
        code = copy(code[operator.opcodeIndex])
        operator.opcodeIndex = 0
        operator.inputs = [-1 if i < 0 else taken.index(i) for i in op.inputs]
        operator.outputs = [taken.index(i) for i in op.outputs]
        part = schema.SubGraphT(
            tensors=tensors,
            inputs=[taken.index(i) for i in self.inputs(op)],
            outputs=operator.outputs,
            operators=[operator],
        )
        return pack(schema.ModelT(version=3, operatorCodes=[code], subgraphs=[part], buffers=buffers))


class OneOperator:
    """An operator in an interpreter of its own; see `OperatorByOperator.start`."""

    def __init__(self, content: bytes, inputs: tuple[int, ...], kernels: str) -> None:
        self._inputs = inputs
        self._session = load_file(content, kernels)

    def run(self, values: Mapping[int, np.ndarray]) -> Sample:
        """Its outputs as the file stores them, for values of the tensors that it reads, by index in the whole file."""
        return self._session.run(tuple(values[i] for i in self._inputs))
