"""Calibration sets in ``.npz`` files. What is read is what is used, whatever the file says that it holds."""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile, ZipInfo

import numpy as np
import torch
from torch import Tensor

from nbcompile.core.errors import UsageError
from nbcompile.core.example import Inputs

_NAMED = 8
"""Arrays that a message names."""


def arrays_in(path: Path, inputs: Inputs, most: int, names: Sequence[str] = ()) -> tuple[Tensor, ...]:
    """The first samples of every array: by the names of the network's inputs, or else in the file's order.

    Args:
        path: an ``.npz``, compressed or not.
        inputs: example, batch first.
        most: samples that are read.
        names: of the network's inputs, as ``forward`` has them; none where they are not known.

    Returns:
        One tensor an input. One whose samples have another shape than the input's is on ``meta``: nothing of it is
        read, and it still shows what is wrong.

    Raises:
        UsageError: if the file cannot be read, has not one array an input, or fewer samples than it says; if one has
            the name of another input than that in its place, and not all have such names.
    """
    try:
        with ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) != len(inputs):
                names = ", ".join(entry.filename.removesuffix(".npy") for entry in entries[:_NAMED]) or "none"
                raise UsageError(
                    f"calibration {path} has {len(entries)} arrays ({names}), the network takes {len(inputs)} inputs"
                )
            ordered = _by_name(path, entries, names[: len(inputs)])
            return tuple(_read(archive, *pair, most) for pair in zip(ordered, inputs, strict=True))
    except UsageError:
        raise
    except Exception as error:  # of zipfile, numpy and the decompressors: damage is said in many ways
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"calibration {path} cannot be read: {reason}") from error


def _by_name(path: Path, entries: list[ZipInfo], names: Sequence[str]) -> list[ZipInfo]:
    """The arrays in the order of the inputs."""
    held = {entry.filename.removesuffix(".npy"): entry for entry in entries}
    if held.keys() == {*names}:
        return [held[name] for name in names]
    for place, name in enumerate(held):
        if name in names and names.index(name) != place:
            raise UsageError(
                f"calibration {path} has '{name}' as array {place + 1}, and that is input {names.index(name) + 1} of "
                f"the network: call all arrays as the inputs ({', '.join(names)}), or write them in that order"
            )
    return entries


def _read(archive: ZipFile, entry: ZipInfo, example: Tensor, most: int) -> Tensor:
    name = entry.filename.removesuffix(".npy")
    with archive.open(entry) as stream:
        shape, fortran, dtype = _header(stream)
        kind = torch.from_numpy(np.empty(0, dtype.newbyteorder("="))).dtype  # raises where it is not of numbers
        if shape[1:] != tuple(example.shape[1:]) or not shape:
            return torch.empty(shape, dtype=kind, device="meta")
        if fortran and shape[0] > most:
            raise ValueError(
                f"array '{name}' has {shape[0]:,} samples in Fortran's order, of which at most {most} are read: save "
                f"numpy.ascontiguousarray of it"
            )
        taken = (min(shape[0], most), *shape[1:])
        data = bytearray(stream.read(prod(taken) * dtype.itemsize))
        if len(data) < prod(taken) * dtype.itemsize:
            there = len(data) // max(1, prod(shape[1:]) * dtype.itemsize)
            raise ValueError(f"array '{name}' is cut off: of {shape[0]:,} samples it has {there:,}")
        if taken == shape:
            stream.read(1)  # the end: the checksum is looked at
    array = np.frombuffer(data, dtype).reshape(taken, order="F" if fortran else "C")
    return torch.from_numpy(np.require(array, dtype.newbyteorder("="), ["C", "W"]))


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is in Fortran's order, and dtype of an array."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    else:  # 3.0, of arrays with named fields, is refused by it
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    if min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {shape} is none")
    if dtype.hasobject:
        raise ValueError("it holds Python objects, whose reading could run any code: save arrays of numbers")
    return shape, fortran, dtype
