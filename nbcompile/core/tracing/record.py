"""What a network did in one run, written down as a graph.

The network itself runs, on plain tensors, under a ``TorchFunctionMode``: Python takes the branches that it takes in eager
mode, lists are popped and attributes kept as always, because nothing stands in for a tensor. Hooks, on a copy, mark the
modules that stay one node. The mode is one thread's and the hooks are the copy's: nothing is patched.

What a graph cannot say is not guessed: code that reads a value that depends on inputs or weights makes the module that it
is in opaque, one node whatever it does inside; and if that cannot be said either, the module around it.
"""

import dis
import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from operator import attrgetter
from types import CodeType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from nbcompile.core.example import TensorSpec
from nbcompile.core.layers import why_changed
from nbcompile.core.running import eval_mode, tensors_of
from nbcompile.core.tracing.call import Call
from nbcompile.core.tracing.leaves import calls_itself, hollow_scripts, is_leaf
from nbcompile.core.tracing.sizes import is_traced
from nbcompile.core.tracing.shadow import shadow, state
from nbcompile.core.tracing.values import InexpressibleError, Values, bare, caller, place, tensors_in, tensors_within
from nbcompile.core.wrappers import copied

_SWAPPED = {f"__r{name}__": getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")}
_SWAPPED |= {"__rdiv__": operator.truediv, "__rmatmul__": operator.matmul}
_SYMBOLS = frozenset("add sub mul matmul div neg pow lt le gt ge eq ne".split())
_METHODS = {getattr(Tensor, name): name for name in sorted(dir(Tensor)) if callable(getattr(Tensor, name))}
"""Where two names are of one function, the one without underscores."""
_SIZES = frozenset("size numel nelement shape".split())
_ASKS = frozenset(
    "dim ndimension ndim dtype layout is_contiguous is_floating_point is_complex is_signed element_size itemsize "
    "get_device is_pinned is_cuda is_cpu is_meta is_mps is_xla is_xpu is_mkldnn is_sparse is_sparse_csr is_quantized "
    "is_nested is_vulkan is_ipu is_leaf requires_grad retains_grad grad_fn has_names result_type can_cast __hash__ "
    "is_same_size stride storage_offset __len__ grad names is_conj is_neg is_inference _is_view _version is_tensor is_storage type is_set_to _assert".split()
)
"""What can be known of a tensor without its values, and ``torch._assert``, which chooses no way."""


@dataclass(frozen=True)
class Refusal:
    """Why a graph cannot say what code did.

    Attributes:
        place: file, line and function of that code.
        why: what the code does.
    """

    place: str
    why: str

    def __str__(self) -> str:
        return f"{self.place}: it {self.why}"


@dataclass(frozen=True)
class Choice:
    """That Python chose its way by comparing numbers.

    Attributes:
        function: the comparison.
        numbers: its operands, nodes among them.
        outcome: what it gave.
        inside: the module in which it was made.
        place: the code that made it.
    """

    function: Callable[..., Any]
    numbers: tuple[Any, ...]
    outcome: bool
    inside: str
    place: str

    @property
    def nodes(self) -> list[fx.Node]:
        """The operands that are nodes."""
        return [x for x in self.numbers if isinstance(x, fx.Node)]


@dataclass(eq=False)
class Recording:
    """One run.

    Attributes:
        graph: numbers in it that depend on sizes are nodes marked as such, if it was recorded so.
        constants: tensors from elsewhere, by the names under which the graph reads them.
        opaque: why a module is one node that is no leaf, by its name.
        calls: how each module was called: the call, and its tensors.
        passed_by: names of modules whose inner modules, of those that hold tensors, were called while they did not run.
        refusal: why the network as a whole cannot be said; the graph is then without an output.
        choices: that Python made by comparing sizes.
        outputs: what the network returned.
        root: the copy that ran.
        before: what its modules held before, as :func:`state` says.
        tensors: what it ran on.
        seen: the values of nodes, as they are after the run.
    """

    graph: fx.Graph = field(default_factory=fx.Graph)
    constants: dict[str, Tensor] = field(default_factory=dict)
    opaque: dict[str, Refusal] = field(default_factory=dict)
    calls: dict[str, list[tuple[Call | None, list[TensorSpec]]]] = field(default_factory=dict)
    passed_by: set[str] = field(default_factory=set)
    refusal: Refusal | None = None
    choices: list[Choice] = field(default_factory=list)
    outputs: Any = None
    root: nn.Module = field(default_factory=nn.Module)
    before: dict[tuple[str, str], Any] = field(default_factory=dict)
    tensors: Sequence[Tensor] = ()
    seen: dict[fx.Node, Tensor] = field(default_factory=dict)


class WritesWeightsError(BaseException):
    """A network writes into its weights: it needs weights of its own. No code of a network is to catch this."""


def record(
    model: nn.Module,
    call: Call,
    tensors: Sequence[Tensor],
    *,
    opaque: Collection[str] = (),
    sizes: bool = True,
    strict: bool = True,
) -> Recording:
    """Run a copy of ``model`` once, in eval mode and without gradients, and write down what it does.

    Args:
        model: left as it is.
        call: how it is called.
        tensors: of the call; they are left as they are.
        opaque: names of modules that are to be one node, whatever they do.
        sizes: whether numbers that are sizes of what depends on the inputs, or are computed of such, become nodes.
        strict: False writes down what was seen of this run, nothing opaque, be it the network or not.

    Raises:
        Exception: whatever the model raises.
    """
    shared = frozenset(x.untyped_storage()._cdata for x in model.parameters() if x.layout is torch.strided)
    try:
        return _recorded(Recorder(shadow(model), opaque, sizes, strict, shared), call, tensors)
    except WritesWeightsError:
        return _recorded(Recorder(copied(model), opaque, sizes, strict), call, tensors)


def _recorded(recorder: "Recorder", call: Call, tensors: Sequence[Tensor]) -> Recording:
    model, inputs = recorder.root, [x.detach().clone() for x in tensors]
    devices = sorted({x.device.index for x in (*inputs, *model.parameters()) if x.device.type == "cuda"})
    with torch.no_grad(), torch.random.fork_rng(devices), eval_mode(model):
        for name, x in zip(call.names(model), inputs, strict=True):
            recorder.values.put(x, recorder.values.new("placeholder", name))
        args, kwargs = call.filled(inputs)
        recorder.recording.root, recorder.recording.before, recorder.recording.tensors = model, state(model), tensors
        before = _parts((args, kwargs))
        with recorder.looking(), recorder:
            recorder.recording.outputs = model(*args, **kwargs)
    return recorder.finished(_parts((args, kwargs)) == before)


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
    """

    name: str
    given: Any = None
    before: Any = None
    called: Any = None
    last: fx.Node | None = None
    leaf: bool = False
    refusal: Refusal | None = None


class Recorder(TorchFunctionMode):
    """Writes every torch function outside of leaf modules, and every leaf module, into a graph.

    Attributes:
        recording: what is being written.
        values: which node each tensor is.
    """

    def __init__(self, root: nn.Module, opaque: Collection[str], sizes: bool, strict: bool, shared: Collection[int] = ()) -> None:
        super().__init__()
        self.recording = Recording()
        self.values = Values(self.recording.graph, root, self)
        self.values.inside = lambda: self._frames[-1].name
        self.root, self._forced, self._sizes, self._strict, self._shared = root, set(opaque), sizes, strict, shared
        self._frames = [_Frame("")]
        self._leaf = 0
        self._running: list[str] = []
        self._active = True

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
        if self._shared and _may_write(getattr(func, "__name__", ""), kwargs):
            self._keep_weights(args, kwargs)
        if self._leaf:
            return func(*bare(args), **bare(kwargs))
        given = list(tensors_in((args, kwargs)))
        if any(map(_is_transformed, given)):
            self._refuse("calls torch.func or vmap, inside of which no graph can look")
            return func(*bare(args), **bare(kwargs))
        versions = _versions(given)
        value = func(*bare(args), **bare(kwargs))
        try:
            return self._wrote(func, args, kwargs, value, given, versions != _versions(given))
        except InexpressibleError as error:
            if not self._strict and value is not None:
                self.values.put(value, self.values.new("call_function", func, tuple(map(self.values.node, given))))
            elif any(map(self.values.changes, given)):
                self._refuse(str(error))
                self.values.lose(value)
            return value

    def _keep_weights(self, args: Any, kwargs: Any) -> None:
        for x in tensors_in((args, kwargs)):
            if x.layout is torch.strided and x.untyped_storage()._cdata in self._shared:
                raise WritesWeightsError

    def _wrote(self, func: Any, args: Any, kwargs: Any, value: Any, given: list[Tensor], written: bool) -> Any:
        name = getattr(func, "__name__", "")
        attribute = func.__self__.__name__ if name == "__get__" else name
        if attribute in _SIZES:
            return self._size(attribute, args, value)
        if attribute == "device" and isinstance(value, torch.device) and given:
            return self.values.device(given[0], value)
        if next(tensors_in(value), None) is None and not written:
            self._told(attribute, given)
            return value
        if written and not _says_that_it_writes(name, kwargs):
            raise InexpressibleError(f"calls {name}, which writes into what it is given")
        if not written and isinstance(value, Tensor) and any(value is x for x in given):
            value = _alias(value)
        expressed, keywords = self.values.expressed(args), self.values.expressed(kwargs)
        node = self.values.new(*_written(func, name, attribute, expressed, keywords))
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
        if what in _ASKS or not any(map(self.values.changes, given)) or (what == "__bool__" and _in_assert()):
            return
        of = "the inputs" if any(map(self.values.is_fed, given)) else "weights"
        self._refuse(f"{_READS.get(what, f'reads a value by {what}')}, which depends on {of}")

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
                self.recording.choices.append(Choice(function, numbers, outcome, self._frames[-1].name, place()))

    # which modules run

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Inside, the modules of the root say when they run."""
        with ExitStack() as stack:
            modules = hollow_scripts(self.root)
            self._around = _around(self.root)
            for name, module in modules:
                if module is not self.root and not calls_itself(module):
                    own = is_leaf(module)
                    one = own or why_changed(module) is not None or name in self._forced
                    for hook in self._hooks(module, name, own, one):
                        stack.callback(hook.remove)
            yield

    def _hooks(self, module: nn.Module, name: str, own: bool, one: bool) -> Iterator[Any]:
        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            specs = [TensorSpec(tuple(x.shape), x.dtype) for x in tensors_in((args, kwargs))]
            self.recording.calls.setdefault(name, []).append((Call.of(args, kwargs), specs))
            self.recording.passed_by |= self._around[module] - set(self._running)
            self._running.append(name)
            if self._leaf:
                self._leaf += 1
                return
            frame = self._frame(name, (args, kwargs))
            frame.leaf = one and self.values.owns(module)  # with other tensors than its own, it is what it does
            self._frames.append(frame)
            self._leaf = int(frame.leaf)

        def leave(_: nn.Module, __: Any, ___: Any, value: Any) -> Any:
            self._leaf -= self._leaf > 0
            self._running.pop()
            if self._leaf:
                return value
            frame = self._frames.pop()
            return value if frame.refusal is None and not frame.leaf else self._left(frame, own, value)

        # other hooks of the module are what it does, too
        yield module.register_forward_pre_hook(_unseen(enter), with_kwargs=True, prepend=True)
        yield module.register_forward_hook(_unseen(leave), with_kwargs=True, always_call=True)

    def _frame(self, name: str, given: Any) -> _Frame:
        frame = _Frame(name, given, _contents(given), last=next(iter(reversed(self.recording.graph.nodes)), None))
        try:
            frame.called = self.values.expressed(given)
        except InexpressibleError:
            return frame
        frame.last = next(iter(reversed(self.recording.graph.nodes)), None)  # behind its arguments
        return frame

    def _left(self, frame: _Frame, own: bool, value: Any) -> Any:
        """A module that is one node has run; None is its value if it raised, too."""
        if not self._strict:
            if value is not None:
                given = tuple(map(self.values.node, tensors_within(frame.given)))
                self.values.put(value, self.values.new("call_module", frame.name, *(frame.called or (given, {}))))
            return value
        self.values.forget_after(frame.last)
        same = _contents(frame.given) == frame.before
        unsaid = None if own or same else "changes what it is given"
        if frame.called is None:
            unsaid = "is given what no graph can hold"
        if not _holds_tensors_only(value):
            unsaid = "returns what no graph can hold"
        if unsaid is not None or (value is None and frame.refusal is not None):
            self.values.lose(value)
            reason = frame.refusal or Refusal(place(), f"calls '{frame.name}', which {unsaid}")
            self._frames[-1].refusal = self._frames[-1].refusal or reason
            return value
        if frame.refusal is not None:
            self.recording.opaque.setdefault(frame.name, frame.refusal)
        if value is None:
            return value
        if isinstance(value, Tensor) and same and any(value is x for x in tensors_in(frame.given)):
            value = _alias(value)
        self.values.put(value, self.values.new("call_module", frame.name, *frame.called))
        return value

    def _refuse(self, why: str) -> None:
        if not self._strict:
            return
        frame = self._frames[-1]
        frame.refusal = frame.refusal or Refusal(place(), why)


_READS = {"__bool__": "branches on a value", "item": "reads a value (item)", "tolist": "reads values (tolist)"}


def _written(func: Any, name: str, attribute: str, args: Any, kwargs: Any) -> tuple[str, Any, Any, Any]:
    """The node of a function, as symbolic tracing would have written it."""
    if name == "__get__":
        return "call_function", getattr, (args[0], attribute), {}
    name = _METHODS.get(func, "")
    if not name:
        home = str(getattr(func, "__module__", ""))
        if home.startswith("torch._ops."):  # torch tells of what is behind the operator, which has no name
            func = attrgetter(f"{home.removeprefix('torch._ops.')}.{func.__name__}")(torch.ops)
        return "call_function", func, args, kwargs
    if name in _SWAPPED:
        return "call_function", _SWAPPED[name], args[::-1], {}
    symbol = getattr(operator, "truediv" if name == "div" else name, None)
    if symbol is not None and not kwargs and (name.startswith("__") or name in _SYMBOLS):
        return "call_function", symbol, args, {}
    return "call_method", name, args, kwargs


def _says_that_it_writes(name: str, kwargs: Any) -> bool:
    return name.endswith("_") or kwargs.get("inplace") is True or kwargs.get("out") is not None


def _around(root: nn.Module) -> dict[nn.Module, set[str]]:
    """The modules of ``root`` that hold each module that holds tensors, under whatever name."""
    named = dict(root.named_modules(remove_duplicate=False))
    first = {module: name for name, module in reversed(named.items())}
    around: dict[nn.Module, set[str]] = {module: set() for module in named.values()}
    for name, module in named.items():
        parent, _, last = name.rpartition(".")
        if last and next(tensors_of(module), None) is not None:
            around[module] |= {first[named[parent]]} | around[named[parent]]
    return {module: names - {""} for module, names in around.items()}


def _unseen(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook whose own calls are not recorded."""

    def quiet(*args: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return hook(*args)

    return quiet


def _alias(value: Tensor) -> Tensor:
    """Another value, in the same memory."""
    return torch.ops.aten.alias.default(value)  # type: ignore[no-any-return]


def _is_transformed(x: Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def _may_write(name: str, kwargs: Any) -> bool:
    return _says_that_it_writes(name, kwargs) or name == "__set__" or kwargs.get("max_norm") is not None


def _versions(tensors: list[Tensor]) -> list[int]:
    return [0 if x.is_inference() else x._version for x in tensors]


def _contents(value: Any) -> Any:
    """What is in ``value``, so that a change can be seen: tensors with their versions, containers with their items."""
    if isinstance(value, Tensor):
        return id(value), 0 if value.is_inference() else value._version
    if isinstance(value, (list, tuple)):
        return tuple(map(_contents, value))
    if isinstance(value, dict):
        return tuple((key, _contents(part)) for key, part in value.items())
    return id(value)


def _parts(value: Any) -> Any:
    """As :func:`_contents`, without what is in tensors."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_parts, value))
    return tuple((key, _parts(part)) for key, part in value.items()) if isinstance(value, dict) else id(value)


def _holds_tensors_only(value: Any) -> bool:
    """Whether a graph can take ``value`` apart."""
    if isinstance(value, dict):
        return type(value) is dict and all(map(_holds_tensors_only, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_holds_tensors_only, value))
    return value is None or isinstance(value, (Tensor, bool, int, float, str)) and not is_traced(value)


def _in_assert() -> bool:
    """Whether the truth value that is asked for decides only if an AssertionError is raised."""
    frame = caller()
    return _is_assert(frame.f_code, frame.f_lasti)


def _is_assert(code: CodeType, at: int) -> bool:
    following = [i for i in dis.get_instructions(code) if i.offset >= at and i.opname != "CACHE"][:4]
    raises = [n for n, i in enumerate(following) if "ASSERTION_ERROR" in i.opname or i.argval is AssertionError]
    return bool(raises) and any(i.opname.endswith("IF_TRUE") for i in following[: raises[0]])
