"""A graph as JSON, and back.

Writing refuses what reading would refuse, so that it is known at expand, not after days of training, whether a
``trained.pt`` can be fused without the user's code. Reading trusts nothing: names are looked up in the allow-list,
identifiers are matched against a pattern (fx writes them into Python source), and the graph is run on ``meta`` tensors
first, where sizes cost nothing, to bound what it would allocate (:mod:`nbcompile.core.serialization.bounds`).
"""

import keyword
import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from nbcompile.core.errors import CheckpointError
from nbcompile.core.serialization import allow_list

MAX_NODES = 6_000
MAX_ARGUMENTS = 10_000
MAX_DEPTH = 16
IDENTIFIER = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*\Z")
PATH = re.compile(r"(?!__)[A-Za-z0-9_\-]+(\.(?!__)[A-Za-z0-9_\-]+){0,31}\Z")
# names that the Python source of a graph gives a meaning of their own
_RESERVED = {"self", "torch", "math", "operator", "timm", "torchvision"}
DTYPES = {str(v).removeprefix("torch."): v for v in vars(torch).values() if isinstance(v, torch.dtype)}
_FORMATS = {
    str(f): f for f in (torch.contiguous_format, torch.channels_last, torch.channels_last_3d, torch.preserve_format)
}


class NotSerialisable(ValueError):  # noqa: N818 - a verdict; the caller says it to the user
    """The graph cannot be written; the message says why."""


def graph_to_json(graph: fx.Graph) -> list[dict[str, Any]]:
    """The nodes of ``graph``, JSON-able.

    Raises:
        NotSerialisable: naming the node that could not be read back.
    """
    return [_node_to_json(node) for node in graph.nodes]


def graph_from_json(nodes: Any) -> fx.Graph:
    """The graph that :func:`graph_to_json` wrote.

    Raises:
        CheckpointError: if it is malformed or names what is not allowed.
    """
    if not isinstance(nodes, list) or not 0 < len(nodes) <= MAX_NODES:
        raise CheckpointError(f"the graph must be a list of 1 to {MAX_NODES:,} nodes")
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    for data in nodes:
        try:
            name, op = data["name"], data["op"]
            match(IDENTIFIER, name, "node")
            args = tuple(decode_argument(data["args"], made))
            kwargs = {match(IDENTIFIER, k, "argument"): decode_argument(v, made) for k, v in data["kwargs"].items()}
            target = _target(op, data["target"])
            _check_arguments(op, target, args, kwargs)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"the graph has a malformed node: {type(error).__name__}: {error}") from None
        if name in made:
            raise CheckpointError(f"the graph has two nodes called '{name}'")
        made[name] = graph.create_node(op, target, args, kwargs, name=name)
    if [n.op for n in graph.nodes].count("output") != 1 or next(iter(reversed(graph.nodes))).op != "output":
        raise CheckpointError("the graph must end in its one output")
    return graph


def _check_arguments(op: str, target: str | Callable[..., Any], args: Any, kwargs: Any) -> None:
    if op == "call_method" and not (args and isinstance(args[0], fx.Node)):
        raise CheckpointError(f"the graph calls the method '{target}' of what is no value of its own")
    if target is getattr and not (len(args) == 2 and args[1] in allow_list.ATTRIBUTES):
        raise CheckpointError(f"the graph reads the attribute {str(args[1:])[:80]}, which no graph in a file may read")
    if target is round and (len(args) != 1 or kwargs):
        raise CheckpointError("the graph rounds to decimal places, which no graph in a file may do")
    if kwargs.get("out") is not None:
        raise CheckpointError("the graph writes into a tensor that it is given (out=), which no graph in a file may do")


def _node_to_json(node: fx.Node) -> dict[str, Any]:
    try:
        if not IDENTIFIER.match(node.name):
            raise NotSerialisable(f"the name '{node.name}'")
        if callable(node.target):
            target = allow_list.function_name(node.target)
            if target is None:
                raise NotSerialisable(f"a call of {getattr(node.target, '__qualname__', node.target)}")
        else:
            target = node.target
        _check_arguments(node.op, _target(node.op, target), node.args, node.kwargs)
        return {
            "op": node.op,
            "name": node.name,
            "target": target,
            "args": encode_argument(node.args),
            "kwargs": {key: encode_argument(value) for key, value in node.kwargs.items()},
        }
    except (NotSerialisable, CheckpointError) as error:
        raise NotSerialisable(f"node '{node.name}': {error}") from None


