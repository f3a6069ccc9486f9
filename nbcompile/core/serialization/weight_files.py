"""Read weight files of any trainer, running no code of theirs."""

import argparse
import collections
import pathlib
import pickle
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbcompile.core.errors import CheckpointError
from nbcompile.core.record import decode_record, is_record
from nbcompile.core.serialization.pickled_calls import require_bounded_calls

_ZIP = b"PK"
_LARGE = 2**24
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # before numpy 2, and since; files have both
_DTYPES = ("bool", "U1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
EXTRA = "_extra_state"
RECORD = "nbcompile_record"
"""Beside the weights of a plain network: the record of the model. A giant carries it in its blocks."""


@dataclass(frozen=True)
class Weights:
    """One set of tensors in a file.

    Attributes:
        place: where it stands: keys of nested dicts and, behind a colon, the prefix of its keys; ``""`` at the root.
        tensors: by key, without the prefix and without ``_orig_mod.``.
        described: the key of the record that holds the model, or None.
        damaged: what is wrong with its records, or None; said when it is chosen, for another set may be sound.
    """

    place: str
    tensors: dict[str, Tensor]
    described: str | None = None
    damaged: str | None = None

    @property
    def averaged(self) -> bool:
        """Whether its place says that it is an EMA."""
        return "ema" in re.split(r"[^a-z0-9]+", self.place.lower().replace("_", " "))


def read_weights(path: Path) -> Any:
    """What ``path`` holds: nested dicts and lists of tensors and plain values.

    Raises:
        CheckpointError: if it is missing, damaged, foreign, or holds objects whose classes are not inert.
    """
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder, not a file")
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path} is empty: was its writer stopped?")
        with path.open("rb") as file:
            head = file.read(9)  # of safetensors: the length of a JSON object, and its first character
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if path.suffix == ".safetensors" or (head[8:] == b"{" and not head.startswith(_ZIP)):
        return _read_safetensors(path)
    _refuse_archives(path)
    require_bounded_calls(path)
    return _read_pickle(path)


def find(content: Any, path: Path) -> list[Weights]:
    """All sets of tensors in ``content``, those with a model's record first.

    Raises:
        CheckpointError: if there is none.
    """
    sets = [weights for place, tensors in _dicts(content, "", set()) for weights in _split(place, tensors)]
    if not sets:
        raise CheckpointError(f"{path} holds no weights: no dict of tensors is in it")
    return sorted(sets, key=lambda w: w.described is None)


def choose(sets: list[Weights], key: str | None, path: Path, keys: Collection[str] = ()) -> tuple[Weights, str | None]:
    """The set to take, and a sentence about it where there was a choice.

    Args:
        sets: from :func:`find`.
        key: a place, as the user wrote it; None takes an EMA where there is one, else the first.
        path: for the messages.
        keys: of the model that is to take the weights, if it is known: sets that hold them all are preferred, and what
            stands before them (``module.``, ``model.``) is dropped.

    Raises:
        CheckpointError: if ``key`` names none (the places are listed), or the records of the chosen set are damaged.
    """
    likely = [w for w in sets if w.described or w.damaged] or list(_fitting(sets, keys))
    likely = likely or sorted(sets, key=lambda w: -len(w.tensors))  # an optimiser's sets are small and many
    places = ", ".join(f"'{w.place}'" for w in likely[:8]) + (f" and {len(likely) - 8} more" if likely[8:] else "")
    note = None
    if key is not None:
        chosen = next((w for w in (*likely, *sets) if key in _spellings(w.place)), None)
        if chosen is None:
            raise CheckpointError(f"{path} has no weights at '{key}'; it has them at {places}")
    else:
        chosen = next((w for w in likely if w.averaged), likely[0])
        if len(likely) > 1:
            note = f"{path} holds weights at {places}: '{chosen.place}' was taken (--key chooses)"
    if chosen.damaged is not None and (fitting := next(_fitting([chosen], keys), None)):
        chosen = fitting  # the expanded model itself is at hand, and needs no record
    elif chosen.damaged is not None:
        sound = next((f"; the weights at '{w.place}' are sound (--key)" for w in likely if not w.damaged), "")
        raise CheckpointError(f"{path}: {chosen.damaged}{sound}")
    if wrong := next((name for name, value in chosen.tensors.items() if _unusable(value)), None):
        raise CheckpointError(f"{path}: '{wrong}' is no plain tensor with data of its own size")
    return chosen, note


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


def _dicts(content: Any, place: str, seen: set[int], depth: int = 0) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """All dicts that map strings to tensors (at least one), however nested; each object once."""
    if depth > 8 or id(content) in seen:
        return
    seen.add(id(content))
    if isinstance(content, Mapping):
        tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        tensors.pop(RECORD, None)
        if tensors:
            yield place, tensors
    items = content.items() if isinstance(content, Mapping) else enumerate(content) if _listed(content) else ()
    for key, value in items:
        if isinstance(key, (str, int)) and (isinstance(value, Mapping) or _listed(value)):
            yield from _dicts(value, f"{place}.{key}" if place else str(key), seen, depth + 1)


def _listed(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) <= 10_000


def _unusable(value: Tensor) -> bool:
    """Sparse, quantized or without data; or large by strides of 0 alone, which could fill the memory when copied."""
    if value.layout is not torch.strided or value.is_meta or value.is_quantized:
        return True
    return value.numel() > _LARGE and value.numel() * value.element_size() > value.untyped_storage().nbytes()


def _split(place: str, tensors: Mapping[str, Tensor]) -> Iterator[Weights]:
    """One set per record of a model: what stands before the record's own key is the prefix of that model's keys."""
    plain = {key.replace("_orig_mod.", ""): value for key, value in tensors.items()}
    heads: dict[str, str] = {}
    misplaced = None
    for key, value in plain.items():
        if not key.endswith(f".{EXTRA}") or not is_record(value):
            continue
        try:
            payload = decode_record(value, key)
        except CheckpointError as error:
            yield Weights(place, plain, damaged=str(error))
            return
        if "model" not in payload:
            continue
        own = f"{_site(payload)}.{EXTRA}"
        prefix = key.removesuffix(own)
        if key == prefix + own and (not prefix or prefix.endswith(".")):
            heads.setdefault(prefix, key)
        else:  # an alias, or a block that was moved to another place
            misplaced = f"the block at '{key}' was expanded as '{own}': give the whole model that expand returned"
    for prefix, head in heads.items():
        yield _below(place, plain, prefix, head.removeprefix(prefix))
    if not heads:
        yield Weights(place, plain, damaged=misplaced)


def _site(payload: Mapping[str, Any]) -> str:
    site = payload.get("site")
    return str(site.get("name")) if isinstance(site, dict) else ""


def _below(place: str, plain: Mapping[str, Tensor], prefix: str, described: str | None) -> Weights:
    inside = {key.removeprefix(prefix): value for key, value in plain.items() if key.startswith(prefix)}
    return Weights(f"{place}:{prefix}" if prefix else place, inside, described)


def _fitting(sets: list[Weights], keys: Collection[str]) -> Iterator[Weights]:
    """The sets that hold ``keys``, perhaps under a prefix."""
    first = next(iter(keys), None)
    for weights in sets if first is not None else ():
        for prefix in [k.removesuffix(str(first)) for k in weights.tensors if f".{k}".endswith(f".{first}")]:
            if all(prefix + key in weights.tensors for key in keys):
                yield _below(weights.place, weights.tensors, prefix, None) if prefix else weights
                break


def _spellings(place: str) -> tuple[str, ...]:
    return place, place.partition(":")[0], place.replace(":", "."), place.replace(":", ".").rstrip(".")
