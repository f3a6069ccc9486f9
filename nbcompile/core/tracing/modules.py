"""The modules of a network: which stay one node of every graph, and what they hold and are given."""

from typing import Any

import torch
from torch import Tensor, nn

from nbcompile.core.blocks import Expanded
from nbcompile.core.layers import why_no_layer

State = dict[tuple[str, str], Any]
"""What each attribute of each module holds, by the names of both."""

_ATOMS = (type(None), bool, int, float, str)
_OWN = frozenset(vars(nn.Module()))
"""What every module has."""
_HOLDERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_leaf(module: nn.Module) -> bool:
    """Whether ``module`` stays one node of every graph: torch's own, our blocks, layers."""
    if isinstance(module, (Expanded, torch.jit.ScriptModule, _Scripted)) or why_no_layer(module) is None:
        return True
    home = type(module).__module__
    return home.startswith(("torch.nn", "torch.ao.nn")) and not isinstance(module, _HOLDERS)


def calls_itself(module: nn.Module) -> bool:
    """Whether its class says for itself what a call is: hooks do not see that, so it is no node of any graph."""
    return type(module).__call__ is not nn.Module.__call__ and not isinstance(module, torch.jit.ScriptModule)


def hollow_scripts(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of ``root`` by name; modules of TorchScript, which take no hooks, get something around them first."""
    scripts = [(name, m) for name, m in root.named_modules() if name and isinstance(m, torch.jit.ScriptModule)]
    for name, script in scripts:
        if not isinstance(root.get_submodule(name.rpartition(".")[0]), (torch.jit.ScriptModule, _Scripted)):
            root.set_submodule(name, _Scripted(script))
    return list(root.named_modules())


class _Scripted(nn.Module):
    """Around a module of TorchScript."""

    def __init__(self, script: nn.Module) -> None:
        super().__init__()
        self.__dict__["_script"] = script

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the script computes."""
        return self._script(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_script"], name)


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
