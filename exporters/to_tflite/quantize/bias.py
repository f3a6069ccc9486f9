"""Bias correction: biases that take back the mean error that quantizing gives each channel.

Rounded weights shift the mean of a layer's output. The layer's own bias can take that back at no cost: it is added in
32 bits anyway.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nbcompile.core.progress import step
from nbcompile.exporters.to_tflite.file.flatbuffer import File, read_file
from nbcompile.exporters.to_tflite.file.pairs import same_operators
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.run.interpreters import Sample, fitted, tensors
from nbcompile.exporters.to_tflite.run.one_operator import OneOperator, OperatorByOperator

SAMPLES = 64
"""Calibration samples that are run, evenly chosen."""

SURE = 2.0
"""A channel's mean error counts where it is this many times its own standard error: less may be chance."""

_KERNELS = "builtin"
_PLACES = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3}
"""Operators with a bias, and which of their inputs it is."""


def corrected(model: FloatModel, content: bytes, samples: Sequence[Sample]) -> bytes:
    """A quantized file with corrected biases; every other byte of it stays.

    Operator by operator in the order of execution, so that each bias takes back what is left after those before it
    were corrected. Layers without a bias, and biases that several layers share, are left alone.

    Args:
        model: the float file that ``content`` was made from.
        content: with integer activations.
        samples: calibration set in the float file's layout, batch 1, float32; at least one.

    Source:
        Nagel et al. 2019, arXiv:1906.04721, section 4.2 (the empirical form).
    """
    chosen = samples[:: max(1, len(samples) // SAMPLES)][:SAMPLES]
    edited, parts, exact = bytearray(content), OperatorByOperator(content), read_file(model.content)
    file = parts.file
    biases = _biases(file, edited)
    layers = {pair.quantized.index: pair.exact.outputs[0] for pair in same_operators(exact, file)}
    wanted = _means(model, chosen, {index for op, index in layers.items() if op in biases})
    values = [dict(zip(file.inputs, fitted(file, sample), strict=True)) for sample in chosen]
    last_reader = {index: op.index for op in file.ops for index in op.inputs}
    with step("correcting biases", len(file.ops)) as advance:
        for op in file.ops:
            outputs = _run(parts.start(op, _KERNELS), values)
            if op.index in biases and op.index in layers:
                bias, output = biases[op.index], file.tensors[op.outputs[0]]
                errors = wanted[layers[op.index]] - _channel_means([output.dequantized(y[0]) for y in outputs])
                bias.integers[:] += np.round(_sure(errors) / bias.step).astype(bias.integers.dtype)
                outputs = _run(parts.start(op, _KERNELS, {bias.index: bias.integers}), values)
            for one, results in zip(values, outputs, strict=True):
                one.update(zip(op.outputs, results, strict=True))
                for index in one.keys() & set(op.inputs):
                    if last_reader[index] == op.index:
                        del one[index]
            advance()
    return bytes(edited)


@dataclass(frozen=True, eq=False)
class _Bias:
    """The bias of one operator.

    Attributes:
        index: of its tensor.
        integers: as the file stores them: writing here writes into the file.
        step: what 1 stands for in each of them.
    """

    index: int
    integers: np.ndarray
    step: np.ndarray


def _biases(file: File, edited: bytearray) -> dict[int, _Bias]:
    """The biases in integers that no two operators share, by the operator's index."""
    network = schema.Model.GetRootAs(edited)
    graph = network.Subgraphs(0)
    buffers = {tensor.index: graph.Tensors(tensor.index).Buffer() for tensor in file.tensors}
    reads = Counter(buffers[i] for op in file.ops for i in op.inputs if i >= 0)
    biases = {}
    for op in file.ops:
        index = dict(enumerate(op.inputs)).get(_PLACES.get(op.name, -1), -1)
        tensor = file.tensors[index]
        if index >= 0 and tensor.quantization and tensor.data is not None and reads[buffers[index]] == 1:
            integers = network.Buffers(buffers[index]).DataAsNumpy().view(tensor.dtype)
            biases[op.index] = _Bias(index, integers, tensor.quantization.scale)
    return biases


def _run(part: OneOperator, values: Sequence[dict[int, np.ndarray]]) -> list[Sample]:
    return [part.run(one) for one in values]


def _means(model: FloatModel, samples: Sequence[Sample], wanted: set[int]) -> dict[int, np.ndarray]:
    """Means ``(samples, channels)`` of tensors of the float file, by index."""
    means = []
    with step("averaging channels", len(samples)) as advance:
        for values in tensors(model.content, samples, kernels=_KERNELS):
            means.append({i: _channel_means([values[i]]) for i in wanted})
            advance()
    return {i: np.concatenate([one[i] for one in means]) for i in wanted}


def _channel_means(values: Sequence[np.ndarray]) -> np.ndarray:
    """``(len(values), C)`` of arrays ``(..., C)``."""
    return np.stack([x.reshape(-1, x.shape[-1]).mean(0, dtype=np.float64) for x in values])


def _sure(errors: np.ndarray) -> np.ndarray:
    """The mean error per channel, 0 where it may be chance; ``errors`` are ``(samples, C)``."""
    mean, n = errors.mean(0), len(errors)
    chance = errors.std(0, ddof=1) / np.sqrt(n) if n > 1 else np.zeros_like(mean)
    return np.where(np.abs(mean) > SURE * chance, mean, 0.0)
