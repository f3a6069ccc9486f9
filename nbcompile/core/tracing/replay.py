"""The proof that a graph is the network: both are run, and what they give is compared."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from nbcompile.core.errors import PostconditionError
from nbcompile.core.example import Inputs
from nbcompile.core.numerics import TOLERANCE, relative_error
from nbcompile.core.running import output_of, quiet
from nbcompile.core.tracing.call import Call
from nbcompile.core.tracing.recording import Recording
from nbcompile.core.tracing.shadow import changed, shadow, state
from nbcompile.core.tracing.values import PLACE, tensors_within
from nbcompile.core.wrappers import copied, working_copy


class UnprovenError(Exception):
    """The graph is not the network.

    Attributes:
        place: file, line and function of the code.
        why: what it does.
    """

    def __init__(self, place: str, why: str) -> None:
        super().__init__(why)
        self.place, self.why = place, why


def prove(model: nn.Module, call: Call, one: Recording, others: Sequence[tuple[Sequence[Tensor], Any]]) -> None:
    """Run the graph of ``one`` on what ``model`` was run on; and the model once more, where a run changes it.

    Args:
        model: left as it is.
        call: how it is called.
        one: a recording of ``model``.
        others: other inputs, and what the model made of them.

    Raises:
        UnprovenError: naming the first layer that differs, or what the model keeps from call to call.
    """
    for tensors, outputs in ((one.tensors, one.outputs), *others):
        root = _root(model, one)
        _compare(model, one, _replayed(root, one.graph, tensors), outputs, tensors)
    if kept := changed(one.before, state(one.root)):
        name, attribute = kept[0]
        if not _same(outputs_at(one.root, call, one.tensors), one.outputs):
            raise UnprovenError(
                _forward_of(one.root.get_submodule(name)),
                f"gives another output when it is called again, because it keeps '{f'{name}.{attribute}'.lstrip('.')}' "
                "from call to call",
            )


def require_same_function(model: nn.Module, gm: fx.GraphModule, inputs: Inputs) -> None:
    """Run a model and a graph of it, which was rewritten as the model was, each as a copy in eval mode.

    Args:
        model: left as it is.
        gm: of the same layers; left as it is.
        inputs: positional inputs of ``model``, tensors.

    Raises:
        PostconditionError: if they give other outputs.
    """
    expected = output_of(working_copy(model, training=False), inputs)
    try:
        same = _same(_replayed(working_copy(gm), gm.graph, inputs), expected)
    except UnprovenError:
        same = False
    if not same:
        raise PostconditionError(
            f"the graph of this {type(model).__name__} gives another output than the network, now that layers were "
            "replaced in both: a file of it would be another network"
        )


def _root(model: nn.Module, one: Recording) -> nn.Module:
    root = copied(model) if one.writes else shadow(model)
    for name, constant in one.constants.items():
        root.register_buffer(name, constant.clone(), persistent=False)
    return root


def _replayed(root: nn.Module, graph: fx.Graph, tensors: Sequence[Tensor]) -> Any:
    try:
        with quiet(root, tuple(tensors)) as copies:
            return fx.Interpreter(root, graph=graph).run(*copies, enable_io_processing=False)
    except Exception as error:
        raise UnprovenError(
            _forward_of(root), f"does what its graph cannot do again ({type(error).__name__}: {error})"
        ) from error


def outputs_at(model: nn.Module, call: Call, tensors: Sequence[Tensor]) -> Any:
    """What ``model``, a copy that the run may change, gives in eval mode; ``tensors`` are left as they are."""
    with quiet(model, tuple(tensors)) as copies:
        args, kwargs = call.filled(copies)
        return model(*args, **kwargs)


def _compare(model: nn.Module, one: Recording, actual: Any, expected: Any, tensors: Sequence[Tensor]) -> None:
    if _same(actual, expected):
        return
    node = next(_differing(model, one, tensors), None) if expected is one.outputs else None
    where = f"first at '{node.name}'" if node is not None else "in what it returns"
    place = node.meta.get(PLACE, "?") if node is not None else _forward_of(model)
    raise UnprovenError(
        place, f"does what is seen by no hook and by none of torch's functions: the graph gives another output, {where}"
    )


def _same(actual: Any, expected: Any) -> bool:
    ours, theirs = list(tensors_within(actual)), list(tensors_within(expected))
    if len(ours) != len(theirs):
        return False
    return all(
        a.shape == b.shape and a.dtype == b.dtype and (torch.equal(a, b) or _close(a, b))
        for a, b in zip(ours, theirs, strict=True)
    )


def _close(a: Tensor, b: Tensor) -> bool:
    if b.is_complex():
        return _close(torch.view_as_real(a), torch.view_as_real(b))
    return b.dtype in TOLERANCE and relative_error(a, b) <= TOLERANCE[b.dtype]


def _differing(model: nn.Module, one: Recording, tensors: Sequence[Tensor]) -> Iterator[fx.Node]:
    """Nodes that do not give what was seen, all as it is after the run: a later node may have written into it."""
    root, seen = _root(model, one), one.seen
    made: list[tuple[fx.Node, Tensor]] = []

    class Looking(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor) and n in seen:
                made.append((n, value))
            return value

    with quiet(root, tuple(tensors)) as copies:
        Looking(root, graph=one.graph).run(*copies, enable_io_processing=False)
    yield from (node for node, value in made if not _same(value, seen[node]))


def _forward_of(module: nn.Module) -> str:
    try:
        function = inspect.unwrap(type(module).forward)
        return f"{inspect.getsourcefile(function)}:{inspect.getsourcelines(function)[1]} in forward"
    except (OSError, TypeError):
        return type(module).__name__
