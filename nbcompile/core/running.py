"""Running a model so that the run leaves no trace on it, and looking at what happens.

There are two ways to look. :func:`watched` tells of calls of modules, whatever code makes them: every model has those.
:func:`interpret` tells of every value of a graph. Neither can stand for the other: hooks do not see functions, and only
a graph has nodes.
"""

import gc
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from operator import attrgetter
from threading import Lock
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from nbcompile.core.errors import PreconditionError
from nbcompile.core.example import Inputs, change_tensors
from nbcompile.core.random_state import forked_rng

_SELDOM = 20_000
"""New objects after which the garbage among them is looked for; Python's own number is some hundreds."""

_WRITERS = frozenset(["__set__", "__setitem__"]) | {
    f"__i{name}__"
    for name in (
        *("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "matmul"),
        *("and", "or", "xor", "lshift", "rshift"),
    )
}
"""Python's own; the first sets ``.data``, say."""
_OPERATORS = "torch._ops."
_HANDED = frozenset(["numpy", "__array__", "data_ptr", "untyped_storage", "_typed_storage", "storage", "__dlpack__"])
"""Who has the memory can write into it, and torch does not see it."""

Enter = Callable[[str, nn.Module, tuple[Any, ...], Mapping[str, Any]], None]
"""Is told the name, the module and its arguments."""
Leave = Callable[[str, nn.Module, tuple[Any, ...], Mapping[str, Any], Any], None]
"""Is told these and the output; None where the module raised."""


class WritesWeightsError(BaseException):
    """A network writes into its weights: it needs weights of its own. No code of a network is to catch this."""


class LeavesWeights(TorchFunctionMode):
    """Inside, nothing is written into the parameters of ``model``, as far as torch's functions write.

    Args:
        model: whose memory is not to change, and whoever shares it.

    Raises:
        WritesWeightsError: inside, before it is written.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._memory = storages(model)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        require_left_alone(func, args, kwargs or {}, self._memory)
        return func(*args, **(kwargs or {}))


def storages(model: nn.Module) -> frozenset[int]:
    """The identities of the memory that parameters of ``model`` are in."""
    return frozenset(x.untyped_storage()._cdata for x in model.parameters() if x.layout is torch.strided)


def require_left_alone(func: Any, args: Any, kwargs: Any, memory: Collection[int]) -> None:
    """Check that a call of ``func`` may be made.

    Args:
        func: of torch.
        args: of the call.
        kwargs: likewise.
        memory: as of :func:`storages`.

    Raises:
        WritesWeightsError: if it may write into ``memory``.
    """
    if memory and _may_write(func, kwargs):
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and x.layout is torch.strided and x.untyped_storage()._cdata in memory:
                raise WritesWeightsError


def _may_write(func: Any, kwargs: Any) -> bool:
    """It says so, by its name or schema, or it renormalises weights that it reads, or hands out memory."""
    name, home = getattr(func, "__name__", ""), str(getattr(func, "__module__", ""))
    unsaid = name in _HANDED or kwargs.get("max_norm") is not None
    return unsaid or says_that_it_writes(name, kwargs) or (home.startswith(_OPERATORS) and _changes(home, name))


@cache
def _changes(home: str, name: str) -> bool:
    """Whether an operator, or one of its overloads, changes an argument."""
    found = attrgetter(f"{home.removeprefix(_OPERATORS)}.{name}")(torch.ops)
    overloads = [found] if isinstance(found, torch._ops.OpOverload) else [getattr(found, n) for n in found.overloads()]
    return any(one._schema.is_mutable for one in overloads)


def says_that_it_writes(name: str, kwargs: Any) -> bool:
    """Whether a function of that name, called so, writes into what it is given."""
    named = name in _WRITERS or (name.endswith("_") and not name.endswith("__"))
    return named or kwargs.get("inplace") is True or kwargs.get("out") is not None


class _Collecting:
    """The threshold is of the whole process: the first thread inside changes it, the last one restores it."""

    def __init__(self) -> None:
        self._lock, self._inside = Lock(), 0
        self._threshold: tuple[int, ...] = gc.get_threshold()

    def enter(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._threshold = gc.get_threshold()
                often, *others = self._threshold
                gc.set_threshold(often and max(often, _SELDOM), *others)  # 0: not at all

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                gc.set_threshold(*self._threshold)


_collecting = _Collecting()


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Inside, Python looks for garbage seldom: graphs are many small objects, and few of them are garbage."""
    _collecting.enter()
    try:
        yield
    finally:
        _collecting.leave()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside; each back in its own mode after.

    Flags are set one by one: a model's own ``eval`` may do more, such as merging weights.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, training in modes:
        if training:
            module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            if module.training != training:  # to set it takes a module long
                module.training = training


@contextmanager
def untouched(model: nn.Module, inputs: Inputs) -> Iterator[tuple[dict[str, Tensor], Inputs]]:
    """Buffers and inputs to run ``model`` with: copies; inside is eval mode without gradients, random state is kept."""
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    with quiet(model, inputs) as copies:
        yield buffers, copies


@contextmanager
def quiet(model: nn.Module, inputs: Inputs) -> Iterator[Inputs]:
    """As :func:`untouched`, for a copy of a model, whose buffers a run may change."""
    with _apart(model, inputs) as copies, eval_mode(model):
        yield copies


def output_of(model: nn.Module, inputs: Inputs) -> Any:
    """What ``model``, in the mode that it is in, gives for ``inputs``: it runs on copies of them, without gradients.

    Args:
        model: a copy of the user's, which the run may change; random state is kept.
        inputs: are left as they are.
    """
    with _apart(model, inputs) as copies:
        return model(*copies)


@contextmanager
def _apart(model: nn.Module, inputs: Inputs) -> Iterator[Inputs]:
    """Copies of ``inputs``; inside are no gradients, and random numbers that are drawn are not used up."""
    there = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    held = (*tree_leaves(inputs), *model.parameters()) if there else ()
    devices = sorted({x.device.index for x in held if x.device.type == "cuda"})
    with forked_rng(devices), torch.no_grad():
        yield change_tensors(Tensor.clone, inputs)


@contextmanager
def rehearsal(model: nn.Module, inputs: Inputs) -> Iterator[tuple[dict[str, Tensor], Inputs]]:
    """As :func:`untouched`, for inputs that a user gave as an example.

    Raises:
        PreconditionError: for whatever is raised inside.
    """
    with untouched(model, inputs) as copies:
        try:
            yield copies
        except PreconditionError:  # a sentence of ours
            raise
        except Exception as error:
            raise PreconditionError(
                f"{type(model).__name__} does not run on the example input: {type(error).__name__}: {error}"
            ) from error


@contextmanager
def watched(
    modules: Iterable[tuple[str, nn.Module]], *, enter: Enter | None = None, leave: Leave | None = None
) -> Iterator[None]:
    """Inside, who calls one of ``modules`` is told of.

    Args:
        modules: by the names under which they are told of; of TorchScript nothing is told.
        enter: before every call.
        leave: after it, also if it raises.
    """
    with ExitStack() as stack:
        for name, module in modules:
            if isinstance(module, torch.jit.ScriptModule):
                continue  # it takes no hooks

            def entering(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                if enter is not None:
                    enter(name, module, args, kwargs)

            def leaving(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                if leave is not None:
                    leave(name, module, args, kwargs, output)

            stack.callback(module.register_forward_pre_hook(entering, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leaving, with_kwargs=True, always_call=True).remove)
        yield


def interpret(
    gm: fx.GraphModule,
    inputs: Inputs,
    *,
    before: Callable[[fx.Node, list[Any]], None] | None = None,
    after: Callable[[fx.Node, Any], None] | None = None,
) -> None:
    """Run a graph node by node; it is left as it was.

    Args:
        gm: the graph.
        inputs: of the model that it is of; its placeholders are their tensors, in order.
        before: is told a node and the values that it reads, which it may be about to change.
        after: is told a node and its value, which a later node may change.

    Raises:
        PreconditionError: if it does not run on ``inputs``.
    """

    class Looking(fx.Interpreter):
        def __init__(self) -> None:
            super().__init__(gm)
            self.extra_traceback = False  # it would be added to what errors say

        def run_node(self, n: fx.Node) -> Any:
            if before is not None:
                before(n, [self.env[source] for source in n.all_input_nodes])
            value = super().run_node(n)
            if after is not None:
                after(n, value)
            return value

    class Interpreted(nn.Module):  # functional_call puts buffers in the place of a module's own
        def __init__(self) -> None:
            super().__init__()
            self.gm = gm

        def forward(self, *inputs: Any) -> Any:
            return Looking().run(*(x for x in tree_leaves(inputs) if isinstance(x, Tensor)))

    read = {str(node.target) for node in gm.graph.find_nodes(op="get_attr")}  # and maybe written into
    with rehearsal(gm, inputs) as (buffers, copies):
        own = buffers | {key: x.detach().clone() for key, x in gm.named_parameters() if key in read}
        functional_call(Interpreted(), {f"gm.{key}": value for key, value in own.items()}, copies)


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Every parameter and buffer of ``module``."""
    yield from module.parameters()
    yield from module.buffers()
