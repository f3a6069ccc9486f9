"""A whole model in a record: its graph, modules, constants and keys; and the stand-in built from it.

The stand-in is a GraphModule with the user's own names and keys, for where the user's class is not at hand. Tensors
that the user's model has and the eval graph never reads (auxiliary heads) are kept under their keys.
"""

import base64
import copy
import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from nbcompile.core.blocks import Expanded, check_absorbers
from nbcompile.core.bounds import MAX_ELEMENTS, bounded, check_bounds
from nbcompile.core.capture import TAKEN
from nbcompile.core.errors import CheckpointError
from nbcompile.core.example import Origin, TensorSpec, remember
from nbcompile.core.graph import module_of
from nbcompile.core.reading import EXTRA
from nbcompile.core.record import as_bytes, is_record
from nbcompile.core.rebuild import module_from_json, module_to_json, resize
from nbcompile.core.serial import DTYPES, PATH, NotSerialisable, graph_from_json, graph_to_json, match

log = logging.getLogger("nbcompile")

MAX_CONSTANT_BYTES = 2**24
_MODULES_OWN = frozenset(dir(nn.Module()))
_INPUT_DTYPES = {
    name: DTYPES[name]
    for name in ("float16", "bfloat16", "float32", "float64", "bool", "uint8", "int8", "int16", "int32", "int64")
}


class StandIn(fx.GraphModule):
    """A GraphModule whose copies keep what its graph does not read (auxiliary heads, aliases)."""

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        """The copy of a GraphModule, with all children."""
        made = super().__deepcopy__(memo)
        for name in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            made.__dict__[name] = copy.deepcopy(self.__dict__[name], memo)
        return made


def describe(model: nn.Module, gm: fx.GraphModule, origin: Origin) -> dict[str, Any]:
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
    try:
        return _rebuild(data, tensors)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a hostile record provokes inside torch is the record's fault
        first = (str(error).strip() or "no message").splitlines()[0][:300]
        raise CheckpointError(f"the model cannot be rebuilt: {type(error).__name__}: {first}") from error


def _head(model: nn.Module, origin: Origin) -> dict[str, Any]:
    return {
        "class": type(model).__name__,
        "inputs": [[list(s.shape), str(s.dtype).removeprefix("torch.")] for s in origin.inputs],
        "spec": origin.model,
        "preprocessing": origin.preprocessing,
        "shared": _shared(model),
    }


