"""What the parts of the TFLite exporter hand to each other; imports no TensorFlow."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor


def is_channels_last(rank: int) -> bool:
    """Whether inputs and outputs of ``rank`` dimensions are stored with PyTorch's dimension 1 behind all others.

    Maps are, which have four dimensions and more; all else is stored as PyTorch has it. It is the one rule, so that
    whoever fills an input or reads an output need not know what the network does with it.
    """
    return rank > 3


def stored_order(rank: int) -> tuple[int, ...]:
    """PyTorch's dimensions in the order in which inputs and outputs of a file have them."""
    return (0, *range(2, rank), 1) if is_channels_last(rank) else tuple(range(rank))


def name_of_input(number: int, count: int) -> str:
    """What a file calls the ``number``-th of ``count`` inputs."""
    return "input" if count == 1 else f"input_{number}"


@dataclass(frozen=True)
class Port:
    """An input or output of a file.

    Attributes:
        name: of the tensor in the file.
        shape: in the file, batch 1 first.
        channels_last: whether the file has ``(1, *spatial, C)`` where PyTorch has ``(1, C, *spatial)``.
    """

    name: str
    shape: tuple[int, ...]
    channels_last: bool

    def to_file(self, x: Tensor) -> np.ndarray:
        """``x`` in torch layout, as the file takes it: float32, contiguous (integers stay integers)."""
        x = x.detach().movedim(1, -1) if self.channels_last else x.detach()
        return (x.float() if x.is_floating_point() else x).contiguous().numpy()


@dataclass(frozen=True)
class FloatModel:
    """A float32 ``.tflite`` file in memory, before it is quantized.

    Attributes:
        content: the flatbuffer.
        inputs: in the order of the graph's positional inputs.
        outputs: in the order of the graph's flattened outputs.
        layers: names of tensors in the file, to the names of the layers whose results they are (``features.0.0``).
    """

    content: bytes
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: Mapping[str, str] = field(default_factory=dict)
