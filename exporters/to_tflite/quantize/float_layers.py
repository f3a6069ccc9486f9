"""The layers of a quantized file that stay in float32: those that a user names, and those that are left."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

import numpy as np

from nbcompile.core.errors import UsageError
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.pairs import same_operators
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.quantize.ranges import layer_of_tensor

_NAMED = 24
"""How many layers a sentence lists."""


def matching(model: FloatModel, patterns: Sequence[str]) -> frozenset[str]:
    """The tensors that are results of the layers that ``patterns`` name.

    Args:
        model: the float file.
        patterns: names or globs, case-sensitive; the name of a module stands for every layer inside.

    Raises:
        UsageError: if a pattern matches no layer; the layers are listed.
    """
    file = read_file(model.content)
    computed = [file.tensors[i].name for op in file.ops for i in op.outputs]
    names: set[str] = set()
    for pattern in patterns:
        forms = (pattern, f"{pattern}.*", f"{pattern}/*")
        # A convolution and its activation are one tensor: it has the one's name, and is the other's result.
        matched = [t for t in computed if any(fnmatchcase(n, f) for n in (t, layer_of_tensor(model, t)) for f in forms)]
        if not matched:
            raise UsageError(f"float_layers: '{pattern}' matches no layer of the network; it has {listed(computed)}")
        names.update(matched)
    return frozenset(names)


def results_of(model: FloatModel, kinds: Collection[str]) -> frozenset[str]:
    """The tensors that operators of some ``kinds`` compute."""
    file = read_file(model.content)
    return frozenset(file.tensors[i].name for op in file.ops if op.name in kinds for i in op.outputs)


def left_in_float(model: FloatModel, content: bytes) -> tuple[str, ...]:
    """The layers of a quantized file that still compute in float32, in the order of execution.

    Args:
        model: the float file that it was made from.
        content: the quantized file.
    """
    exact, file = read_file(model.content), read_file(content)
    layers = [
        layer_of_tensor(model, exact.tensors[pair.exact.outputs[0]].name)
        for pair in same_operators(exact, file)
        if any(file.tensors[i].dtype == np.float32 for i in (*pair.quantized.inputs, *pair.quantized.outputs) if i >= 0)
    ]
    return tuple(dict.fromkeys(layers))


def listed(names: Sequence[str]) -> str:
    """``names`` of layers in words: the first of them where there are many."""
    more = f", … ({len(names)} in all)" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
