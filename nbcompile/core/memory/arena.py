"""Where TFLite Micro puts tensors in its arena: a model of its greedy memory planner.

Source:
    tensorflow/lite/micro/memory_planner/greedy_memory_planner.cc of tflite-micro: buffers in descending order of size,
    each at the lowest offset where it fits between those that are alive at the same time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 16
"""Bytes: offsets and sizes in the arena are multiples of it."""


@dataclass(frozen=True)
class Buffer:
    """Memory that a network needs for some time.

    Attributes:
        name: of the tensor, or what the memory is for.
        nbytes: bytes asked for; the planner rounds them up to ``ALIGNMENT``.
        first: index of the operator that writes it; -1 for inputs of the network.
        last: index of the last operator for which it is kept.
    """

    name: str
    nbytes: int
    first: int
    last: int

    @property
    def size(self) -> int:
        """Bytes that it takes in the arena."""
        return aligned(self.nbytes)


def aligned(nbytes: int) -> int:
    """``nbytes``, rounded up to a multiple of ``ALIGNMENT``."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def offsets(buffers: Sequence[Buffer]) -> list[int]:
    """Bytes from the start of the arena at which the planner puts each buffer.

    Args:
        buffers: in the order in which TFLite Micro adds them: tensors by index, then kernels' scratch memory. Of
            buffers of equal size, the planner places those first that were added last.
    """
    starts = [0] * len(buffers)
    placed: list[int] = []  # in ascending order of offset
    for i in sorted(range(len(buffers) - 1, -1, -1), key=lambda i: -buffers[i].size):
        end = 0
        for j in placed:
            if buffers[j].first > buffers[i].last or buffers[i].first > buffers[j].last:
                continue
            if starts[j] - end >= buffers[i].size:
                break
            end = max(end, starts[j] + buffers[j].size)
        starts[i] = end
        placed = sorted([*placed, i], key=lambda j: starts[j])
    return starts


def height(buffers: Sequence[Buffer]) -> int:
    """Bytes of arena that the planner's layout of ``buffers`` takes."""
    return max((start + b.size for start, b in zip(offsets(buffers), buffers, strict=True)), default=0)
