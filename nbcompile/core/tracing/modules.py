"""The modules of a network that runs: which hold which, and what they are given."""

from typing import Any

from torch import Tensor, nn

from nbcompile.core.running import tensors_of
from nbcompile.core.tracing.shadow import State, changed, state


def holders(root: nn.Module) -> dict[nn.Module, frozenset[str]]:
    """The modules of ``root`` that hold each module that holds tensors, under whatever name."""
    named = dict(root.named_modules(remove_duplicate=False))
    first = {module: name for name, module in reversed(named.items())}
    around: dict[nn.Module, set[str]] = {module: set() for module in named.values()}
    for name, module in named.items():
        parent, _, last = name.rpartition(".")
        if last and next(tensors_of(module), None) is not None:
            around[module] |= {first[named[parent]]} | around[named[parent]]
    return {module: frozenset(names - {""}) for module, names in around.items()}


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
