"""A whole model in a record: its graph, modules, constants and keys; and the stand-in built from it.

The stand-in is a GraphModule with the user's own names and keys, for where the user's class is not at hand. Tensors
that the user's model has and the eval graph never reads (auxiliary heads) are kept under their keys.
"""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from nbcompile.core.blocks import Expanded
from nbcompile.core.errors import CheckpointError
from nbcompile.core.example import Origin, TensorSpec, remember
from nbcompile.core.graph import module_of
from nbcompile.core.rebuild import check_bounds, module_from_json, module_to_json, resize
from nbcompile.core.serial import DTYPES, NotSerialisable, graph_from_json, graph_to_json

MAX_CONSTANT_BYTES = 2**24


def describe(model: nn.Module, gm: fx.GraphModule, origin: Origin) -> dict[str, Any]:
    """Everything that :func:`rebuild` needs beside the tensors of ``model.state_dict()``.

    Args:
        model: the user's model, perhaps with blocks in it.
        gm: its captured graph.
        origin: its inputs.

    Returns:
        A JSON-able description. Where the graph cannot be written, ``graph`` is None and ``why`` says why.
    """
    described = {
        "class": type(model).__name__,
        "inputs": [[list(s.shape), str(s.dtype).removeprefix("torch.")] for s in origin.inputs],
        "spec": origin.model,
        "preprocessing": origin.preprocessing,
    }
    try:
        modules = {
            str(node.target): {"site": module.spec.to_json()}
            if isinstance(module, Expanded)
            else module_to_json(module)
            for node in gm.graph.nodes
            if (module := module_of(gm, node)) is not None
        }
        tensors = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
        return {
            **described,
            "graph": graph_to_json(gm.graph),
            "modules": modules,
            "constants": _constants(gm, tensors),
            "keys": list(tensors),
            "parameters": [key for key, _ in model.named_parameters(remove_duplicate=False)],
            "shared": _shared(model, tensors),
        }
    except NotSerialisable as reason:
        return {**described, "graph": None, "why": f"the graph holds {reason}"}


