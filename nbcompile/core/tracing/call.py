"""How a module is called: which of its arguments are tensors, in what structure, and what the others are."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.utils._pytree import TreeSpec, tree_flatten, tree_flatten_with_path, tree_unflatten

_CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device)


class _Slot(Enum):
    """Stands for a tensor; a copy of it is itself."""

    SLOT = "tensor"


SLOT = _Slot.SLOT


@dataclass(frozen=True)
class Call:
    """The arguments of a call, with a slot for every tensor.

    Attributes:
        structure: of ``(args, kwargs)``.
        leaves: its leaves in order: ``SLOT``, or a constant.
        dimensions: of the tensors that were seen, in order; None where none were, or not always the same. Two calls
            that differ in nothing else are equal.
    """

    structure: TreeSpec
    leaves: tuple[Any, ...]
    dimensions: tuple[int, ...] | None = field(default=None, compare=False)

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> "Call | None":
        """How ``module(*args, **kwargs)`` is called; None where an argument is neither tensor nor constant."""
        if not kwargs and all(isinstance(x, Tensor) for x in args):
            return cls(_of_tensors(len(args)), (SLOT,) * len(args), tuple(x.ndim for x in args))
        leaves, structure = tree_flatten((tuple(args), dict(kwargs)))
        kept = tuple(SLOT if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        if not all(leaf is SLOT or isinstance(leaf, _CONSTANTS) for leaf in kept):
            return None
        return cls(structure, kept, tuple(leaf.ndim for leaf in leaves if isinstance(leaf, Tensor)))

    @classmethod
    def positional(cls, count: int) -> "Call":
        """A call with ``count`` tensors."""
        return cls(_of_tensors(count), (SLOT,) * count)

    @classmethod
    def required(cls, module: nn.Module) -> "Call | None":
        """A call with a tensor for every parameter of ``forward`` that has no default; None where it has ``*args``."""
        parameters = _parameters(module)
        if any(p.kind is p.VAR_POSITIONAL for p in parameters):
            return None
        needed = [p for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        named = {p.name: SLOT for p in needed if p.kind is p.KEYWORD_ONLY}
        leaves, structure = tree_flatten(((SLOT,) * (len(needed) - len(named)), named))
        return cls(structure, tuple(leaves))

    @property
    def is_plain(self) -> bool:
        """Whether it has nothing but tensors, each an argument of its own."""
        return self.structure == _of_tensors(len(self.leaves)) and all(x is SLOT for x in self.leaves)

    def filled(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``args, kwargs`` with ``tensors`` in the slots."""
        values = iter(tensors)
        leaves = [next(values) if leaf is SLOT else leaf for leaf in self.leaves]
        args, kwargs = tree_unflatten(leaves, self.structure)
        return args, kwargs

    def tensors(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor] | None:
        """The tensors of a call, in the order of the slots; None where it is another kind of call."""
        leaves, structure = tree_flatten((tuple(args), dict(kwargs)))
        if structure != self.structure or not all(map(_fits, leaves, self.leaves)):
            return None
        return [leaf for leaf, own in zip(leaves, self.leaves, strict=True) if own is SLOT]

    def names(self, module: nn.Module) -> list[str]:
        """A name for every slot, after the parameters of ``forward``: ``x``, ``features_0``, ``features_1``."""
        parameters = _parameters(module)
        plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "input")
        names: list[str] = []
        for path, leaf in tree_flatten_with_path(self.filled([SLOT] * len(self.leaves)))[0]:
            if leaf is not SLOT:
                continue
            keys = [getattr(key, "idx", getattr(key, "key", getattr(key, "name", ""))) for key in path[1:]]
            if isinstance(keys[0], int):
                keys = [plain[keys[0]], *keys[1:]] if keys[0] < len(plain) else [rest, *keys]
            name = "_".join("".join(c if c.isalnum() else "_" for c in str(key)) for key in keys)
            while name in names:
                name += "_"
            names.append(name)
        return names


@cache
def _of_tensors(count: int) -> TreeSpec:
    return tree_flatten(((SLOT,) * count, {}))[1]


def names_of_inputs(module: nn.Module) -> list[str]:
    """What ``forward`` calls what it is given by position; nothing where it takes any number."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = _parameters(module)
    if any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters):
        return []
    return [one.name for one in parameters if one.kind in positional]


def _parameters(module: nn.Module) -> Collection[inspect.Parameter]:
    """Of ``forward``; that of a graph which has not run yet takes anything, until its code is written."""
    if isinstance(module, fx.GraphModule):
        _LazyGraphModule.force_recompile(module)
    return inspect.signature(module.forward).parameters.values()


def _fits(leaf: Any, own: Any) -> bool:
    """Whether a leaf of a call is what it was: 1, 1.0 and True are three things. A proxy stands for a tensor."""
    return isinstance(leaf, (Tensor, fx.Proxy)) if own is SLOT else type(leaf) is type(own) and bool(leaf == own)
