"""What a file takes of the arena on a microcontroller: 32-bit structures, and CMSIS-NN's scratch memory.

The package's TFLite Micro, which measures, is a 64-bit program with reference kernels. On a Cortex-M pointers are half
as long, so that what stays is smaller, but CMSIS-NN's kernels ask for scratch memory that the reference kernels do not,
so that activations may take more.

Source:
    tflite-micro's ``sizeof``s by arm-none-eabi-g++ 12.2 for a Cortex-M7, revision 90b983c; CMSIS-NN's
    ``arm_*_get_buffer_size`` functions, revision 4ab83cc. Measured: ``benchmarks/on_device.py``.
"""

from dataclasses import dataclass

from nbcompile.core.memory.arena import Buffer, aligned
from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileOp, read_file
from nbcompile.exporters.to_tflite.run.arena import Arena, modelled, scratch_of

_BLOCK = 124
"""Channels that CMSIS-NN's depthwise kernel for Helium takes at a time."""

_LESS, _LESS_A_TENSOR, _LESS_AN_OPERATOR = 456, 12, 32
"""Bytes by which structures with pointers are smaller: the interpreter's own; a tensor's, an operator's description."""

_LESS_FOR = {"CONV_2D": 16, "DEPTHWISE_CONV_2D": 16, "CONCATENATION": 48}
"""And what kernels keep for themselves; that of others is about as large."""

_UNSURE = 64
"""Bytes by which the computed arena may be too small, and that are added."""


@dataclass(frozen=True)
class OnDevice:
    """Bytes of the arena on a Cortex-M with CMSIS-NN, as they are computed.

    Attributes:
        head: activations and scratch memory.
        tail: what is kept for good.
    """

    head: int
    tail: int

    @property
    def total(self) -> int:
        """Bytes of the arena."""
        return self.head + self.tail


def stated_arena(content: bytes, arena: Arena, *, helium: bool = False) -> int:
    """Bytes of an arena that is enough here and on a Cortex-M with CMSIS-NN.

    Args:
        content: the file.
        arena: what it takes on this machine.
        helium: on one with Helium, not only DSP instructions: a Cortex-M55.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    there = on_device(content, arena, helium=helium)
    return max(arena.needed or arena.head, 0 if there is None else aligned(there.total + _UNSURE))


def on_device(content: bytes, arena: Arena, *, helium: bool = False) -> OnDevice | None:
    """The arena of a file on a Cortex-M; None where its ``arena`` was not measured.

    Args:
        content: the file.
        arena: what it takes on this machine.
        helium: on one with Helium, not only DSP instructions: a Cortex-M55.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    if arena.tail is None:
        return None
    file = read_file(content)
    scratch = sorted([*scratch_of(file), *cmsis_nn_scratch(file, helium)], key=lambda one: one.first)
    head = modelled(content, scratch=scratch).planned
    return OnDevice(max(head, arena.head), arena.tail - less_on_32_bits(file))


def cmsis_nn_scratch(file: File, helium: bool) -> list[Buffer]:
    """Scratch memory that CMSIS-NN's int8 kernels ask for, where the reference kernels ask for none.

    Args:
        file: to be run.
        helium: for a core with Helium (Cortex-M55), not only DSP instructions.
    """
    found = []
    for op in file.ops:
        if file.tensors[op.outputs[0]].dtype.name != "int8":
            continue
        if size := _requested(file, op, helium):
            found.append(Buffer(f"scratch of {file.tensors[op.outputs[0]].name}", size, op.index, op.index))
    return found


def _requested(file: File, op: FileOp, helium: bool) -> int:
    """``arm_convolve_wrapper_s8_get_buffer_size`` and its kin."""
    if op.name not in ("AVERAGE_POOL_2D", "FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D"):
        return 0
    channels = file.tensors[op.outputs[0]].shape[-1]
    if op.name == "AVERAGE_POOL_2D":
        return 0 if helium else 4 * channels
    if op.name == "FULLY_CONNECTED":
        return 4 * channels if helium else 0
    _, height, width, depth = file.tensors[op.inputs[1]].shape
    inputs, window = file.tensors[op.inputs[0]].shape[-1], height * width
    if op.name == "CONV_2D":
        column = window * inputs
        return 0 if window == 1 else 4 * aligned(column) if helium else 4 * -(-column // 4) * 4
    dilated = op.options.dilationWFactor > 1 or op.options.dilationHFactor > 1
    if inputs != channels or dilated:
        return 0
    if helium:
        return 4 * _BLOCK * window
    return 0 if (height, width) == (3, 3) else 2 * window * depth


def less_on_32_bits(file: File) -> int:
    """Bytes by which what is kept is less than on a machine with 64 bits: within 32 of what was measured."""
    kernels = sum(_LESS_FOR.get(op.name, 0) for op in file.ops)
    return _LESS + _LESS_A_TENSOR * len(file.tensors) + _LESS_AN_OPERATOR * len(file.ops) + kernels
