"""Where the windows of convolutions and pools lie: PyTorch's paddings in TFLite's words."""

from collections.abc import Sequence
from dataclasses import dataclass

from nbcompile.core.algebra.same_padding import same_padding
from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.lower.layout import axis_of
from nbcompile.exporters.to_tflite.lower.value import Value

PerAxis = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Windows along one spatial dimension, in elements.

    Attributes:
        size: of the input.
        kernel: elements that a window reads.
        stride: between windows.
        before: padding in front of the input.
        after: padding behind it, as much as windows reach.
        dilation: between elements that a window reads.
        count: of windows.
    """

    size: int
    kernel: int
    stride: int
    before: int
    after: int
    dilation: int
    count: int

    @classmethod
    def of(
        cls, size: int, kernel: int, stride: int, before: int, after: int, dilation: int = 1, ceil: bool = False
    ) -> "Window":
        """From PyTorch's arguments; padding that no window reads is left out.

        Args:
            size: of the input.
            kernel: of a window.
            stride: between windows.
            before: padding in front.
            after: padding behind.
            dilation: between elements of a window.
            ceil: whether a last window may start that reaches past the padding (``ceil_mode``).
        """
        span = dilation * (kernel - 1) + 1
        free = size + before + after - span
        count = free // stride + 1
        if ceil and free % stride and count * stride < size + before:
            count += 1
        reached = (count - 1) * stride + span - size - before
        return cls(size, kernel, stride, before, max(reached, 0), dilation, count)

    @property
    def is_valid(self) -> bool:
        """Whether they read no padding."""
        return self.before == self.after == 0

    @property
    def is_same(self) -> bool:
        """Whether they are those of TensorFlow's padding SAME: as many as strides begin, the odd zero behind."""
        padding = same_padding(self.size, self.dilation * (self.kernel - 1), self.stride)
        return self.count == -(-self.size // self.stride) and self.before == padding[0]


def scheme(windows: Sequence[Window]) -> str | None:
    """The padding of TensorFlow that gives ``windows``; None if neither does."""
    if all(window.is_valid for window in windows):
        return "VALID"
    return "SAME" if all(window.is_same for window in windows) else None


def padded(x: Value, pads: Sequence[PerAxis], fill: float = 0.0, mode: str = "CONSTANT") -> Value:
    """``x`` with (before, after) more elements in each of PyTorch's dimensions."""
    touched = [d for d, pad in enumerate(pads) if pad != (0, 0)]
    if not touched:
        return x
    x = x.arranged(x.order, free=[d for d in range(x.rank) if d not in touched])
    sizes = [pads[d] for d in x.order]
    made = tf.pad(x.tensor, sizes, mode, fill) if fill else tf.pad(x.tensor, sizes, mode)
    shape = tuple(size + sum(pad) for size, pad in zip(x.shape, pads, strict=True))
    axes = tuple(
        axis if axis.dims or shape[d] == 1 else axis_of(d, shape) for d, axis in zip(x.order, x.axes, strict=True)
    )
    zeros = (x, tuple(pads)) if not fill and mode == "CONSTANT" else None
    return Value(made, shape, axes, nonnegative=x.nonnegative and fill >= 0, padded=zeros)
