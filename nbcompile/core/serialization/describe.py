"""A whole model in a record: its graph, modules, constants and keys.

:mod:`nbcompile.core.serialization.rebuild` reads it.
"""

import base64
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from nbcompile.core.blocks import Expanded
from nbcompile.core.errors import CheckpointError
from nbcompile.core.example import Origin, spec_to_json
from nbcompile.core.graph.nodes import module_of
from nbcompile.core.serialization.graph_json import NotSerialisable, graph_to_json
from nbcompile.core.serialization.module_json import module_to_json
from nbcompile.core.serialization.rebuild import rebuild
from nbcompile.core.serialization.weight_files import EXTRA

log = logging.getLogger("nbcompile")

MAX_CONSTANT_BYTES = 2**24


def describe_model(model: nn.Module, gm: fx.GraphModule, origin: Origin) -> dict[str, Any]:
    """Everything that :func:`rebuild` needs beside the tensors of ``model.state_dict()``.

    Args:
        model: the user's model, perhaps with blocks in it.
        gm: its captured graph.
        origin: its inputs.

    Returns:
        A JSON-able description, proven by rebuilding it. Where that cannot be done, ``graph`` is None, ``why`` says
        why, and so does a warning: better now than after days of training.
    """
    try:
        modules = {
            str(node.target): {"site": module.spec.to_json()}
            if isinstance(module, Expanded)
            else module_to_json(module)
            for node in gm.graph.nodes
            if (module := module_of(gm, node)) is not None
        }
        tensors = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
        whole = {
            **_head(model, origin),
            "graph": graph_to_json(gm.graph),
            "modules": modules,
            "constants": _constants(gm, tensors),
            "keys": list(tensors),
            "parameters": [key for key, _ in model.named_parameters(remove_duplicate=False)],
            "aliases": _aliases(model),
        }
        rebuild(whole, tensors)
        return whole
    except (NotSerialisable, CheckpointError) as reason:
        return unreadable(model, origin, str(reason))


def unreadable(model: nn.Module, origin: Origin, why: str) -> dict[str, Any]:
    """The description of a model that cannot be rebuilt without its code; it says so."""
    name = type(model).__name__
    log.warning("files of this %s will need its code (--model, or load(path, model=...)): %s", name, why)
    return {**_head(model, origin), "graph": None, "why": why}


def _head(model: nn.Module, origin: Origin) -> dict[str, Any]:
    return {
        "class": type(model).__name__,
        "inputs": [spec_to_json(spec) for spec in origin.inputs],
        "spec": origin.model,
        "preprocessing": origin.preprocessing,
        "int8": origin.int8,
        "shared": shared_keys(model),
    }


def _constants(gm: fx.GraphModule, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors that the graph reads but the state_dict lacks (non-persistent buffers, constants)."""
    constants: dict[str, Any] = {}
    for node in gm.graph.find_nodes(op="get_attr"):
        value: Any = gm
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if not isinstance(value, Tensor):
            raise NotSerialisable(f"'{node.target}', a {type(value).__name__}")
        if str(node.target) not in tensors:
            raw = value.detach().cpu().contiguous()
            encoded = base64.b64encode(raw.flatten().view(torch.uint8).numpy().tobytes()).decode()
            constants[str(node.target)] = [list(raw.shape), str(raw.dtype).removeprefix("torch."), encoded]
    size = sum(len(c[2]) for c in constants.values())
    if size > MAX_CONSTANT_BYTES:
        raise NotSerialisable(f"{size:,} bytes of constants outside the state_dict; at most {MAX_CONSTANT_BYTES:,}")
    return constants


def shared_keys(model: nn.Module) -> dict[str, str]:
    """Keys that name the same tensor as an earlier key: aliased modules, tied weights."""
    first: dict[int, str] = {}
    live = model.state_dict(keep_vars=True)
    kept = {key: value for key, value in live.items() if isinstance(value, Tensor) and not key.endswith(EXTRA)}
    names = {key: first.setdefault(id(value), key) for key, value in kept.items()}
    return {key: name for key, name in names.items() if key != name}


def _aliases(model: nn.Module) -> dict[str, str]:
    """Further names of modules, with the first name of each; not the names inside them."""
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        known = first.setdefault(id(module), name)
        if known != name and name.rpartition(".")[0] not in aliases:
            aliases[name] = known
        elif known != name:
            aliases.setdefault(name, "")  # inside an alias
    return {name: known for name, known in aliases.items() if known}
