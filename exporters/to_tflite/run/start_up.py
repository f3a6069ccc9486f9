"""What TFLite Micro needs of its arena until it has started: more than afterward, in small networks.

The tail grows downward and is kept for good. From the bottom, for a moment, come the requests of kernels for scratch
memory, above them descriptions of the tensors of the operator that is prepared, or the lists of all tensors while their
places are planned. Sizes are those of a machine with 64 bits; with 32 bits all of this is less.

Source: tflite-micro's micro_allocator.cc, micro_allocation_info.h, greedy_memory_planner.h, and the ``Prepare`` of its
kernels, read in 2026. A test looks for the smallest arena in which files run.
"""

from collections.abc import Sequence

from nbcompile.core.memory.arena import aligned
from nbcompile.exporters.to_tflite.file.parts import File, FileOp, FileTensor

_REQUEST, _MOST_REQUESTS = 16, 12
"""Bytes of a request for scratch memory, and of how many there is always room for."""

_TENSOR, _QUANTIZATION, _NUMBER = 64, 24, 4
"""Bytes of a tensor's description, of that of its scales, and of a zero point or their count."""

_POINTER, _PLANNED, _PLACE = 8, 32, 40
"""Bytes of a pointer; of a tensor in the list of all; of one whose place is looked for."""

_HANDLE = 8
"""Bytes that are kept for a piece of scratch memory."""

_BIAS = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "TRANSPOSE_CONV": 3}
"""Convolutions keep two numbers a channel, and describe all tensors twice but the bias, which is this input of them."""

_TWICE = ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_ALL")
"""Others that describe all their tensors twice."""

_FIRST_TWICE = ("CONCATENATION", "TANH")
"""Those that describe their first input twice; all the rest describe each tensor once."""


def arena_to_start(file: File, requests: Sequence[int], planned: int, head: int, tail: int) -> int:
    """Bytes of an arena in which TFLite Micro starts.

    Args:
        file: what it is to run.
        requests: how many pieces of scratch memory the kernel of each operator asks for.
        planned: how many tensors and pieces of scratch memory have a place in the head.
        head: bytes of it, once started.
        tail: bytes of it, once started.
    """
    ports = [file.tensors[i] for i in (*file.inputs, *file.outputs)]
    later = sum(map(_described, ports)) + _POINTER * len(ports)
    lists = _POINTER + _PLANNED * (len(file.tensors) + sum(requests))
    planning = aligned(_REQUEST * (_MOST_REQUESTS + sum(requests)) + lists) + _PLACE * planned
    most = max(head + tail, planning + tail - later)
    later += _HANDLE * sum(requests)
    for op, before in zip(reversed(file.ops), _sums(requests), strict=True):
        most = max(most, _REQUEST * (_MOST_REQUESTS + before) + _to_prepare(file, op) + tail - later)
        later += _kept_by(file, op)
    return aligned(most)


def _sums(requests: Sequence[int]) -> list[int]:
    """How many requests there are before each operator, from the last one on."""
    return [sum(requests[:i]) for i in reversed(range(len(requests)))]


def _described(tensor: FileTensor) -> int:
    """Bytes of the description of a tensor."""
    scales = len(tensor.quantization.scale) if tensor.quantization else None
    return _TENSOR + (0 if scales is None else _QUANTIZATION + 8 * -(-_NUMBER * (1 + scales) // 8))


def _to_prepare(file: File, op: FileOp) -> int:
    """Bytes of the descriptions that the kernel of an operator asks for while it is prepared."""
    operands = [None if i < 0 else file.tensors[i] for i in (*op.inputs, *op.outputs)]
    sizes = [0 if tensor is None else _described(tensor) for tensor in operands]
    if op.name in _BIAS:
        bias = _BIAS[op.name]
        return 2 * sum(sizes) - (sizes[bias] if len(op.inputs) > bias else 0)
    return sum(sizes) + (sum(sizes) if op.name in _TWICE else sizes[0] if op.name in _FIRST_TWICE else 0)


def _kept_by(file: File, op: FileOp) -> int:
    """Bytes that the kernel surely keeps when it is prepared: those that others keep only make the answer larger."""
    if op.name in _BIAS:
        channels = file.tensors[op.inputs[1]].shape[3 if op.name == "DEPTHWISE_CONV_2D" else 0]
    elif op.name == "FULLY_CONNECTED" and file.tensors[op.inputs[0]].dtype.kind == "i":
        scales = file.tensors[op.inputs[1]].quantization
        channels = 0 if scales is None or len(scales.scale) == 1 else len(scales.scale)
    else:
        channels = 0
    return 2 * _NUMBER * channels
