"""Whether interpreters compute the same: operator by operator, on equal inputs.

Kernels may round differently, by one step of an operator's result, and such steps add up from layer to layer: outputs
of a whole network tell little. Here every operator runs by itself on what LiteRT's built-in kernels give for its
inputs, so that more than one step is that operator's own.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nbcompile.core.progress import step
from nbcompile.exporters.to_tflite.run.interpreters import Sample, tensors
from nbcompile.exporters.to_tflite.run.one_operator import OperatorByOperator

ALLOWED = 1
"""Steps by which two kernels of one operator may differ."""


@dataclass(frozen=True)
class KernelDifference:
    """An operator's results in one interpreter, against LiteRT's built-in kernels, on equal inputs.

    Attributes:
        layer: whose result it is; the tensor's name where no layer is known.
        op: the operator's name.
        kernels: the interpreter.
        apart: how many values are so many steps apart, by the steps.
    """

    layer: str
    op: str
    kernels: str
    apart: Mapping[int, int]

    @property
    def inside(self) -> bool:
        """Whether no value is more than ``ALLOWED`` steps apart."""
        return max(self.apart) <= ALLOWED


def kernel_differences(
    content: bytes,
    samples: Sequence[Sample],
    *,
    kernels: Sequence[str] = ("xnnpack", "micro"),
    layers: Mapping[str, str] | None = None,
) -> tuple[KernelDifference, ...]:
    """Compare the kernels of interpreters with LiteRT's built-in ones, for every operator with integer results.

    Args:
        content: the file.
        samples: inputs in the file's layout, at least one.
        kernels: the interpreters.
        layers: names of layers, by the names of their results in the file.

    Returns:
        One row per operator and interpreter, in the order of execution.

    Raises:
        UsageError, ExportError, PreconditionError: as `interpreters.run_file`.
    """
    parts = OperatorByOperator(content)
    names = layers or {}
    kept = list(tensors(content, samples, kernels="builtin"))
    rows = []
    integer = [op for op in parts.file.ops if all(parts.file.tensors[i].dtype.kind == "i" for i in op.outputs)]
    with step("comparing kernels", len(integer)) as advance:
        for op in integer:
            outputs = [parts.file.tensors[i] for i in op.outputs]
            for name in kernels:
                part, apart = parts.start(op, name), Counter[int]()
                for values in kept:
                    for tensor, y in zip(outputs, part.run(values), strict=True):
                        steps = np.abs(y.astype(np.int64) - values[tensor.index])
                        counts = np.unique(steps, return_counts=True)
                        apart.update(dict(zip(*(v.tolist() for v in counts), strict=True)))
                layer = names.get(outputs[0].name, outputs[0].name)
                rows.append(KernelDifference(layer, op.name, name, dict(sorted(apart.items()))))
            advance()
    return tuple(rows)
