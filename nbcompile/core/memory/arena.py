"""Where TFLite Micro puts tensors in its arena: a model of its greedy memory planner.

Source:
    tensorflow/lite/micro/memory_planner/greedy_memory_planner.cc of tflite-micro: buffers in descending order of size,
    each at the lowest offset where it fits between those that are alive at the same time.
"""

from collections.abc import Iterable, Mapping, Sequence
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

    def at(self, op: int) -> bool:
        """Whether it is needed at operator ``op``."""
        return self.first <= op <= self.last


def aligned(nbytes: int) -> int:
    """``nbytes``, rounded up to a multiple of ``ALIGNMENT``."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def offsets(buffers: Sequence[Buffer], given: Mapping[int, int] | None = None) -> list[int]:
    """Bytes from the start of the arena at which the planner puts each buffer.

    Args:
        buffers: in the order in which TFLite Micro adds them: tensors by index, then kernels' scratch memory. Of
            buffers of equal size, the planner places those first that were added last.
        given: places of some, by their positions: they are taken as they are, the others find theirs around them.
    """
    starts = [0] * len(buffers)
    for i, start in (given or {}).items():
        starts[i] = start
    placed = sorted(given or (), key=lambda j: starts[j])
    for i in sorted(range(len(buffers) - 1, -1, -1), key=lambda i: -buffers[i].size):
        if given and i in given:
            continue
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


def covered(intervals: Iterable[tuple[int, int]]) -> int:
    """Bytes that intervals cover; each from its first to behind its last."""
    total = end = 0
    for low, high in sorted(intervals):
        total += max(0, high - max(low, end))
        end = max(end, high)
    return total


def height(buffers: Sequence[Buffer]) -> int:
    """Bytes of arena that the planner's layout of ``buffers`` takes."""
    return max((start + b.size for start, b in zip(offsets(buffers), buffers, strict=True)), default=0)