def _rebuild(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[fx.GraphModule, list[str]]:
    origin = origin_from_json(data)
    if not data.get("graph"):
        raise CheckpointError(
            f"the file cannot be read without the model's code ({data.get('why', 'it holds no graph')}): "
            "give the model (--model package.module:factory, or load(path, model=...))"
        )
    tensors = {k: as_bytes(v) if is_record(v) else v for k, v in with_shared(data, tensors).items()}
    _require_keys(tensors, _names(data, "keys"))
    notes: list[str] = []
    root: dict[str, Any] = {}
    for name, module_data in _mapping(data, "modules").items():
        key = f"{name}.{EXTRA}"
        if key in tensors:
            with bounded():
                root[name] = Expanded.from_record(tensors[key], key).eval()
        else:
            root[name] = resize(name, module_from_json(module_data), tensors, notes)
    graph = graph_from_json(data["graph"])
    constants = _constants_from_json(_mapping(data, "constants"))
    parameters = set(_names(data, "parameters"))
    for node in graph.find_nodes(op="get_attr"):
        key = str(node.target)
        value = constants.get(key, tensors.get(key))
        if value is None:
            raise CheckpointError(f"the graph reads '{key}', which the file does not hold")
        hollow = torch.empty_like(value, device="meta")
        root[key] = nn.Parameter(hollow, requires_grad=False) if key in parameters else hollow
    called = [str(n.target) for n in graph.find_nodes(op="call_module")]
    if missing := [name for name in called if name not in root]:
        raise CheckpointError(f"the graph calls '{missing[0]}', which the file does not describe")
    aliases = _pairs(data, "aliases")
    _refuse_taken([*called, *tensors, *constants, *aliases])
    gm = StandIn(root, graph, "StandIn").eval()
    for name, target in aliases.items():
        _alias(gm, name, target)
    _fill(gm, _hollow(tensors), _hollow(constants), parameters)  # the file's sizes and dtypes, in no memory
    check_bounds(gm, origin.inputs)
    _fill(gm, tensors, constants, parameters)
    if left := [key for key, value in gm.state_dict().items() if isinstance(value, Tensor) and value.is_meta]:
        raise CheckpointError(f"the file lacks '{left[0]}' ({len(left)} such)")
    _tie(gm, _pairs(data, "shared"))
    _order(gm, _names(data, "keys"))
    check_absorbers(gm)
    remember(gm, origin)
    return gm, notes


def origin_from_json(data: Mapping[str, Any]) -> Origin:
    """The inputs and preprocessing of a description."""
    try:
        inputs = tuple(TensorSpec(tuple(map(_size, shape)), _INPUT_DTYPES[dtype]) for shape, dtype in data["inputs"])
        preprocessing = dict(data.get("preprocessing") or {})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the record's inputs are malformed: {type(error).__name__}: {error}") from None
    elements = sum(math.prod(spec.shape) for spec in inputs)
    if not inputs or elements > MAX_ELEMENTS or any(len(spec.shape) > 8 for spec in inputs):
        raise CheckpointError(
            f"the recorded inputs have {elements:,} elements in {len(inputs)} tensors; at least one tensor of at most "
            f"8 dimensions, and at most {MAX_ELEMENTS:,} elements, are read from a file"
        )
    spec = data.get("spec")
    return Origin(inputs, spec if isinstance(spec, str) else None, preprocessing)


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


def _shared(model: nn.Module) -> dict[str, str]:
    """Keys that name the same tensor as an earlier key: aliased modules, tied weights."""
    first: dict[int, str] = {}
    live = model.state_dict(keep_vars=True)
    kept = {key: value for key, value in live.items() if isinstance(value, Tensor) and not key.endswith(EXTRA)}
    names = {key: first.setdefault(id(value), key) for key, value in kept.items()}
    return {key: name for key, name in names.items() if key != name}


def _aliases(model: nn.Module) -> dict[str, str]:
    """Further names of modules, with the first name of each; not the names inside them."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        known = first.setdefault(id(module), name)
        if known != name and name.rpartition(".")[0] not in found:
            found[name] = known
        elif known != name:
            found.setdefault(name, "")  # inside an alias
    return {name: known for name, known in found.items() if known}


def with_shared(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors``, with what a writer dropped as a duplicate (safetensors) put back."""
    whole = dict(tensors)
    for key, name in _pairs(data, "shared").items():
        for absent, present in ((key, name), (name, key)):
            if absent not in whole and present in whole:
                whole[absent] = whole[present]
    return whole


def _require_keys(tensors: Mapping[str, Tensor], keys: list[str]) -> None:
    known = {k for k in keys if not k.endswith(EXTRA)}
    found = {k for k in tensors if not k.endswith(EXTRA)}
    if known != found:
        lacking, foreign = sorted(known - found), sorted(found - known)
        what = [f"lacks '{lacking[0]}' ({len(lacking)} such)"] if lacking else []
        what += [f"has an unknown '{foreign[0]}' ({len(foreign)} such)"] if foreign else []
        raise CheckpointError(f"the weights are not those of the recorded model: the file {' and '.join(what)}")


def _refuse_taken(names: list[str]) -> None:
    """The stand-in is a GraphModule: a child called like one of its own attributes would break it."""
    for name in names:
        if name.partition(".")[0] in TAKEN or not _MODULES_OWN.isdisjoint(name.split(".")):
            raise CheckpointError(f"'{name}' has a name that torch's modules need for themselves: rename it")


def _alias(gm: nn.Module, name: str, target: str) -> None:
    parent, _, child = name.rpartition(".")
    with suppress(AttributeError):  # the eval graph never reads it: it is hung up with its keys
        _module_at(gm, parent).add_module(child, gm.get_submodule(target))


def _hollow(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same on ``meta``; records stay as they are."""
    return {k: v if k.endswith(EXTRA) else torch.empty_like(v, device="meta") for k, v in tensors.items()}


def _fill(
    gm: fx.GraphModule, tensors: Mapping[str, Tensor], constants: Mapping[str, Tensor], parameters: set[str]
) -> None:
    """Put the tensors in, and keep what the graph does not read."""
    for key, value in constants.items():
        _set(gm, key, value, parameter=False, persistent=False)
    own = gm.state_dict(keep_vars=True)
    for key, value in tensors.items():
        if key not in own and not key.endswith(EXTRA):
            _set(gm, key, value, parameter=key in parameters)
    try:
        gm.load_state_dict(dict(tensors), strict=False, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights do not fit the recorded model: {str(error).splitlines()[-1].strip()}"
        ) from None


def _tie(gm: nn.Module, shared: Mapping[str, str]) -> None:
    """Let keys that shared one parameter share it again, if they still hold the same values."""
    for key, name in shared.items():
        (path, _, leaf), (first_path, _, first_leaf) = key.rpartition("."), name.rpartition(".")
        mine, theirs = gm.get_submodule(path)._parameters, gm.get_submodule(first_path)._parameters
        one, other = mine.get(leaf), theirs.get(first_leaf)
        if one is not None and other is not None and one is not other and torch.equal(one, other):
            mine[leaf] = other


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
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    return root


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


def _names(data: Mapping[str, Any], field: str) -> list[str]:
    value = data.get(field)
    if not isinstance(value, list):
        raise CheckpointError(f"the record has no '{field}'")
    return [match(PATH, name, "key") for name in value]


def _pairs(data: Mapping[str, Any], field: str) -> dict[str, str]:
    return {match(PATH, k, "key"): match(PATH, v, "key") for k, v in _mapping(data, field).items()}


def _size(value: Any) -> int:
    if type(value) is not int or not 0 < value <= MAX_ELEMENTS:
        raise ValueError(f"{str(value)[:40]} is no size")
    return value