def _target(op: str, target: Any) -> str | Callable[..., Any]:
    if op == "call_function":
        return allow_list.function(target)
    if op == "call_method":
        return allow_list.method(target)
    if op in ("placeholder", "output"):
        return match(IDENTIFIER, target, op)
    if op in ("call_module", "get_attr"):
        return match(PATH, target, op)
    raise CheckpointError(f"the graph has a node of unknown kind {op!r}")


def match(pattern: re.Pattern[str], value: Any, what: str) -> str:
    """``value``, if it is a plain name; fx writes names into Python source."""
    if (
        not isinstance(value, str)
        or len(value) > 1000
        or not pattern.match(value)
        or not _RESERVED.isdisjoint(value.split("."))
        or any(map(keyword.iskeyword, value.split(".")))
    ):
        raise CheckpointError(f"the graph has a {what} called {str(value)[:80]!r}, which is no plain name")
    return value


_TAGS: tuple[tuple[type, str, Callable[[Any], Any]], ...] = (
    (torch.dtype, "dtype", lambda v: str(v).removeprefix("torch.")),
    (torch.device, "device", lambda v: v.type),
    (torch.memory_format, "memory_format", str),
    (fx.Node, "node", lambda v: v.name),
)


def encode_argument(value: Any) -> Any:
    """JSON for an argument; everything that JSON lacks is ``{tag: payload}``."""
    if value is None or isinstance(value, (bool, str)) or (isinstance(value, int) and type(value) is int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        raise NotSerialisable(f"a {type(value).__name__}, whose class is the network's own")
    if isinstance(value, (tuple, list)):
        return {"tuple" if isinstance(value, tuple) else "list": [encode_argument(v) for v in value]}
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"dict": {k: encode_argument(v) for k, v in value.items()}}
    if isinstance(value, slice):
        return {"slice": [encode_argument(v) for v in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": 0}
    for kind, tag, write in _TAGS:
        if isinstance(value, kind):
            return {tag: write(value)}
    raise NotSerialisable(f"an argument of type {type(value).__name__}")


def decode_argument(value: Any, made: dict[str, fx.Node], depth: int = 0) -> Any:
    """The inverse of :func:`encode_argument`; ``made`` has the nodes that arguments may name."""
    if value is None or isinstance(value, (bool, str, float)):
        return value
    if isinstance(value, int):
        if abs(value) >= 2**63:
            raise CheckpointError(f"the graph holds a number of {value.bit_length()} bits, which is out of bounds")
        return value
    if not isinstance(value, dict) or len(value) != 1:
        raise CheckpointError(f"the graph holds an argument that cannot be read: {str(value)[:80]}")
    ((tag, payload),) = value.items()
    if isinstance(payload, (list, dict)) and (depth > MAX_DEPTH or len(payload) > MAX_ARGUMENTS):
        raise CheckpointError(
            f"the graph holds an argument nested over {MAX_DEPTH} deep or over {MAX_ARGUMENTS:,} long"
        )
    match tag:
        case "tuple":
            return tuple(decode_argument(v, made, depth + 1) for v in payload)
        case "list":
            return [decode_argument(v, made, depth + 1) for v in payload]
        case "dict":
            return {str(k): decode_argument(v, made, depth + 1) for k, v in payload.items()}
        case "slice":
            return slice(*(decode_argument(v, made, depth + 1) for v in payload))
        case "ellipsis":
            return Ellipsis
        case "float":
            return float(payload)
        case "device":
            return torch.device("cpu")  # where a file was trained is no matter here
        case "node" if payload in made:
            return made[payload]
        case "dtype" if payload in DTYPES:
            return DTYPES[payload]
        case "memory_format" if payload in _FORMATS:
            return _FORMATS[payload]
    raise CheckpointError(f"the graph holds an argument that cannot be read: {str(value)[:80]}")
