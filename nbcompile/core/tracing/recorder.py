"""What a network did in one run, written down as a graph.

The network itself runs, on plain tensors, under a ``TorchFunctionMode``: Python takes the branches that it takes in
eager mode, lists are popped and attributes kept as always, because nothing stands in for a tensor. Hooks, on a copy,
mark the modules that stay one node. The mode is one thread's and the hooks are the copy's: nothing is patched.

What a graph cannot say is not guessed: code that reads a value that depends on inputs or weights makes the module that
it is in opaque, one node whatever it does inside; and if that cannot be said either, the module around it.
"""

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock, get_ident
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from nbcompile.core.example import TensorSpec
from nbcompile.core.running import require_left_alone, says_that_it_writes
from nbcompile.core.tracing.call import Call
from nbcompile.core.tracing.functions import (
    ASKS,
    LAYOUT,
    READS,
    SIZES,
    as_node,
    in_assert,
    write_counts,
)
from nbcompile.core.tracing.modules import State, can_be_taken_apart, contents, keeps, state
from nbcompile.core.tracing.places import code_place
from nbcompile.core.tracing.recording import Choice, Reason, Recording
from nbcompile.core.tracing.rig import Part, Rig
from nbcompile.core.tracing.values import InexpressibleError, Values, bare, tensors_in, tensors_within


@dataclass(eq=False)
class _Frame:
    """A module that is running.

    Attributes:
        name: qualified.
        given: its arguments, positional and keyword.
        before: what they were when it was called.
        called: they as a graph holds them; None where it cannot.
        last: the last node that was written before.
        leaf: whether it is one node.
        refusal: why it cannot be said what it does.
        kept: what it held, if it is one node because of what its code does.
    """

    name: str
    given: Any = None
    before: Any = None
    called: Any = None
    last: fx.Node | None = None
    leaf: bool = False
    refusal: Reason | None = None
    kept: State | None = None


