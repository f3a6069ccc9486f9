"""What a graph comes to when its functions are put in the place of their calls: known before it is done."""

from collections.abc import Iterable, Iterator
from os import PathLike

from onnx import FunctionProto, ModelProto, NodeProto

from nbcompile.core.errors import CheckpointError

MAX_INLINED_NODES = 100_000
MAX_NESTING = 100
_SPARE_BYTES = 2**26

Name = tuple[str, str, str]
Amount = tuple[int, int]
"""Nodes and bytes."""


def require_few_nodes(model: ModelProto, size: int, path: str | PathLike[str]) -> None:
    """Refuse a graph that grows beyond all measure when it is inlined: twenty functions that call each other twice do.

    Args:
        model: as it is in the file.
        size: of the file, in bytes.
        path: named in the error.

    Raises:
        CheckpointError: if it would have more than ``MAX_INLINED_NODES`` nodes, or take much more memory than the file,
            or if functions call each other more than ``MAX_NESTING`` deep (themselves, say).
    """
    functions = {_key(function): function for function in model.functions}
    known: dict[Name, Amount] = {}

    def amount(nodes: Iterable[NodeProto], depth: int) -> Amount:
        if depth > MAX_NESTING:
            raise CheckpointError(f"{path}: its functions call each other more than {MAX_NESTING} deep")
        count = held = 0
        for node in nodes:
            called = functions.get((node.domain, node.op_type, node.overload))
            more, bytes_ = (1, node.ByteSize()) if called is None else of(called, depth + 1)
            count, held = count + more, held + bytes_
        return count, held

    def of(function: FunctionProto, depth: int) -> Amount:
        key = _key(function)
        if key not in known:
            known[key] = amount(_all(function.node), depth)
        return known[key]

    if not functions:
        return
    count, held = amount(_all(model.graph.node), 0)
    if count > MAX_INLINED_NODES or held > 4 * size + _SPARE_BYTES:
        raise CheckpointError(
            f"{path}: with its functions inlined the graph has {count:,} nodes of {held:,} bytes; at most "
            f"{MAX_INLINED_NODES:,} nodes are read, and bytes in proportion to the file's {size:,}"
        )


def _all(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes, and those inside of branches and loops."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _all(graph.node)


def _key(function: FunctionProto) -> Name:
    return function.domain, function.name, function.overload
