"""From a model to its fx graph.

A graph is captured to *locate* layers and to *prove* rewrites; it shares its leaf modules with the model, whose own
class is what users train. Leaves are torch's own modules, our blocks and, where that is not enough, the modules that
torchvision and timm themselves declare untraceable.
"""

import copy
import dis
import inspect
import math
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nbcompile.core.blocks import Expanded
from nbcompile.core.errors import CaptureError
from nbcompile.core.layers import why_no_layer

TAKEN = frozenset(dir(fx.GraphModule({}, fx.Graph()))) - frozenset(dir(nn.Module()))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # what is computed from a buffer must follow when training changes the buffer

    def __init__(self, leaves: frozenset[type]) -> None:
        modules, functions = _library_wraps()
        super().__init__(autowrap_modules=modules, autowrap_functions=functions)
        self._leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Torch's own modules, our blocks, and the given library leaves."""
        if isinstance(m, Expanded) or type(m) in self._leaves or why_no_layer(m) is None:
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """An ``assert`` on a traced value is taken as true: it guards the path that is captured and chooses none.

        fx's own ``trace_asserts`` does not recognise the bytecode of Python 3.11 and later.
        """
        frame = sys._getframe(1)
        while "/torch/fx/" in frame.f_code.co_filename and frame.f_back is not None:
            frame = frame.f_back
        if _is_assert(frame.f_code, frame.f_lasti):
            return True
        return super().to_bool(obj)


def _is_assert(code: CodeType, at: int) -> bool:
    """Whether the truth value asked for at bytecode offset ``at`` decides only if an AssertionError is raised."""
    following = [i for i in dis.get_instructions(code) if i.offset >= at and i.opname != "CACHE"][:4]
    raises = [n for n, i in enumerate(following) if "ASSERTION_ERROR" in i.opname or i.argval is AssertionError]
    return bool(raises) and any(i.opname.endswith("IF_TRUE") for i in following[: raises[0]])


def capture(model: nn.Module, inputs: int | None = None) -> fx.GraphModule:
    """The eval-mode graph of ``model``; the model itself is left as it was.

    Args:
        model: any module; our blocks stay whole.
        inputs: how many positional inputs it is called with; further parameters of ``forward`` take their defaults.
            None keeps them all.

    Returns:
        A graph whose leaf modules are the model's own, under their qualified names.

    Raises:
        CaptureError: with the place in the code that cannot be traced.
    """
    require_free_names(model)
    if isinstance(model, fx.GraphModule) and _calls_leaves_only(model):
        return fx.GraphModule(model, copy.deepcopy(model.graph), type(model).__name__)
    failure: Exception | None = None
    with eval_mode(model):
        for leaves in (frozenset[type](), _library_leaves()):
            try:
                graph = _Tracer(leaves).trace(model, _defaults(model, inputs))
            except Exception as error:
                failure = failure or error
                continue
            gm = fx.GraphModule(model, graph, type(model).__name__)
            _drop_unused_inputs(gm, inputs)
            return gm
    assert failure is not None
    raise CaptureError(
        f"{type(model).__name__} cannot be traced into a graph: {_where(failure)}: "
        f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else 'no message'}. Make that code "
        "independent of tensor values, or name the layers to expand with where=[...]"
    ) from failure


def require_free_names(model: nn.Module) -> None:
    """Check that no child is called like an attribute that every GraphModule has: it could not be put in one.

    Raises:
        CaptureError: naming the child.
    """
    if taken := sorted(TAKEN.intersection(dict(model.named_children()))):
        raise CaptureError(
            f"{type(model).__name__} has a child called '{taken[0]}', a name that torch.fx.GraphModule needs for "
            "itself: rename it"
        )


def is_leaf(module: nn.Module, name: str) -> bool:
    """Whether ``module``, called ``name`` in its model, stays one node of a graph."""
    return _Tracer(frozenset()).is_leaf_module(module, name)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside; each back in its own mode after.

    Flags are set one by one: a model's own ``eval`` may do more, such as merging weights.
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _calls_leaves_only(gm: fx.GraphModule) -> bool:
    tracer = _Tracer(_library_leaves())
    called = [str(node.target) for node in gm.graph.find_nodes(op="call_module")]
    return all(tracer.is_leaf_module(gm.get_submodule(name), name) for name in called)


def _library_wraps() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    modules: list[Any] = [math]
    functions: list[Any] = []
    if ops := sys.modules.get("torchvision.ops"):
        modules.append(ops)
    if timm := sys.modules.get("timm.layers._fx"):
        functions += timm.get_notrace_functions()
    return tuple(modules), tuple(functions)


def _library_leaves() -> frozenset[type]:
    """The modules that libraries declare untraceable; a library that is not loaded has no model here."""
    leaves: set[type] = set()
    if timm := sys.modules.get("timm.layers._fx"):
        # its norm-and-activation modules trace well, and opened they show both
        leaves |= {cls for cls in timm.get_notrace_modules() if not issubclass(cls, _BatchNorm)}
    if ops := sys.modules.get("torchvision.ops"):
        leaves |= {v for v in vars(ops).values() if inspect.isclass(v) and issubclass(v, nn.Module)}
    return frozenset(leaves)


def _defaults(model: nn.Module, inputs: int | None) -> dict[str, Any] | None:
    """Concrete values for the parameters of ``forward`` beyond the inputs."""
    if inputs is None:
        return None
    parameters = [
        p
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return {p.name: p.default for p in parameters[inputs:] if p.default is not p.empty} or None


def _drop_unused_inputs(gm: fx.GraphModule, inputs: int | None) -> None:
    """Remove the placeholders beyond ``inputs``, and the checks fx adds for their concrete values."""
    if inputs is None:
        return
    for placeholder in gm.graph.find_nodes(op="placeholder")[inputs:]:
        _erase_checks(gm.graph, placeholder)
        if not placeholder.users:
            gm.graph.erase_node(placeholder)
    gm.graph.set_codegen(fx.graph.CodeGen())
    gm.recompile()


def _erase_checks(graph: fx.Graph, node: fx.Node) -> None:
    for user in list(node.users):
        name = getattr(user.target, "__name__", "")
        if name == "eq":
            _erase_checks(graph, user)
        if name in ("_assert_is_none", "_assert", "eq") and not user.users:
            graph.erase_node(user)


def _where(error: Exception) -> str:
    """File and line of the innermost frame that is the model's, not torch's."""
    frames = traceback.extract_tb(error.__traceback__)
    others = ("/torch/fx/", "/torch/nn/modules/module", __file__)
    own = [f for f in frames if not any(other in f.filename for other in others)]
    frame = (own or list(frames))[-1]
    return f"{frame.filename}:{frame.lineno} in {frame.name}"
