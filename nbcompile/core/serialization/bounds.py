"""Bound what a module or a graph from a file would allocate, before anything is allocated.

Everything is made and run on ``meta`` tensors, where sizes cost nothing, and every tensor is counted, those that
composite operators make on the way included. Python's own operators, which know no ``meta``, are checked before they
are called.
"""

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from nbcompile.core.errors import CheckpointError

MAX_ELEMENTS = 2**28
MAX_BYTES = 2**35
MAX_TENSORS = 50_000
MAX_TENSORS_OF_A_MODULE = 2_000
MAX_ITEMS = 2**16
MAX_INTEGER = 2**63
_META = torch.device("meta")


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Puts all that is made inside on ``meta``, and counts it."""

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._most = most
        self._bytes = 0
        self._tensors = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if _takes_device(func):
            kwargs["device"] = _META
        result = func(*args, **kwargs)
        for tensor in leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        self._tensors += 1
        self._bytes += tensor.numel() * tensor.element_size()
        if tensor.numel() > MAX_ELEMENTS or self._bytes > MAX_BYTES or self._tensors > self._most:
            raise CheckpointError(
                f"the file asks for tensors that no small network has (the last of {self._tensors:,} has shape "
                f"{tuple(tensor.shape)}): at most {MAX_ELEMENTS:,} elements each, {MAX_BYTES // 2**30} GiB and "
                f"{self._most:,} tensors in all are made"
            )


@contextmanager
def bounded(most: int = MAX_TENSORS_OF_A_MODULE) -> Iterator[None]:
    """Inside, tensors are made on ``meta`` and counted.

    Args:
        most: how many may be made.

    Raises:
        CheckpointError: at the tensor that is too much.
    """
    with torch.no_grad(), _META, _Counter(most):
        yield


class _Runner(fx.Interpreter):
    """Runs a graph and checks what Python itself would allocate."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.extra_traceback = False  # it would rewrite the messages of our errors

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The values that ``n`` is called with, of bounded size."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        operands = list(leaves((args, kwargs)))
        if n.target is operator.setitem and not isinstance(args[0], Tensor):
            raise CheckpointError(f"the graph writes into a {type(args[0]).__name__} at '{n.name}', and not a tensor")
        if any(word in str(n.target) for word in ("split", "chunk", "unbind")):
            sizes = [v for v in operands if isinstance(v, int)]
            sizes += [size for v in operands if isinstance(v, Tensor) for size in v.shape]
            _require(max(sizes, default=0) <= MAX_ITEMS, n, "a tensor in too many pieces")
        if getattr(n.target, "__module__", None) in ("_operator", "math") and n.target is not operator.getitem:
            _require(not any(isinstance(v, (str, torch.device)) for v in operands), n, "text or a device as an operand")
            _require(n.target not in (operator.pow, operator.ipow) or _bits(args) <= 64, n, "an integer too large")
            _require(n.target not in (operator.mul, operator.imul) or _items(args) <= MAX_ITEMS, n, "a list too long")
        return args, kwargs

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and check the numbers it made."""
        result = super().run_node(n)
        for value in leaves(result):
            _require(not isinstance(value, int) or abs(value) < MAX_INTEGER, n, "an integer too large")
        return result


def check_bounds(gm: fx.GraphModule, inputs: tuple[Any, ...]) -> None:
    """Prove that ``gm``, itself on ``meta``, runs on its inputs and allocates nothing absurd.

    Raises:
        CheckpointError: if not.
    """
    takes = gm.graph.find_nodes(op="placeholder")
    if not sum(not node.args for node in takes) <= len(inputs) <= len(takes):
        raise CheckpointError(f"the graph takes {len(takes)} inputs, but {len(inputs)} are recorded")
    dtype = next((p.dtype for p in gm.parameters() if p.is_floating_point()), None)
    try:
        with bounded(MAX_TENSORS):
            values = tree_map(
                lambda s: torch.empty(s.shape, dtype=(s.dtype.is_floating_point and dtype) or s.dtype), list(inputs)
            )
            _Runner(gm).run(*values)
    except CheckpointError:
        raise
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        raise CheckpointError(
            f"the graph does not run on its recorded inputs: {type(error).__name__}: {first}"
        ) from None


def leaves(value: Any) -> Iterator[Any]:
    """What nested tuples, lists and dicts hold.

    Raises:
        CheckpointError: at more than :data:`MAX_ITEMS`, nested ones included: small graphs can make huge trees.
    """
    stack, seen = [value], 0
    while stack:
        value = stack.pop()
        if not isinstance(value, (tuple, list, dict)):
            yield value
            continue
        seen += len(value) + 1
        if seen > MAX_ITEMS:
            raise CheckpointError(f"the graph makes a list of over {MAX_ITEMS:,} items")
        stack += value.values() if isinstance(value, dict) else value


def _require(holds: bool, node: fx.Node, what: str) -> None:
    if not holds:
        raise CheckpointError(f"the graph would make {what} at '{node.name}'")


def _bits(args: tuple[Any, ...]) -> int:
    """How many bits a power of integers has."""
    if len(args) == 2 and all(isinstance(v, int) for v in args):
        return int(args[0]).bit_length() * abs(int(args[1]))
    return 0


def _items(args: tuple[Any, ...]) -> int:
    """How many items a repeated sequence has."""
    lengths = [len(v) for v in args if isinstance(v, (tuple, list))]
    return math.prod(lengths) * max((v for v in args if isinstance(v, int)), default=1) if lengths else 0


@cache
def _takes_device(func: Callable[..., Any]) -> bool:
    return any(argument.name == "device" for argument in func._schema.arguments)  # type: ignore[attr-defined]
