"""The sets of weights in a file: dicts of tensors at any depth, and in one dict one set for each prefix."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nbcompile.core.errors import CheckpointError
from nbcompile.core.record import decode_record, is_record
from nbcompile.core.serialization.weight_files import EXTRA, RECORD

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What ``torch.compile``, FSDP and activation checkpointing put into keys."""

_AVERAGED = {"ema", "shadow", "average", "averaged", "swa"}
_LIVE = {"online", "collected"}  # beside an average, and inside what is called one
_OPTIMIZER = {"optimizer", "optimizers", "optim"}
_LARGE = 2**24

IN_ONE_DICT = 64
"""Sets that are looked at in one dict: the work on a file is bounded."""


@dataclass(frozen=True)
class Weights:
    """One set of tensors in a file.

    Attributes:
        place: where it stands: keys of nested dicts and, behind a colon, the prefix of its keys; ``""`` at the root.
        tensors: by key, without the prefix and without what wrappers put into keys.
        described: the key of the record that holds the model, or None.
        damaged: what is wrong with its records, or None; said when it is chosen, for another set may be sound.
        around: all that stands in the same dict.
        listed: whether it is a list, whose keys are numbers.
        completed: of an average of parameters alone: where its other tensors are from.
    """

    place: str
    tensors: dict[str, Tensor]
    described: str | None = None
    damaged: str | None = None
    around: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    listed: bool = False
    completed: str = ""

    @property
    def averaged(self) -> bool:
        """Whether its place says that it is an average (EMA): the innermost name that says anything counts."""
        for words in reversed([*_words(self.place)]):
            if words & (_AVERAGED | _LIVE):
                return bool(words & _AVERAGED)
        return False

    @property
    def of_optimizer(self) -> bool:
        """Whether its place says that it is an optimiser's state."""
        return any(words & _OPTIMIZER for words in _words(self.place))

    @property
    def name(self) -> str:
        """Its place, as ``--key`` takes it."""
        return self.place.strip(":.") if self.place.startswith(":") else self.place

    def is_called(self, key: str) -> bool:
        """Whether a user may mean it by ``key``."""
        dots = self.place.replace(":", ".")
        return key in (self.place, self.place.partition(":")[0], dots, dots.rstrip("."), dots.strip("."), self.name)

    def equals(self, other: "Weights") -> bool:
        """Whether both hold the same: a module under two names."""
        if self.tensors.keys() != other.tensors.keys() or any(map(unusable, self.tensors.values())):
            return False
        pairs = [(value, other.tensors[key]) for key, value in self.tensors.items()]
        return all(not unusable(b) and a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def find(content: Any, path: Path) -> list[Weights]:
    """All sets of tensors in ``content``: those with a model's record first, lists that are averages last.

    Raises:
        CheckpointError: if there is no dict of tensors.
    """
    sets, lists = list[Weights](), list[Weights]()
    for place, value in _nested(content, "", set()):
        if isinstance(value, Mapping):
            sets += _split(place, {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, Tensor)})
        elif all(isinstance(one, Tensor) for one in value):  # shadow_params, in the order of a model's parameters
            lists.append(Weights(place, {str(number): one for number, one in enumerate(value)}, listed=True))
    if not sets:
        raise CheckpointError(f"{path} holds no weights: no dict of tensors is in it")
    return sorted(sets, key=lambda w: w.described is None) + [w for w in lists if w.tensors and w.averaged]


def fitting(sets: list[Weights], keys: Collection[str]) -> Iterator[Weights]:
    """The sets that hold ``keys``, each without its prefix; extra states may be missing, for trainers drop them."""
    keys = [key for key in keys if not key.endswith(EXTRA)]
    for weights in sets if keys else ():
        ends = [k.removesuffix(keys[0]) for k in weights.tensors if f".{k}".endswith(f".{keys[0]}")]
        prefixes = [prefix for prefix in ends if all(prefix + key in weights.tensors for key in keys)][:IN_ONE_DICT]
        for prefix in prefixes:
            yield below(weights.place, weights.tensors, prefix, None, prefixes) if prefixes != [""] else weights


def below(
    place: str, plain: Mapping[str, Tensor], prefix: str, described: str | None, prefixes: Collection[str]
) -> Weights:
    """What stands in a dict below ``prefix``, and below none of the other ``prefixes`` in it."""
    inner = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
    inside = {
        key.removeprefix(prefix): value
        for key, value in plain.items()
        if key.startswith(prefix) and not key.startswith(inner)
    }
    where = f"{place}{prefix}" if ":" in place or not prefix else f"{place}:{prefix}"
    return Weights(where, inside, described, around=plain)


def unusable(value: Tensor) -> bool:
    """Sparse, quantized or without data; or large by strides of 0 alone, which could fill the memory when copied."""
    if value.layout is not torch.strided or value.is_meta or value.is_quantized:
        return True
    return value.numel() > _LARGE and value.numel() * value.element_size() > value.untyped_storage().nbytes()


def _words(place: str) -> Iterator[set[str]]:
    """Of each part of a place, outermost first."""
    for part in re.split(r"[.:]+", place.lower()):
        yield set(re.split(r"[^a-z0-9]+", part.replace("_", " ")))


def _nested(content: Any, place: str, seen: set[int], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """All dicts and lists in ``content``, outermost first, with their places; each object once."""
    if depth > 8 or id(content) in seen or not (isinstance(content, Mapping) or _listed(content)):
        return
    seen.add(id(content))
    yield place, content
    for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
        if isinstance(key, (str, int)):
            yield from _nested(value, f"{place}.{key}" if place else str(key), seen, depth + 1)


def _listed(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) <= 10_000


def _split(place: str, tensors: Mapping[str, Tensor]) -> Iterator[Weights]:
    """One set per record of a model: what stands before the record's own key is the prefix of that model's keys."""
    plain = _unwrapped({key: value for key, value in tensors.items() if key != RECORD})
    if not plain:
        return
    heads: dict[str, str] = {}
    misplaced = None
    for key, value in plain.items():
        if not key.endswith(f".{EXTRA}") or not is_record(value):
            continue
        try:
            payload = decode_record(value, key)
        except CheckpointError as error:
            yield Weights(place, plain, damaged=str(error), around=plain)
            return
        if "model" not in payload:
            continue
        own = f"{_carrier(payload)}.{EXTRA}"
        prefix = key.removesuffix(own)
        if key == prefix + own and (not prefix or prefix.endswith(".")):
            if len(heads) < IN_ONE_DICT:
                heads.setdefault(prefix, key)
        else:  # an alias, or a block that was moved to another place
            misplaced = f"what is at '{key}' was made as '{own}': give the whole giant that expand or widen returned"
    for prefix, head in heads.items():
        yield below(place, plain, prefix, head.removeprefix(prefix), heads)
    if not heads:
        yield Weights(place, plain, damaged=misplaced, around=plain)


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` without what wrappers put into keys, unless that is the key of another one."""
    inside = re.compile(rf"(?<![^.])(?:{'|'.join(_WRAPPERS)})\.")
    short = {key: inside.sub("", key) for key in tensors}
    return {key if name in tensors else name: tensors[key] for key, name in short.items()}


def _carrier(payload: Mapping[str, Any]) -> str:
    """The module that carries a record: an expansion block, or a part of a wide tensor."""
    site, width = payload.get("site"), payload.get("width")
    if isinstance(width, dict):
        return str(width.get("carrier"))
    return str(site.get("name")) if isinstance(site, dict) else ""
