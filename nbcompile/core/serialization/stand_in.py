"""The stand-in for a model whose class is not at hand: a GraphModule with that model's names and keys."""

import copy
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from nbcompile.core.errors import CheckpointError
from nbcompile.core.graph.guards import CheckedGraph
from nbcompile.core.serialization.weight_files import EXTRA


class StandIn(CheckedGraph):
    """A GraphModule whose copies keep what its graph does not read (auxiliary heads, aliases)."""

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        """The copy of a GraphModule, with all children."""
        if is_parametrized(self):  # fx's own copy reads attributes by their names, of which one is a property
            memo[id(self)] = twin = object.__new__(type(self))
            twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
            return twin
        made = super().__deepcopy__(memo)
        for name in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            made.__dict__[name] = copy.deepcopy(self.__dict__[name], memo)
        return made


def alias(gm: nn.Module, name: str, target: str) -> None:
    """Let ``name`` be a further name of the module ``target``."""
    parent, _, child = name.rpartition(".")
    with suppress(AttributeError):  # the eval graph never reads it: it is hung up with its keys
        _module_at(gm, parent).add_module(child, gm.get_submodule(target))


def hollow(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same on ``meta``; records stay as they are."""
    return {k: v if k.endswith(EXTRA) else torch.empty_like(v, device="meta") for k, v in tensors.items()}


def fill(
    gm: fx.GraphModule, tensors: Mapping[str, Tensor], constants: Mapping[str, Tensor], parameters: set[str]
) -> None:
    """Put the tensors in, and keep what the graph does not read."""
    for key, value in constants.items():
        _set(gm, key, value, parameter=False, persistent=False)
    own = gm.state_dict(keep_vars=True)
    for key, value in tensors.items():
        if key not in own and not key.endswith(EXTRA):
            _set(gm, key, value, parameter=key in parameters)
    given, failures = dict(tensors), list[str]()
    for name, module in gm.named_modules(remove_duplicate=False):  # load_state_dict looks through all keys for each
        prefix, how = f"{name}." if name else "", {"assign_to_params_buffers": True}
        module._load_from_state_dict(given, prefix, how, False, [], [], failures)
    if failures:
        raise CheckpointError(f"the weights do not fit the recorded model: {failures[-1].splitlines()[-1].strip()}")


def tie(gm: nn.Module, shared: Mapping[str, str]) -> None:
    """Let keys that shared one parameter share it again, if they still hold the same values."""
    for key, name in shared.items():
        (path, _, leaf), (first_path, _, first_leaf) = key.rpartition("."), name.rpartition(".")
        mine, theirs = gm.get_submodule(path)._parameters, gm.get_submodule(first_path)._parameters
        one, other = mine.get(leaf), theirs.get(first_leaf)
        if one is not None and other is not None and one is not other and torch.equal(one, other):
            mine[leaf] = other


def order(gm: nn.Module, keys: list[str]) -> None:
    """Children in the order in which their keys stand, so that a state_dict reads like the original's."""
    place: dict[str, int] = {}
    for position, key in enumerate(keys):
        parts = key.split(".")
        for depth in range(1, len(parts) + 1):
            place.setdefault(".".join(parts[:depth]), position)
    for name, module in gm.named_modules():
        prefix = f"{name}." if name else ""
        for children in (module._modules, module._parameters, module._buffers):
            ordered = sorted(children.items(), key=lambda item: place.get(prefix + item[0], len(keys)))
            children.clear()
            children.update(ordered)


def _set(root: nn.Module, key: str, value: Tensor, *, parameter: bool, persistent: bool = True) -> None:
    path, _, name = key.rpartition(".")
    module = _module_at(root, path)
    if name in module._buffers or name in module._parameters:
        module._buffers.pop(name, None)
        module._parameters.pop(name, None)
    if parameter:
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    else:
        module.register_buffer(name, value, persistent=persistent)


def _module_at(root: nn.Module, path: str) -> nn.Module:
    """The module at ``path``; what is missing on the way is made."""
    for part in path.split(".") if path else ():
        if part not in root._modules:
            root.add_module(part, nn.Module().eval())
        root = root.get_submodule(part)
    return root