def rebuild(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[fx.GraphModule, list[str]]:
    """The stand-in for a described model, holding ``tensors``.

    Args:
        data: what :func:`describe` gave.
        tensors: the weights under the model's own keys; extra states of blocks among them.

    Returns:
        The stand-in in eval mode, and one sentence for every layer that was rebuilt to another size.

    Raises:
        CheckpointError: if the description is malformed or forbidden, or the tensors are not the model's.
    """
    origin = origin_from_json(data)
    if not data.get("graph"):
        raise CheckpointError(
            f"the file cannot be read without the model's code, because {data.get('why', 'it holds no graph')}: "
            "give the model (--model package.module:factory, or load(path, model=...))"
        )
    tensors = _with_shared(data, tensors)
    notes: list[str] = []
    root: dict[str, Any] = {}
    for name, module_data in _mapping(data, "modules").items():
        key = f"{name}._extra_state"
        if key in tensors:
            with torch.device("meta"):
                root[name] = Expanded.from_record(tensors[key], key).eval()
        else:
            root[name] = resize(name, module_from_json(module_data), tensors, notes)
    graph = graph_from_json(data["graph"])
    constants = _constants_from_json(_mapping(data, "constants"))
    parameters = set(data.get("parameters") or [])
    for node in graph.find_nodes(op="get_attr"):
        key = str(node.target)
        value = constants.get(key, tensors.get(key))
        if value is None:
            raise CheckpointError(f"the graph reads '{key}', which the file does not hold")
        hollow = torch.empty_like(value, device="meta")
        root[key] = nn.Parameter(hollow, requires_grad=False) if key in parameters else hollow
    missing = [n.target for n in graph.find_nodes(op="call_module") if n.target not in root]
    if missing:
        raise CheckpointError(f"the graph calls '{missing[0]}', which the file does not describe")
    gm = fx.GraphModule(root, graph, "StandIn").eval()
    check_bounds(gm, origin.inputs)
    _fill(gm, tensors, constants, data)
    remember(gm, origin)
    return gm, notes


def origin_from_json(data: Mapping[str, Any]) -> Origin:
    """The inputs and preprocessing of a description."""
    try:
        inputs = tuple(TensorSpec(tuple(int(n) for n in shape), DTYPES[dtype]) for shape, dtype in data["inputs"])
        return Origin(inputs, data.get("spec"), dict(data.get("preprocessing") or {}))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the record's inputs are malformed: {type(error).__name__}: {error}") from None


def _constants(gm: fx.GraphModule, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors that the graph reads but the state_dict lacks (non-persistent buffers, constants)."""
    found: dict[str, Any] = {}
    for node in gm.graph.find_nodes(op="get_attr"):
        value: Any = gm
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if not isinstance(value, Tensor):
            raise NotSerialisable(f"'{node.target}', a {type(value).__name__}")
        if str(node.target) not in tensors:
            raw = value.detach().cpu().contiguous()
            encoded = base64.b64encode(raw.flatten().view(torch.uint8).numpy().tobytes()).decode()
            found[str(node.target)] = [list(raw.shape), str(raw.dtype).removeprefix("torch."), encoded]
    size = sum(len(c[2]) for c in found.values())
    if size > MAX_CONSTANT_BYTES:
        raise NotSerialisable(f"{size:,} bytes of constants outside the state_dict; at most {MAX_CONSTANT_BYTES:,}")
    return found


def _constants_from_json(data: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        return {
            key: torch.from_numpy(np.frombuffer(bytearray(base64.b64decode(raw)), dtype=np.uint8).copy())
            .view(DTYPES[dtype])
            .reshape([int(n) for n in shape])
            for key, (shape, dtype, raw) in data.items()
        }
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the record's constants are malformed: {type(error).__name__}: {error}") from None


def _shared(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Keys that name the same tensor as an earlier key: aliased modules, tied weights."""
    first: dict[int, str] = {}
    live = model.state_dict(keep_vars=True)
    shared = {}
    for key in tensors:
        if key.endswith("_extra_state"):
            continue
        name = first.setdefault(id(live[key]), key)
        if name != key:
            shared[key] = name
    return shared


def _with_shared(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors``, with what a writer dropped as a duplicate (safetensors) put back, and checked for completeness."""
    complete = dict(tensors)
    shared = _mapping(data, "shared")
    for key, name in shared.items():
        for absent, present in ((key, name), (name, key)):
            if absent not in complete and present in complete:
                complete[absent] = complete[present]
    keys = data.get("keys") or []
    known = {k for k in keys if not k.endswith("_extra_state")}
    found = {k for k in complete if not k.endswith("_extra_state")}
    if known != found:
        lacking, foreign = sorted(known - found), sorted(found - known)
        what = [f"lacks '{lacking[0]}' ({len(lacking)} such)"] if lacking else []
        what += [f"has an unknown '{foreign[0]}' ({len(foreign)} such)"] if foreign else []
        raise CheckpointError(f"the weights are not those of the recorded model: the file {' and '.join(what)}")
    return complete


def _fill(
    gm: fx.GraphModule, tensors: Mapping[str, Tensor], constants: Mapping[str, Tensor], data: Mapping[str, Any]
) -> None:
    """Put the real tensors in, keep what the graph does not read, and restore the order of the keys."""
    for key, value in constants.items():
        _set(gm, key, value, parameter=False, persistent=False)
    own = gm.state_dict(keep_vars=True)
    parameters = set(data.get("parameters") or [])
    for key, value in tensors.items():
        if key not in own and not key.endswith("_extra_state"):
            _set(gm, key, value, parameter=key in parameters)
    try:
        gm.load_state_dict(dict(tensors), strict=False, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights do not fit the recorded model: {str(error).splitlines()[-1].strip()}"
        ) from None
    if left := [key for key, value in gm.state_dict().items() if isinstance(value, Tensor) and value.is_meta]:
        raise CheckpointError(f"the file lacks '{left[0]}' ({len(left)} such)")
    _order(gm, data.get("keys") or [])


def _set(root: nn.Module, key: str, value: Tensor, *, parameter: bool, persistent: bool = True) -> None:
    *path, name = key.split(".")
    module = root
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if name in module._buffers or name in module._parameters:
        module._buffers.pop(name, None)
        module._parameters.pop(name, None)
    if parameter:
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    else:
        module.register_buffer(name, value, persistent=persistent)


def _order(gm: nn.Module, keys: list[str]) -> None:
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


def _mapping(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = data.get(name)
    if not isinstance(value, dict):
        raise CheckpointError(f"the record has no '{name}'")
    return value
