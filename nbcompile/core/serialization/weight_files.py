"""Read weight files of any trainer, running no code of theirs.

Which weights they hold is told by `nbcompile.core.serialization.weight_sets`.
"""

import argparse
import collections
import pathlib
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbcompile.core.errors import CheckpointError
from nbcompile.core.input_files import of_one_state, require_file
from nbcompile.core.serialization.pickled_calls import require_bounded_calls

_ZIP = b"PK"
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # before numpy 2, and since; files have both
_DTYPES = ("bool", "U1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
EXTRA = "_extra_state"
RECORD = "nbcompile_record"
"""Beside the weights of a plain network: the record of the model. A giant carries it in its blocks."""


@of_one_state
def read_weights(path: Path) -> Any:
    """What ``path`` holds: nested dicts and lists of tensors and plain values.

    Raises:
        CheckpointError: if it is missing, damaged, foreign, or holds objects whose classes are not inert.
    """
    try:
        require_file(path)
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path} is empty: was its writer stopped?")
        with path.open("rb") as file:
            head = file.read(9)  # of safetensors: the length of a JSON object, and its first character
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path} cannot be read: {why}") from None
    if path.suffix == ".safetensors" or (head[8:] == b"{" and not head.startswith(_ZIP)):
        return _read_safetensors(path)
    _refuse_archives(path)
    require_bounded_calls(path)
    return _read_pickle(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file: {error}") from None


def _refuse_archives(path: Path) -> None:
    """Torch writes weights uncompressed, but reads compressed ones, too: a small file could fill the memory."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged or no torch file: {error}") from None
    if any("/code/" in entry.filename for entry in entries):
        raise CheckpointError(
            f"{path} is a TorchScript archive: save the weights alone, torch.save(model.state_dict(), ...)"
        )
    if any(entry.filename.rpartition("/")[2] == "archive_format" for entry in entries):
        raise CheckpointError(
            f"{path} is a program of torch.export: save the weights of the module it was made from, "
            "torch.save(model.state_dict(), ...)"
        )
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError(f"{path} is a compressed archive; torch writes uncompressed ones: use torch.save")


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_inert()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from None
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} is damaged or no torch file: {first}") from None


def _refusal(path: Path, message: str) -> str:
    unsafe = re.search(r"(?:GLOBAL|class)\s+[`']?([A-Za-z_][\w.]*)", message)
    if unsafe is None:
        return f"{path} is damaged or no torch file: it is no pickle that holds only weights"
    return (
        f"{path} holds an object of class {unsafe[1]}, which is not read, because unpickling could run any code: save "
        "the weights alone, torch.save(giant.state_dict(), ...) or nbcompile.save(giant, ...)"
    )


def _inert() -> list[Any]:
    """Classes that trainers leave in their files and that do nothing when they are built."""
    builders: list[Any] = [value.__reduce__()[0] for value in (np.float64(), np.empty(0))]  # as numpy pickles
    return [
        argparse.Namespace,
        *(pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.Path),
        *(collections.defaultdict, collections.deque, collections.Counter, collections.OrderedDict),
        *(np.dtype, np.ndarray, *((f, f"{home}.{f.__name__}") for f in builders for home in _MULTIARRAY)),
        *(type(np.dtype(name)) for name in _DTYPES),
        *(dict, list, tuple, set, frozenset, range, int, float, str, bool, complex, slice),
    ]
