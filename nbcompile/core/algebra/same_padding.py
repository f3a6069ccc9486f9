"""TensorFlow's SAME padding: what TFLite's convolutions can do themselves; any other padding is an operator of its own.

SAME gives ``ceil(size / stride)`` outputs and pads as much as they need, the odd one at the end: so at stride 2 it
depends on the size, where PyTorch's padding does not.

Source: the notes on padding in https://www.tensorflow.org/api_docs/python/tf/nn.
"""

from collections.abc import Sequence

from nbcompile.core.algebra import Geometry


def same_padding(size: int, reach: int, stride: int) -> tuple[int, int]:
    """``(low, high)`` that SAME pads one axis with.

    Args:
        size: of the input, in positions.
        reach: distance from the first tap to the last, in positions.
        stride: in positions.
    """
    total = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
    return total // 2, total - total // 2


def is_same(size: int, reach: int, stride: int, padding: tuple[int, int]) -> bool:
    """Whether one axis padded by ``(low, high)`` is what SAME does: as many outputs, and the first at the same place.

    What is padded beyond the last position read is of no account.
    """
    outputs = (size + sum(padding) - reach - 1) // stride + 1
    return outputs == -(-size // stride) and padding[0] == same_padding(size, reach, stride)[0]


def read_padding(size: int, reach: int, stride: int, padding: tuple[int, int]) -> tuple[int, int]:
    """What of ``(low, high)`` any window reads: where a stride leaves positions over, the last ones are not needed."""
    over = (size + sum(padding) - reach - 1) % stride
    return padding[0], max(padding[1] - over, 0)


def pads_itself(geometry: Geometry, sizes: Sequence[int]) -> bool:
    """Whether a TFLite convolution of this geometry pads by itself, as SAME or as VALID, on maps of these sizes."""
    if not geometry.pads:
        return True
    axes = zip(sizes, geometry.reach, geometry.stride, geometry.padding, strict=True)
    return geometry.padding_mode == "zeros" and all(is_same(*axis) for axis in axes)
