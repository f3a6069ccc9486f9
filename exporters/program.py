"""torch.export's graph of a module, whose nodes know the lines of the user's code that they come from."""

import inspect
import logging
import os
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.fx.experimental import symbolic_shapes
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from nbcompile.core.errors import ExportError
from nbcompile.core.example import Inputs
from nbcompile.core.files import with_slashes
from nbcompile.core.tracing.values import PLACE
from nbcompile.core.words import first_line

WITHOUT_VALUES = "make its code independent of the values of its inputs"
"""What to do where code reads values that only a run knows."""

_KNOWN_TYPES = "return a tensor, a tuple, a list or a dict, or tell torch (torch.export.register_dataclass)"
_UNKNOWN = re.compile(r"Found (<class .*>) in output, which is not a known type")


class UncapturedError(ExportError):
    """torch.export stopped.

    Attributes:
        place: file and line of the user's code where it did, with ``at`` before them; empty if not known.
        reason: why; kind and first line of what it raised first, where no better is known.
        remedy: what to do about it.
    """

    def __init__(self, place: str, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}{place}")
        self.place, self.reason, self.remedy = place, reason, remedy


def program_of(graph: nn.Module, inputs: Inputs, **options: Any) -> ExportedProgram:
    """What torch.export makes of ``graph``.

    Args:
        graph: on the CPU, in eval mode.
        inputs: example.
        options: of ``torch.export.export``.

    Raises:
        UncapturedError: if it makes none; the cause is what it raised.
    """
    with _telling_places(graph):
        try:
            return torch.export.export(graph, inputs, strict=False, **options)
        except Exception as error:  # torch.export raises many kinds; all mean that there is no graph
            where = _place_of(error) or ("dynamic_shapes" in options and _assumed(graph, inputs, options)) or ""
            raise UncapturedError(where, *_why(error)) from error


def place(node: fx.Node) -> str:
    """File and line of the user's code that ``node`` comes from, if they are known: `` at net.py:12``."""
    for line in reversed(str(node.meta.get("stack_trace") or "").splitlines()):
        head, _, rest = line.strip().partition('", line ')
        if head.startswith('File "') and _is_users(file := head.removeprefix('File "')):
            return f" at {file}:{rest.partition(',')[0]}"
    return _at(node.meta.get("custom", {}))


def _why(error: BaseException) -> tuple[str, str]:
    """Why torch.export stopped, and what to do about it."""
    if isinstance(error, GuardOnDataDependentSymNode):
        return "Python reads the values of a tensor there", WITHOUT_VALUES
    said = first_line(error)
    if unknown := _UNKNOWN.search(said):
        return f"its output is of {unknown[1]}, which it does not know", _KNOWN_TYPES
    return said, WITHOUT_VALUES


@contextmanager
def _telling_places(model: nn.Module) -> Iterator[None]:
    """Inside, the nodes of graphs in ``model`` hand their places on to what torch.export makes of them.

    But those that are called like a tensor that is read: torch.export takes their places for that one's, and stops
    where it knows another.
    """
    graphs = [module.graph for module in model.modules() if isinstance(module, fx.GraphModule)]
    stored = {*dict(model.named_parameters()), *dict(model.named_buffers())}
    stored |= {node.target for graph in graphs for node in graph.find_nodes(op="get_attr")}
    taken = {re.sub(r"\W", "_", name).lower() for name in stored}
    nodes = [node for graph in graphs for node in graph.nodes if PLACE in node.meta and node.name not in taken]
    before = [dict(node.meta) for node in nodes]
    for node in nodes:
        node.meta["custom"] = {**node.meta.get("custom", {}), PLACE: node.meta[PLACE]}
    try:
        yield
    finally:
        for node, meta in zip(nodes, before, strict=True):
            node.meta = meta


def _at(meta: Mapping[str, Any]) -> str:
    where = str(meta.get(PLACE, "")).partition(" in ")[0]
    return f" at {where}" if _is_users(where) else ""


def _place_of(error: BaseException) -> str:
    """Of what raised the error that started ``error``, with ``at`` before it; empty if not known."""
    while error.__cause__ is not None:
        error = error.__cause__
    where = users_place(reversed(list(traceback.walk_tb(error.__traceback__))))
    return f" at {where}" if where else ""


def _assumed(graph: nn.Module, inputs: Inputs, options: Mapping[str, Any]) -> str:
    """Where code assumes something of a symbolic size, with ``at`` before it, told by torch's log; empty if nowhere."""
    places: dict[str, None] = {}

    class Guards(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said = record.getMessage()
            if "[guard added]" in said and "[guard suppressed]" not in said:
                frames = traceback.walk_stack(None)
                places[users_place((f, n) for f, n in frames if f.f_code.co_filename != logging.__file__)] = None

    log, before = logging.getLogger(symbolic_shapes.__name__), logging.root.manager.disable
    level, handlers, propagate = log.level, log.handlers, log.propagate
    log.handlers, log.propagate = [Guards()], False
    log.setLevel(logging.INFO)
    logging.disable(logging.NOTSET)
    try:
        torch.export.export(graph, inputs, strict=False, **options)
    except Exception:  # as it did before
        pass
    finally:
        logging.disable(before)
        log.setLevel(level)
        log.handlers, log.propagate = handlers, propagate
    known = [place for place in places if place]
    return f" at {' or '.join(known[:3])}" if known else ""


def users_place(frames: Iterable[tuple[FrameType, int]]) -> str:
    """File and line of the first of ``frames`` that is the user's code, or runs a node of it; empty if none is."""
    for frame, line in frames:
        if _is_users(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{line}"
        node = frame.f_locals.get("n")
        if frame.f_code.co_name == "run_node" and isinstance(node, fx.Node) and _at(node.meta):  # fx.Interpreter's
            return _at(node.meta).removeprefix(" at ")
    return ""


def _is_users(file: str) -> bool:
    return bool(file) and not file.startswith(("<", *_FOLDERS)) and "/torch/" not in with_slashes(file)


_CORE = Path(inspect.getfile(ExportError)).parent
_FOLDERS = tuple(f"{folder}{os.sep}" for folder in (_CORE, _CORE.with_name("deploy"), Path(__file__).parent))
"""Of code that runs networks, and is part of none."""
