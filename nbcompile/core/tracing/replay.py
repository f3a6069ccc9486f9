"""The proof that a graph is the network: both are run, and what they give is compared."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from nbcompile.core.errors import PostconditionError
from nbcompile.core.example import Inputs
from nbcompile.core.graph.guards import OtherSizesError
from nbcompile.core.numerics import TOLERANCE, relative_error
from nbcompile.core.running import quiet
from nbcompile.core.tracing.call import Call
from nbcompile.core.tracing.kept import kept_from_call_to_call
from nbcompile.core.tracing.recording import Recording
from nbcompile.core.tracing.rig import Rig
from nbcompile.core.tracing.values import PLACE, tensors_within


class UnprovenError(Exception):
    """The graph is not the network.

    Attributes:
        place: file, line and function of the code.
        why: what it does.
    """

    def __init__(self, place: str, why: str) -> None:
        super().__init__(why)
        self.place, self.why = place, why


def prove(
    rig: Rig,
    call: Call,
    one: Recording,
    other: tuple[Sequence[Tensor], Any] | None,
    again: Callable[..., Recording],
) -> None:
    """Run the graph of ``one`` on what the network was run on; and the network once more, where a run changes it.

    The other inputs come first: they are smaller, and what ``one`` has taken for constant is not what they would have
    given. Where the graph gives the network's output on them, it is not run on the inputs that it was written of.

    Args:
        rig: where the network runs.
        call: how it is called.
        one: a recording of it.
        other: other inputs, and what the network made of them.
        again: makes a recording as ``one`` was made: it takes a rig, ``tensors``, and whether to ``keep`` all values.

    Raises:
        UnprovenError: naming the first layer that differs, or what the network keeps from call to call.
    """
    told = other and _told(rig, one, *other)
    if (one.root is not None or told is not True) and not _holds(rig, one, one.tensors, one.outputs):
        raise _unproven(rig, one, again(rig, tensors=one.tensors, keep=True))
    if told is False:
        raise _unproven(rig, one, None)
    if one.root is None:
        return
    same = _same(outputs_at(one.root, call, one.tensors), one.outputs)
    again = partial(again, tensors=other[0] if other and told else one.tensors)
    if not same or kept_from_call_to_call(first := again(rig), again(Rig(first.root or rig.model))):
        name, attribute = one.kept[0]
        raise UnprovenError(
            _forward_of(one.root.get_submodule(name)),
            f"gives another output when it is called again, because it keeps '{f'{name}.{attribute}'.lstrip('.')}' "
            "from call to call",
        )


def _told(rig: Rig, one: Recording, tensors: Sequence[Tensor], outputs: Any) -> bool | None:
    """Whether the graph of ``one`` holds on ``tensors``; None where it says itself that it is not for their sizes."""
    try:
        return _holds(rig, one, tensors, outputs)
    except UnprovenError as error:
        if isinstance(error.__cause__, OtherSizesError):
            return None
        raise


def refuses(rig: Rig, one: Recording, tensors: Sequence[Tensor]) -> bool:
    """Whether the graph of ``one`` says of ``tensors`` that it was made for other sizes."""
    try:
        return _told(rig, one, tensors, None) is None
    except UnprovenError:
        return False


def require_same_function(model: nn.Module, expected: Any, gm: fx.GraphModule, inputs: Inputs) -> None:
    """Run a graph that was rewritten as a model was.

    Args:
        model: a copy in eval mode, with whose modules the graph runs.
        expected: what it gives.
        gm: left as it is.
        inputs: positional inputs of ``model``, tensors; they are left as they are.

    Raises:
        PostconditionError: if the graph gives another output.
    """
    try:
        same = _same(_replayed(_with_constants(model, gm._buffers), gm.graph, inputs, model), expected)
    except UnprovenError:
        same = False
    if not same:
        raise PostconditionError(
            f"the graph of this {type(model).__name__} gives another output than the network, now that layers were "
            "replaced in both: a file of it would be another network"
        )


def _holds(rig: Rig, one: Recording, tensors: Sequence[Tensor], outputs: Any) -> bool:
    with rig.running() as root:
        return _same(_replayed(_with_constants(root, one.constants), one.graph, tensors, rig.model), outputs)


def _with_constants(root: nn.Module, constants: Mapping[str, Tensor | None]) -> nn.Module:
    """``root`` with copies of the constants that its graph reads."""
    holder = nn.Module()
    copies = {name: None if constant is None else constant.clone() for name, constant in constants.items()}
    holder.__dict__.update(root.__dict__, _buffers={**copies, **root._buffers})
    return holder


def _replayed(root: nn.Module, graph: fx.Graph, tensors: Sequence[Tensor], model: nn.Module) -> Any:
    """What ``graph``, of ``model``, gives with the modules of ``root``."""
    try:
        with quiet(root, tuple(tensors)) as copies:
            interpreter = fx.Interpreter(root, graph=graph)
            interpreter.extra_traceback = False  # it would be added to what errors say
            return interpreter.run(*copies, enable_io_processing=False)
    except Exception as error:
        raise UnprovenError(
            _forward_of(model), f"does what its graph cannot do again ({type(error).__name__}: {error})"
        ) from error


def outputs_at(model: nn.Module, call: Call, tensors: Sequence[Tensor]) -> Any:
    """What ``model``, a copy that the run may change, gives in eval mode; ``tensors`` are left as they are."""
    with quiet(model, tuple(tensors)) as copies:
        args, kwargs = call.filled(copies)
        return model(*args, **kwargs)


def _unproven(rig: Rig, one: Recording, seen: Recording | None) -> UnprovenError:
    node = None if seen is None else next(_differing(rig, one, seen), None)
    where = f"first at '{node.name}'" if node is not None else "in what it returns"
    place = node.meta.get(PLACE, "?") if node is not None else _forward_of(rig.model)
    return UnprovenError(
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


def _differing(rig: Rig, one: Recording, seen: Recording) -> Iterator[fx.Node]:
    """Nodes that do not give what was seen, all as it is after the run: a later node may have written into it."""
    expected = {node.name: value for node, value in seen.seen.items()}
    made: list[tuple[fx.Node, Tensor]] = []

    class Looking(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor) and n.name in expected:
                made.append((n, value))
            return value

    with rig.running() as root, quiet(root, tuple(one.tensors)) as copies:
        Looking(_with_constants(root, one.constants), graph=one.graph).run(*copies, enable_io_processing=False)
    yield from (node for node, value in made if not _same(value, expected[node.name]))


def _forward_of(module: nn.Module) -> str:
    try:
        function = inspect.unwrap(type(module).forward)
        return f"{inspect.getsourcefile(function)}:{inspect.getsourcelines(function)[1]} in forward"
    except (OSError, TypeError):
        return type(module).__name__
