"""Calibration sets: what a network is run on to find out which values its layers take.

A set comes from a folder of images, an ``.npz`` file, a tensor, or an iterable of batches. Images become inputs as in
training (`nbcompile.deploy.calibration_images`); all other sources hold inputs that are ready, in PyTorch's layout.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbcompile.core.errors import UsageError
from nbcompile.core.example import Inputs
from nbcompile.core.progress import step
from nbcompile.deploy.calibration_arrays import arrays_in
from nbcompile.deploy.calibration_batches import samples_in
from nbcompile.deploy.calibration_images import images_in, input_of
from nbcompile.deploy.options import require_calibration

FEW = 32
"""Samples below which ranges are not to be relied on."""

MOST = 512
"""Samples that are taken of a larger source: ranges hardly change any more, and all samples are held in memory."""


@dataclass(frozen=True)
class Calibration:
    """What a network is calibrated on.

    Attributes:
        samples: positional inputs of ``forward``, at batch size 1.
        notes: what the user should know, one sentence each.
    """

    samples: tuple[Inputs, ...]
    notes: tuple[str, ...]


def calibration(
    source: str | PathLike[str] | Tensor | Iterable[Any],
    inputs: Inputs,
    preprocessing: Mapping[str, Any] | None = None,
    names: Sequence[str] = (),
) -> Calibration:
    """Read a calibration set, and check that it fits the network.

    Args:
        source: a folder of images, at any depth; an ``.npz`` with one array per input, by name or in order; one tensor
            ``(N, C, H, W)``; or an iterable of batches, each a tensor, or a tuple whose first items are the inputs
            (labels after them are left). All but images are inputs as the network takes them.
        inputs: example, batch first.
        preprocessing: how images become inputs, as training records it: ``scale``, ``mean``, ``std``, ``crop``.
        names: of the inputs, as ``forward`` has them.

    Raises:
        UsageError: if the source cannot be read, is empty, or does not fit ``inputs``.
        PreconditionError: if a sample has values that are NaN or infinite.
    """
    if not all(isinstance(x, Tensor) and x.ndim for x in inputs):
        raise UsageError("calibration needs a network whose inputs are tensors with a batch dimension")
    notes: list[str] = []
    if isinstance(source, str | PathLike):
        samples = _of_path(Path(source), inputs, preprocessing or {}, names, notes)
    else:
        samples = samples_in([source] if isinstance(source, Tensor | np.ndarray) else source, inputs, notes)
    taken: list[Inputs] = []
    with step("reading the calibration set") as advance:
        for sample in islice(samples, MOST + 1):
            taken.append(sample)
            advance()
    if not taken:
        raise UsageError("the calibration set is empty: give some 100 samples as the network will see them")
    if len(taken) > MOST:
        taken = taken[:MOST]
        notes.append(f"calibrated on the first {MOST} samples; the rest was left")
    return Calibration(tuple(taken), (*notes, *_doubts(taken)))


def _of_path(
    path: Path, inputs: Inputs, preprocessing: Mapping[str, Any], names: Sequence[str], notes: list[str]
) -> Iterator[Inputs]:
    if path.is_dir():
        yield from _of_images(path, inputs, preprocessing, notes)
    elif path.suffix.lower() == ".npz":
        yield from samples_in([arrays_in(path, inputs, MOST + 1, names)], inputs, notes)
    else:
        require_calibration(path)


def _of_images(folder: Path, inputs: Inputs, preprocessing: Mapping[str, Any], notes: list[str]) -> Iterator[Inputs]:
    if len(inputs) != 1 or inputs[0].ndim != 4 or inputs[0].shape[1] not in (1, 3):
        shapes = ", ".join(_shape(x) for x in inputs)
        raise UsageError(
            f"calibration {folder}: images fit one input (N, 1, H, W) or (N, 3, H, W), the network takes {shapes}; "
            f"give an .npz or batches"
        )
    paths = images_in(folder)
    if len(paths) > MOST:
        notes.append(f"calibrated on {MOST} of the {len(paths):,} images in {folder}, evenly chosen")
        paths = [paths[i * len(paths) // MOST] for i in range(MOST)]
    sizes: dict[tuple[int, int], int] = {}
    for path in paths:
        x, size = input_of(path, tuple(inputs[0].shape[1:]), preprocessing)
        sizes[size] = sizes.get(size, 0) + 1
        yield (x.unsqueeze(0).to(inputs[0].dtype),)
    wanted = (inputs[0].shape[-1], inputs[0].shape[-2])
    if resized := sum(count for size, count in sizes.items() if size != wanted):
        notes.append(f"{resized} of {len(paths)} images were of another size than {wanted[0]} × {wanted[1]}: resized")


def _doubts(samples: Sequence[Inputs]) -> Iterator[str]:
    """What may be wrong with a calibration set that can be used."""
    count = len(samples)
    if count < FEW:
        yield (
            f"the calibration set has {count} {'sample' if count == 1 else 'samples'}: with fewer than {FEW}, the "
            f"network may meet values outside the ranges that were seen; give some 100"
        )
    constant = sum(all(_is_constant(x) for x in one) for one in samples)
    if constant:
        yield f"{constant} of {count} calibration samples are constant: one value per channel, nothing to see"
    first = samples[0]
    if count > 1 and all(torch.equal(x, y) for one in samples[1:] for x, y in zip(one, first, strict=True)):
        yield f"all {count} calibration samples are the same"


def _is_constant(x: Tensor) -> bool:
    """Whether a sample (1, C, ...) has one value per channel, over more than one position."""
    flat = x.flatten(2) if x.ndim > 2 else x
    return flat.shape[-1] > 1 and bool((flat == flat[..., :1]).all())


def _shape(x: Tensor) -> str:
    """The shape of an input, whatever its batch."""
    return f"({', '.join(['N', *map(str, x.shape[1:])])})"
