"""Read weight files of any trainer, running no code of theirs."""

import argparse
import collections
import pathlib
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nbcompile.core.errors import CheckpointError
from nbcompile.core.record import decode, is_record

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
    """

    place: str
    tensors: dict[str, Tensor]
    described: str | None

    @property
    def averaged(self) -> bool:
        """Whether its place says that it is an EMA."""
        return "ema" in re.split(r"[^a-z0-9]+", self.place.lower().replace("_", " "))


def read(path: Path) -> Any:
    """What ``path`` holds: nested dicts and lists of tensors and plain values.

    Raises:
        CheckpointError: if it is missing, damaged, foreign, or holds objects whose classes are not inert.
    """
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder, not a file")
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path} is empty: was its writer stopped?")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)


def find(content: Any, path: Path) -> list[Weights]:
    """All sets of tensors in ``content``, those with a model's record first.

    Raises:
        CheckpointError: if there is none.
    """
    found = [weights for place, tensors in _dicts(content, "") for weights in _split(place, tensors)]
    if not found:
        raise CheckpointError(f"{path} holds no weights: no dict of tensors is in it")
    return sorted(found, key=lambda w: w.described is None)


def choose(found: list[Weights], key: str | None, path: Path) -> tuple[Weights, str | None]:
    """The set to take, and a sentence about it where there was a choice.

    Args:
        found: from :func:`find`.
        key: a place, as the user wrote it; None takes an EMA where there is one, else the first.
        path: for the messages.

    Raises:
        CheckpointError: if ``key`` names none; the places are listed.
    """
    places = ", ".join(f"'{w.place}'" for w in found)
    if key is not None:
        for weights in found:
            if key in (weights.place, weights.place.rstrip(":."), weights.place.replace(":", ".").rstrip(".")):
                return weights, None
        raise CheckpointError(f"{path} has no weights at '{key}'; it has them at {places}")
    described = [w for w in found if w.described] or found
    chosen = next((w for w in described if w.averaged), described[0])
    if len(described) == 1:
        return chosen, None
    return chosen, f"{path} holds weights at {places}: '{chosen.place}' was taken (--key chooses)"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file: {error}") from None


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
    unsafe = re.search(r"(?:GLOBAL|global|class)\s+`?([A-Za-z_][\w.]*\.\w+)`?", message)
    if unsafe is None:
        return f"{path} is damaged or no torch file: it is no pickle that holds only weights"
    return (
        f"{path} holds an object of class {unsafe[1]}, and unpickling it could run any code: save the weights alone, "
        "torch.save(giant.state_dict(), ...) or nbcompile.save(giant, ...)"
    )


def _inert() -> list[Any]:
    """Classes that trainers leave in their files and that do nothing when they are built."""
    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    return [
        argparse.Namespace,
        *(pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.Path),
        *(collections.defaultdict, collections.deque, collections.Counter, collections.OrderedDict),
        *(np.dtype, np.ndarray, np._core.multiarray._reconstruct, scalar, (scalar, "numpy.core.multiarray.scalar")),  # type: ignore[attr-defined]
        *(type(np.dtype(name)) for name in ("bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")),
        *(dict, list, tuple, set, int, float, str, bool, complex, slice),
    ]


def _dicts(content: Any, place: str, depth: int = 0) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """All dicts that map strings to tensors (at least one), however nested."""
    if depth > 8:
        return
    if isinstance(content, Mapping):
        tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        tensors.pop(RECORD, None)
        if tensors:
            yield place, tensors
    items = content.items() if isinstance(content, Mapping) else enumerate(content) if _listed(content) else ()
    for key, value in items:
        if isinstance(value, Mapping) or _listed(value):
            yield from _dicts(value, f"{place}.{key}" if place else str(key), depth + 1)


def _listed(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) <= 10_000


def _split(place: str, tensors: Mapping[str, Tensor]) -> Iterator[Weights]:
    """One set per record of a model: what stands before the record's own key is the prefix of that model's keys."""
    plain = {key.replace("_orig_mod.", ""): value for key, value in tensors.items()}
    heads = [key for key, value in plain.items() if key.endswith(EXTRA) and is_record(value) and _describes(value)]
    if not heads:
        yield Weights(place, plain, None)
    for head in heads:
        prefix = head.removesuffix(f"{_own_site(plain[head])}.{EXTRA}")
        inside = {key.removeprefix(prefix): value for key, value in plain.items() if key.startswith(prefix)}
        yield Weights(f"{place}:{prefix}" if prefix else place, inside, head.removeprefix(prefix))


def _describes(value: Tensor) -> bool:
    return "model" in decode(value, EXTRA)


def _own_site(value: Tensor) -> str:
    return str(decode(value, EXTRA)["site"]["name"])