class Recorder(TorchFunctionMode):
    """Writes every torch function outside of leaf modules, and every leaf module, into a graph.

    Attributes:
        recording: what is being written.
        values: which node each tensor is.
    """

    def __init__(self, rig: Rig, opaque: Collection[str], sizes: bool, strict: bool, keep: bool) -> None:
        super().__init__()
        self.recording = Recording()
        self.rig, self._forced, self._sizes, self._strict = rig, opaque, sizes, strict
        self.values = Values(self.recording.graph, rig.names, rig.state, self, keep)
        self.values.inside = lambda: self._frames[-1].name
        self._frames = [_Frame("")]
        self._leaf = 0
        self._running: list[str] = []
        self._active = True
        self._thread, self._lock = get_ident(), Lock()

    def finished(self, same: bool) -> Recording:
        """The recording, with its output; ``same``: whether lists and dicts that were given are what they were."""
        done, self._active = self.recording, False
        if not same:
            self._refuse("changes a list or dict that it is given")
        done.constants, done.seen = self.values.constants, self.values.seen()
        if not self._strict:
            done.graph.output(tuple(dict.fromkeys(map(self.values.node, tensors_within(done.outputs)))))
            return done
        try:
            outputs = self.values.returned(done.outputs)
        except InexpressibleError as error:
            self._refuse(f"{error} as its output")
        done.refusal = self._frames[0].refusal
        if done.refusal is None:
            done.graph.output(outputs)
        done.outputs = bare(done.outputs)
        return done

    # what torch is asked for

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        require_left_alone(func, args, kwargs, self.rig.shared)
        if self._leaf:
            return func(*bare(args), **bare(kwargs))
        given = list(tensors_in((args, kwargs)))
        if any(map(_is_transformed, given)):
            self._refuse("calls torch.func or vmap, inside of which no graph can look")
            return func(*bare(args), **bare(kwargs))
        before = write_counts(given)
        value = func(*bare(args), **bare(kwargs))
        try:
            return self._wrote(func, args, kwargs, value, given, before != write_counts(given))
        except InexpressibleError as error:
            if not self._strict and value is not None:
                self.values.put(value, self.values.new("call_function", func, tuple(map(self.values.node, given))))
            elif any(map(self.values.changes, given)):
                self._refuse(str(error))
                self.values.lose(value)
            return value

    def _wrote(self, func: Any, args: Any, kwargs: Any, value: Any, given: list[Tensor], written: bool) -> Any:
        name = getattr(func, "__name__", "")
        attribute = func.__self__.__name__ if name == "__get__" else name
        if attribute in SIZES:
            return self._size(attribute, args, value)
        if attribute == "device" and isinstance(value, torch.device) and given:
            return self.values.device(given[0], value)
        if next(tensors_in(value), None) is None and not written:
            self._told(attribute, given)
            return value
        if written and not says_that_it_writes(name, kwargs):
            raise InexpressibleError(f"calls {name}, which writes into what it is given")
        if not written and isinstance(value, Tensor) and any(value is x for x in given):
            value = _alias(value)
        expressed, keywords = self.values.expressed(args), self.values.expressed(kwargs)
        node = self.values.new(*as_node(func, name, attribute, expressed, keywords))
        if value is not None:
            self.values.put(value, node)
        return value

    def _size(self, asked: str, args: Any, value: Any) -> Any:
        """The sizes of ``args[0]``: numbers of their own, unless it is a constant."""
        if not self._sizes or not self.values.is_fed(args[0]):
            return value
        node, method = self.values.node(args[0]), "size" if asked == "shape" else asked
        if isinstance(value, int):
            return self.values.number(value, "call_method", method, (node, *args[1:]))
        numbers = [self.values.number(v, "call_method", method, (node, d)) for d, v in enumerate(value)]
        return torch.Size(numbers) if isinstance(value, torch.Size) else tuple(numbers)

    def _told(self, what: str, given: list[Tensor]) -> None:
        """Code was told what is no tensor of ``given``."""
        self.recording.asks_layout |= what in LAYOUT and any(map(self.values.is_fed, given))
        if what in ASKS or not any(map(self.values.changes, given)) or (what == "__bool__" and in_assert()):
            return
        of = "the inputs" if any(map(self.values.is_fed, given)) else "weights"
        self._refuse(f"{READS.get(what, f'reads a value by {what}')}, which depends on {of}")

    # numbers: see sizes.Writer

    def number(self, value: Any, function: Any, *operands: Any) -> Any:
        """``value``, which ``function`` computed of ``operands``."""
        if not self._active or self._leaf:
            return value
        try:
            return self.values.number(value, "call_function", function, self.values.expressed(operands))
        except InexpressibleError as error:
            self._refuse(str(error))
            return value

    def compared(self, outcome: bool, function: Callable[..., Any], *operands: Any) -> None:
        """Python chose its way by how ``operands`` compare."""
        if self._active and not self._leaf:
            with suppress(InexpressibleError):
                numbers = self.values.expressed(operands)
                self.recording.choices.append(Choice(function, numbers, outcome, self._frames[-1].name, code_place()))

    # which modules run: see rig.Watcher

    def entered(self, part: Part, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is called."""
        if not part.leaf:
            specs = [TensorSpec(tuple(x.shape), x.dtype) for x in tensors_in((args, kwargs))]
            self.recording.calls.setdefault(part.name, []).append((Call.of(args, kwargs), specs))
        if get_ident() != self._thread:
            return
        self.recording.passed_by |= part.around.difference(self._running)
        self._running.append(part.name)
        if self._leaf:
            self._leaf += 1
            return
        frame = self._frame(part.name, (args, kwargs))
        one = part.one or part.name in self._forced
        frame.leaf = one and self.rig.owns(part.module)  # with other tensors than its own, it is what it does
        frame.kept = state(part.module) if frame.leaf and not part.leaf else None
        self._frames.append(frame)
        self._leaf = int(frame.leaf)

    def left(self, part: Part, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
        """A module has run."""
        if get_ident() != self._thread:
            return self._left_elsewhere(part, (args, kwargs), value)
        self._leaf -= self._leaf > 0
        self._running.pop()
        if self._leaf:
            return value
        frame = self._frames.pop()
        return value if frame.refusal is None and not frame.leaf else self._closed(frame, part, value)

    def _left_elsewhere(self, part: Part, given: Any, value: Any) -> Any:
        """A module has run in another thread, where no mode sees what is done with its value."""
        with self._lock:
            if self._strict:
                self.values.lose(value)
            elif part.one and value is not None:
                self._observed(part.name, (tuple(map(self.values.node, tensors_within(given))), {}), value)
        return value

    def _observed(self, name: str, called: Any, value: Any) -> None:
        self.values.put(value, self.values.new("call_module", name, *called))

    def _frame(self, name: str, given: Any) -> _Frame:
        frame = _Frame(name, given, contents(given), last=next(iter(reversed(self.recording.graph.nodes)), None))
        try:
            frame.called = self.values.expressed(given)
        except InexpressibleError:
            return frame
        frame.last = next(iter(reversed(self.recording.graph.nodes)), None)  # behind its arguments
        return frame

    def _closed(self, frame: _Frame, part: Part, value: Any) -> Any:
        """``part`` is one node and has run; None is its value if it raised, too."""
        if not self._strict:
            if value is not None:
                given = tuple(map(self.values.node, tensors_within(frame.given)))
                self._observed(frame.name, frame.called or (given, {}), value)
            return value
        self.values.forget_after(frame.last)
        same = contents(frame.given) == frame.before
        unsaid = None if part.leaf or same else "changes what it is given"
        if frame.kept is not None and (kept := keeps(part.module, frame.kept)):
            unsaid = f"keeps '{kept}', by which other code may choose its way"
        if frame.called is None:
            unsaid = "is given what no graph can hold"
        if not can_be_taken_apart(value):
            unsaid = "returns what no graph can hold"
        if unsaid is not None or (value is None and frame.refusal is not None):
            self.values.lose(value)
            reason = frame.refusal or Reason(code_place(), f"calls '{frame.name}', which {unsaid}")
            self._frames[-1].refusal = self._frames[-1].refusal or reason
            return value
        if frame.refusal is not None:
            self.recording.opaque.setdefault(frame.name, frame.refusal)
        if value is None:
            return value
        if isinstance(value, Tensor) and same and any(value is x for x in tensors_in(frame.given)):
            value = _alias(value)
        self._observed(frame.name, frame.called, value)
        return value

    def _refuse(self, why: str) -> None:
        if not self._strict:
            return
        frame = self._frames[-1]
        frame.refusal = frame.refusal or Reason(code_place(), why)


def _alias(value: Tensor) -> Tensor:
    """Another value, in the same memory."""
    return torch.ops.aten.alias.default(value)  # type: ignore[no-any-return]


def _is_transformed(x: Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(x)
