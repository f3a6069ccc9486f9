"""Bound what a module or a graph from a file would allocate and how long it would run, before it does.

Everything is made and run on ``meta`` tensors, where sizes cost nothing, and every tensor and every operator is
counted, those that composite operators make on the way included. Python's own operators, which know no ``meta``, are
checked before they are called.
"""

import math
import operator
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from nbcompile.core.errors import CheckpointError
from nbcompile.core.serialization.work import work_of

MAX_ELEMENTS = 2**28
MAX_BYTES = 2**35
MAX_TENSORS = 50_000
MAX_TENSORS_OF_A_MODULE = 2_000
MAX_ITEMS = 2**16
MAX_ITEMS_IN_ALL = 2**21
MAX_INTEGER = 2**63
MAX_WORK = 2**40
"""Multiplications of one run: what a ResNet-50 takes for 256 images of 224 pixels."""
MAX_SECONDS = 20.0
"""Of the processor, for the whole proof of one graph, which takes 1 where a network has 5,000 operators."""
_META = torch.device("meta")


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Puts all that is made inside on ``meta``, and counts it."""

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._most = most
        self._bytes = 0
        self._tensors = 0
        self._work = 0
        self._paused = False
        self._until = time.thread_time() + MAX_SECONDS

    @property
    def spent(self) -> tuple[int, int, int]:
        """Bytes, tensors and multiplications so far."""
        return self._bytes, self._tensors, self._work

    def spend(self, more: tuple[int, int, int]) -> bool:
        """Count ``more``; False, and nothing is counted, if that is too much."""
        size, tensors, work = (a + b for a, b in zip(self.spent, more, strict=True))
        if size > MAX_BYTES or tensors > self._most or work > MAX_WORK:
            return False
        self._bytes, self._tensors, self._work = size, tensors, work
        return True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is made inside is not counted."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if _takes_device(func):
            kwargs["device"] = _META
        result = func(*args, **kwargs)
        if self._paused:
            return result
        for tensor in leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        self._work += work_of(func, args, result)
        if self._work > MAX_WORK:
            raise CheckpointError(
                f"the file asks for {self._work:,} multiplications in one run, the last in {func.overloadpacket}; at "
                f"most {MAX_WORK:,} are run, and no small network needs them"
            )
        if time.thread_time() > self._until:
            raise CheckpointError(f"it takes longer than {MAX_SECONDS:.0f} s to prove what the file describes")
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
def bounded(most: int = MAX_TENSORS_OF_A_MODULE) -> Iterator[_Counter]:
    """Inside, tensors are made on ``meta`` and counted.

    Args:
        most: how many may be made.

    Raises:
        CheckpointError: at the tensor that is too much.
    """
    with torch.no_grad(), _META, _Counter(most) as counter:
        yield counter


class _Runner(fx.Interpreter):
    """Runs a graph and checks what Python itself would allocate.

    Of modules that were made alike, on values that look alike, the first is run: on ``meta`` there are no numbers.
    """

    def __init__(self, gm: fx.GraphModule, counter: _Counter, kinds: Mapping[nn.Module, Hashable]) -> None:
        super().__init__(gm)
        self.extra_traceback = False  # it would rewrite the messages of our errors
        self._items = 0
        self._counter, self._kinds = counter, kinds
        self._known: dict[Hashable, tuple[Hashable, tuple[int, int, int]]] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the module gives, or what looks like it."""
        module = self.fetch_attr(target)
        kind = self._kinds.get(module)
        if kind is None or kwargs or len(args) != 1 or type(args[0]) is not Tensor:
            return super().call_module(target, args, kwargs)
        held = ((name, _look(x)) for name, x in (*module.named_parameters(), *module.named_buffers()))
        key = kind, _look(args[0]), tuple(held)
        if key in self._known and self._counter.spend(self._known[key][1]):
            return self._like(args[0], self._known[key][0])
        before = self._counter.spent
        value = super().call_module(target, args, kwargs)
        if type(value) is Tensor:
            spent = tuple(b - a for a, b in zip(before, self._counter.spent, strict=True))
            self._known[key] = None if value is args[0] else _look(value), cast(tuple[int, int, int], spent)
        return value

    def _like(self, x: Tensor, look: Any) -> Tensor:
        """A tensor of that look; None is that of ``x`` itself, which was written into."""
        if look is None:
            return x
        shape, stride, dtype = look
        with self._counter.paused():
            return torch.empty_strided(shape, stride, dtype=dtype, device=_META)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The values that ``n`` is called with, of bounded size."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        operands = self._counted((args, kwargs))
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
        for value in self._counted(result):
            _require(not isinstance(value, int) or abs(value) < MAX_INTEGER, n, "an integer too large")
        return result

    def _counted(self, values: Any) -> list[Any]:
        """The leaves of ``values``: of all nodes together, too, there may not be too many."""
        found = list(leaves(values))
        self._items += len(found)
        if self._items > MAX_ITEMS_IN_ALL:
            raise CheckpointError(f"the graph hands on over {MAX_ITEMS_IN_ALL:,} items in lists")
        return found


def check_bounds(
    gm: fx.GraphModule, inputs: tuple[Any, ...], kinds: Mapping[nn.Module, Hashable] = MappingProxyType({})
) -> None:
    """Prove that ``gm``, itself on ``meta``, runs on its inputs and allocates nothing absurd.

    Args:
        gm: in eval mode.
        inputs: specs, or structures of them.
        kinds: what is equal of modules that do alike with what looks alike.

    Raises:
        CheckpointError: if not, or if it would work for too long.
    """
    takes = gm.graph.find_nodes(op="placeholder")
    if not sum(not node.args for node in takes) <= len(inputs) <= len(takes):
        raise CheckpointError(f"the graph takes {len(takes)} inputs, but {len(inputs)} are recorded")
    try:
        with bounded(MAX_TENSORS) as counter:
            _Runner(gm, counter, kinds).run(*hollow_inputs(gm, inputs))
    except CheckpointError:
        raise
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        raise CheckpointError(
            f"the graph does not run on its recorded inputs: {type(error).__name__}: {first}"
        ) from None


def hollow_inputs(model: nn.Module, wanted: tuple[Any, ...]) -> tuple[Any, ...]:
    """Tensors on ``meta`` for specs, or structures of them, in the dtype of the model's first floating parameter."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)

    def make(spec: Any) -> Tensor:
        return torch.empty(spec.shape, dtype=(spec.dtype.is_floating_point and dtype) or spec.dtype, device=_META)

    return tuple(tree_map(make, list(wanted)))


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


def _look(x: Tensor) -> Hashable:
    return tuple(x.shape), x.stride(), x.dtype


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
