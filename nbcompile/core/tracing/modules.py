"""What the modules of a network hold and are given, so that a change can be seen."""

from typing import Any

from torch import Tensor, nn

State = dict[tuple[str, str], Any]
"""What each attribute of each module holds, by the names of both."""

_ATOMS = (type(None), bool, int, float, str)
_OWN = frozenset(vars(nn.Module()))
"""What every module has."""


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
    if isinstance(value, _ATOMS):
        return value
    if isinstance(value, (list, tuple, set)):
        return tuple(_look(part, depth - 1) for part in value) if depth else len(value)
    if isinstance(value, dict):
        return tuple((key, _look(part, depth - 1)) for key, part in value.items()) if depth else len(value)
    if hasattr(value, "__dict__") and depth and not callable(value) and not isinstance(value, nn.Module):
        return _look(vars(value), depth - 1)
    return value if isinstance(value, type) else id(value)


def contents(value: Any) -> Any:
    """What is in ``value``, so that a change can be seen: tensors with their versions, containers with their items."""
    if isinstance(value, Tensor):
        return id(value), 0 if value.is_inference() else value._version
    if isinstance(value, (list, tuple)):
        return tuple(map(contents, value))
    if isinstance(value, dict):
        return tuple((key, contents(part)) for key, part in value.items())
    return id(value)


def containers(value: Any) -> Any:
    """As :func:`contents`, without what is in tensors."""
    if isinstance(value, (list, tuple)):
        return tuple(map(containers, value))
    return tuple((key, containers(part)) for key, part in value.items()) if isinstance(value, dict) else id(value)


def can_be_taken_apart(value: Any) -> bool:
    """Whether ``value`` is nothing but tensors, and containers that a graph can take apart."""
    if isinstance(value, dict):
        return type(value) is dict and all(map(can_be_taken_apart, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(can_be_taken_apart, value))
    return value is None or isinstance(value, Tensor)  # a number may depend on values: for other inputs it is another


def keeps(module: nn.Module, before: State) -> str:
    """What ``module`` holds now and did not before, if it is no tensor: of those it is known where they were made."""
    after = state(module)
    for key in changed(before, after):
        value = after[key][0] if isinstance(after[key], tuple) and after[key] else None
        if not isinstance(value, Tensor):
            return ".".join(filter(None, key))
    return ""
