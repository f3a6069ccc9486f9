"""Copies of a network to run: what a run may change is copied, the weights are shared."""

import copy
from collections import OrderedDict
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from nbcompile.core.example import origin_of, remember
from nbcompile.core.wrappers import copied, rebound

State = dict[tuple[str, str], Any]
"""What each attribute of each module holds, by the names of both."""

_ATOMS = (type(None), bool, int, float, str, bytes, complex, type, torch.dtype, torch.device)
_OWN = frozenset(vars(nn.Module()))
"""What every module has."""


def shadow(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose parameters are in the memory of the model's own, for who does not write into them.

    It takes a fraction of the time and memory of a deep copy, and is as good for a run: modules, buffers and whatever
    they keep in attributes are copies.

    Raises:
        PreconditionError: if the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    modules = list(model.modules())
    for module in modules:
        if _is_plain(type(module)):
            memo[id(module)] = object.__new__(type(module))
    for module in modules:
        if not _is_plain(type(module)) and id(module) not in memo:
            return copied(model)
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter:
            memo[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    for module in modules:
        made = memo[id(module)].__dict__
        for key, value in vars(module).items():
            made[key] = value if type(value) in _ATOMS else _copied(value, memo)
    shadowed: nn.Module = memo[id(model)]
    remember(shadowed, origin_of(model))
    return shadowed


def state(model: nn.Module) -> State:
    """What the modules of ``model`` hold, so that a change can be seen."""
    found: State = {}
    for name, module in model.named_modules():
        for holder in (vars(module), module._buffers, module._parameters):
            for key, value in holder.items():
                if key not in _OWN:
                    found[name, key] = value if type(value) in _ATOMS else _look(value)
    return found


def changed(before: State, after: State) -> list[tuple[str, str]]:
    """The names of the modules and attributes that hold something else than ``before``."""
    return [key for key in after if not _unchanged(before.get(key), after[key])]


def _unchanged(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_unchanged, a, b))
    return type(a) is type(b) and bool(a == b or a != a)


def _look(value: Any, depth: int = 3) -> Any:
    """Tensors by identity and version; what else has parts by its parts."""
    if isinstance(value, Tensor):
        return value, 0 if value.is_inference() else value._version  # held, lest its identity be given away
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if isinstance(value, (list, tuple, set)):
        return tuple(_look(part, depth - 1) for part in value) if depth else len(value)
    if isinstance(value, dict):
        return tuple((key, _look(part, depth - 1)) for key, part in value.items()) if depth else len(value)
    if hasattr(value, "__dict__") and depth and not callable(value) and not isinstance(value, nn.Module):
        return _look(vars(value), depth - 1)
    return value if isinstance(value, type) else id(value)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in (dict, OrderedDict) and id(value) not in memo:
        made = memo[id(value)] = kind()
        if value:
            made.update((_copied(key, memo), _copied(part, memo)) for key, part in value.items())
        return made
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, _ATOMS):
        return value
    if kind is Tensor and value.grad_fn is None:
        made = memo[id(value)] = value.detach().clone().requires_grad_(value.requires_grad)
        return made
    if isinstance(value, FunctionType):
        return rebound(value, memo)
    if kind is list:
        parts: list[Any] = []
        memo[id(value)] = parts
        parts.extend(_copied(part, memo) for part in value)
        return parts
    if kind is set:
        return {_copied(part, memo) for part in value}
    if kind is tuple:
        return tuple(_copied(part, memo) for part in value)
    if isinstance(value, torch.Generator):
        return value.clone_state()
    try:
        return copy.deepcopy(value, memo)
    except Exception:
        return value  # a lock, an open file: there is only one of it


def _is_plain(cls: type) -> bool:
    """Whether its objects are what is in their ``__dict__``."""
    own = ("__deepcopy__", "__copy__", "__reduce__", "__reduce_ex__", "__getstate__", "__new__")
    return all(getattr(cls, name, None) is getattr(nn.Module, name, None) for name in own)
