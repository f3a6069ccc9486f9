"""From a description back to a model that runs: checked name by name, then run on ``meta`` before it gets its weights.

What comes back is a stand-in, a GraphModule with the user's own names and keys, for where the user's class is not at
hand. Tensors that the user's model has and the eval graph never reads (auxiliary heads) are kept under their keys.
"""

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from nbcompile.core.blocks import check_absorbers
from nbcompile.core.errors import CheckpointError
from nbcompile.core.example import Origin, TensorSpec, remember
from nbcompile.core.record import as_bytes, is_record
from nbcompile.core.serialization.bounds import MAX_ELEMENTS, check_bounds
from nbcompile.core.serialization.graph_json import DTYPES, PATH, graph_from_json, match
from nbcompile.core.serialization.modules_of_a_file import Modules
from nbcompile.core.serialization.stand_in import StandIn, alias, fill, hollow, order, tie
from nbcompile.core.serialization.weight_files import EXTRA
from nbcompile.core.tracing.capture import TAKEN

_MODULES_OWN = frozenset(dir(nn.Module()))
_INPUT_DTYPES = {
    name: DTYPES[name]
    for name in (
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *("bool", "uint8", "int8", "int16", "int32", "int64"),
    )
}


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


def origin_from_json(data: Mapping[str, Any]) -> Origin:
    """The inputs and preprocessing of a description."""
    try:
        inputs = tuple(_spec(entry) for entry in data["inputs"])
        preprocessing, int8 = (dict(data.get(name) or {}) for name in ("preprocessing", "int8"))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the record's inputs are malformed: {type(error).__name__}: {error}") from None
    specs = tree_leaves(inputs)
    elements = sum(math.prod(spec.shape) for spec in specs)
    if not specs or elements > MAX_ELEMENTS or any(len(spec.shape) > 8 for spec in specs):
        raise CheckpointError(
            f"the recorded inputs have {elements:,} elements in {len(specs)} tensors; at least one tensor of at most "
            f"8 dimensions, and at most {MAX_ELEMENTS:,} elements, are read from a file"
        )
    spec = data.get("spec")
    return Origin(inputs, spec if isinstance(spec, str) else None, preprocessing, int8)


def _spec(entry: Any) -> Any:
    """The inverse of :func:`nbcompile.core.example.spec_to_json`; tuples come back as lists."""
    if isinstance(entry, dict):
        return {key: _spec(value) for key, value in entry.items()}
    if len(entry) == 2 and isinstance(entry[1], str):
        return TensorSpec(tuple(map(_size, entry[0])), _INPUT_DTYPES[entry[1]])
    return [_spec(value) for value in entry]


def with_shared(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors``, with what a writer dropped as a duplicate (safetensors) put back."""
    whole = dict(tensors)
    for key, name in _pairs(data, "shared").items():
        for absent, present in ((key, name), (name, key)):
            if absent not in whole and present in whole:
                whole[absent] = whole[present]
    return whole


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
    modules = Modules(_mapping(data, "modules"), tensors, notes)
    root: dict[str, Any] = dict(modules.made)
    graph = graph_from_json(data["graph"])
    constants = _constants_from_json(_mapping(data, "constants"))
    parameters = set(_names(data, "parameters"))
    for node in graph.find_nodes(op="get_attr"):
        key = str(node.target)
        value = constants.get(key, tensors.get(key))
        if value is None:
            raise CheckpointError(f"the graph reads '{key}', which the file does not hold")
        empty = torch.empty_like(value, device="meta")
        root[key] = nn.Parameter(empty, requires_grad=False) if key in parameters else empty
    called = [str(n.target) for n in graph.find_nodes(op="call_module")]
    if missing := [name for name in called if name not in root]:
        raise CheckpointError(f"the graph calls '{missing[0]}', which the file does not describe")
    aliases = _pairs(data, "aliases")
    _refuse_taken([*called, *tensors, *constants, *aliases])
    gm = StandIn(root, graph, "StandIn").eval()
    for name, target in aliases.items():
        alias(gm, name, target)
    fill(gm, hollow(tensors), hollow(constants), parameters)  # the file's sizes and dtypes, in no memory
    check_bounds(gm, origin.inputs, modules.kinds)
    fill(gm, tensors, constants, parameters)
    if left := [key for key, value in gm.state_dict().items() if isinstance(value, Tensor) and value.is_meta]:
        raise CheckpointError(f"the file lacks '{left[0]}' ({len(left)} such)")
    tie(gm, _pairs(data, "shared"))
    order(gm, _names(data, "keys"))
    check_absorbers(gm)
    remember(gm, origin)
    return gm, notes


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


def _require_keys(tensors: Mapping[str, Tensor], keys: list[str]) -> None:
    known = {k for k in keys if not k.endswith(EXTRA)}
    given = {k for k in tensors if not k.endswith(EXTRA)}
    if known != given:
        lacking, foreign = sorted(known - given), sorted(given - known)
        what = [f"lacks '{lacking[0]}' ({len(lacking)} such)"] if lacking else []
        what += [f"has an unknown '{foreign[0]}' ({len(foreign)} such)"] if foreign else []
        raise CheckpointError(f"the weights are not those of the recorded model: the file {' and '.join(what)}")


def _refuse_taken(names: list[str]) -> None:
    """The stand-in is a GraphModule: a child called like one of its own attributes would break it."""
    for name in names:
        if name.partition(".")[0] in TAKEN or not _MODULES_OWN.isdisjoint(name.split(".")):
            raise CheckpointError(f"'{name}' has a name that torch's modules need for themselves: rename it")


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
