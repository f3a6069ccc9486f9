"""The memory that TFLite Micro needs for a file: measured by running it, and tensor by tensor from our model of it.

TFLite Micro's arena has two ends. The *head* holds activations and kernels' scratch memory, laid out by its planner.
The *tail* holds what is kept for good: operators, quantization constants, descriptions of tensors. Weights stay in
flash.

The scratch memory is that of TFLite Micro's reference kernels. Kernels made for a processor (CMSIS-NN, ESP-NN) ask for
more: leave room for it, and read the numbers that the board itself prints.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from nbcompile.core.errors import ExportError
from nbcompile.core.memory.arena import Buffer, covered, offsets
from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileOp, read_file
from nbcompile.exporters.to_tflite.run.interpreters import Micro, start_micro
from nbcompile.exporters.to_tflite.run.start_up import arena_to_start
from nbcompile.exporters.to_tflite.run.survival import require_survival

_SCRATCH = "scratch of "
PART = "#"
"""Before what tells one part of a layer's result from another, in the name of a tensor."""

_NEVER = -2
"""The operator at which a tensor lives that nothing writes or reads: TFLite Micro makes room for it, too."""


@dataclass(frozen=True)
class Bar:
    """One bar of the memory map.

    Attributes:
        buffer: name of the tensor or ``scratch of NAME``, and for which operators it is kept.
        layer: whose result it is; the tensor's name where no layer is known.
        offset: bytes from the start of the arena.
    """

    buffer: Buffer
    layer: str
    offset: int


@dataclass(frozen=True)
class Arena:
    """What a file needs of memory under TFLite Micro.

    Attributes:
        rows: the memory map by our model of TFLite Micro's planner: tensors in the order of the file, then scratch.
        ops: the operators' names, by index.
        head: bytes of activations and scratch memory: what TFLite Micro reports, or else what the map takes.
        tail: bytes that are kept for good, as TFLite Micro reports them on this 64-bit machine (pointers are half as
            long on a microcontroller); None where it was not run.
        needed: bytes of an arena in which TFLite Micro starts here: head and tail, and in small networks some more, see
            `start_up`; None where it was not run.
        flash: bytes of the file.
    """

    rows: tuple[Bar, ...]
    ops: tuple[str, ...]
    head: int
    tail: int | None
    needed: int | None
    flash: int

    @property
    def planned(self) -> int:
        """Bytes that the memory map takes; the map is TFLite Micro's own if this equals ``head``."""
        return max((row.offset + row.buffer.size for row in self.rows), default=0)

    @cached_property
    def live(self) -> tuple[int, ...]:
        """Bytes that are needed at once, operator by operator; those of tensors that lie in each other count once."""
        return tuple(
            covered((row.offset, row.offset + row.buffer.size) for row in self.rows if row.buffer.at(op))
            for op in range(len(self.ops))
        )

    @property
    def peak_op(self) -> int:
        """Index of the first operator at which most bytes are needed at once."""
        return self.live.index(max(self.live))

    @property
    def peak_layer(self) -> str:
        """The layer that this operator computes; where it pads, the layer that it pads for."""
        return next(row.layer for row in self.rows if row.buffer.first == self.peak_op).removesuffix("/pad")


def modelled(content: bytes, layers: Mapping[str, str] | None = None, scratch: Sequence[Buffer] | None = None) -> Arena:
    """The memory map of a file, without running it.

    Args:
        content: the file.
        layers: names of layers, by the names of their results in the file.
        scratch: what kernels request for themselves; None: what the reference kernels do.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    file, names = read_file(content), layers or {}
    held = _tensors(file)
    buffers = [*held.values(), *(scratch_of(file) if scratch is None else scratch)]
    given = {i: file.plan[number] for i, number in enumerate(held) if file.plan and file.plan[number] >= 0}
    tensors = [b.name.removeprefix(_SCRATCH).partition(PART)[0] for b in buffers]
    rows = tuple(
        Bar(b, names.get(tensor, tensor), offset)
        for b, tensor, offset in zip(buffers, tensors, offsets(buffers, given), strict=True)
    )
    arena = Arena(rows, tuple(op.name for op in file.ops), 0, None, None, file.size)
    return replace(arena, head=arena.planned)


def measure_arena(content: bytes, layers: Mapping[str, str] | None = None) -> Arena:
    """What TFLite Micro itself reports for a file, with the memory map of our model.

    Args:
        content: the file.
        layers: names of layers, by the names of their results in the file.

    Raises:
        CheckpointError: if the file cannot be read.
        ExportError: if TFLite Micro refuses it, with what it said; or ends the process at it.
    """
    require_survival(content)
    report = start_micro(content).allocations()
    head, tail = (_reported(part, report) for part in ("head", "tail"))
    map_of = modelled(content, layers)
    file = read_file(content)
    size = arena_to_start(file, [len(_requested(file, op)) for op in file.ops], len(map_of.rows), head, tail)
    Micro(content, size)  # refused if it does not
    return replace(map_of, head=head, tail=tail, needed=size)


def _reported(part: str, report: str) -> int:
    """Bytes of the arena's head or tail, from the lines that TFLite Micro prints."""
    reported = re.search(rf"Arena allocation {part} (\d+) bytes", report)
    if not reported:
        raise ExportError(f"TFLite Micro did not report the {part} of its arena, but: {report.strip() or 'nothing'}")
    return int(reported[1])


def _tensors(file: File) -> dict[int, Buffer]:
    """The tensors that take memory, by index; kept as long as TFLite Micro's ``AllocationInfoBuilder`` keeps them."""
    first = dict.fromkeys((*file.inputs, *file.outputs), -1)
    last = dict(first)
    for op in file.ops:
        first |= dict.fromkeys(op.outputs, op.index)
        last |= dict.fromkeys((*op.inputs, *op.outputs), op.index)
    last |= dict.fromkeys(file.outputs, len(file.ops) - 1)
    return {
        t.index: Buffer(t.name, t.nbytes, first.get(t.index, _NEVER), last.get(t.index, _NEVER))
        for t in file.tensors
        if t.data is None and t.nbytes
    }


def scratch_of(file: File) -> list[Buffer]:
    """What the reference kernels request for themselves while they run."""
    buffers = []
    for op in file.ops:
        name = _SCRATCH + file.tensors[op.outputs[0]].name
        buffers += [Buffer(name, nbytes, op.index, op.index) for nbytes in _requested(file, op)]
    return buffers


def _requested(file: File, op: FileOp) -> tuple[int, ...]:
    """Bytes that the kernel of ``op`` requests when it is prepared."""
    output = file.tensors[op.outputs[0]]
    integer, values = output.dtype.kind == "i", prod(output.shape)
    match op.name:
        case "MEAN" | "SUM" | "REDUCE_MAX" | "REDUCE_MIN":
            x, axes = file.operands(op)
            indices = (4 * len(x.shape), 4 * prod(axes.shape))
            sums = (4 * values,) if integer and op.name in ("MEAN", "SUM") else ()
            return (*sums, *indices)
        case "TRANSPOSE_CONV" if integer:
            return (4 * output.dtype.itemsize * values,)  # 32-bit sums; 64-bit ones in 16x8
    return ()
