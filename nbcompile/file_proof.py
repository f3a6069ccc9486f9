"""The proof that the network which a file describes is the model at hand: both run, with the model's weights."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from nbcompile.core.blocks import sites
from nbcompile.core.copies import working_copy
from nbcompile.core.errors import CheckpointError, PreconditionError
from nbcompile.core.example import Inputs, inputs_for, origin_of, random_inputs
from nbcompile.core.judging.judgment import judge
from nbcompile.core.numerics import TOLERANCE, placed_tensors, relative_error
from nbcompile.core.running import interpret, output_of, watched
from nbcompile.core.serialization.rebuild import rebuild
from nbcompile.core.tracing.inputs import batch_of
from nbcompile.core.tracing.values import tensors_within


def difference(model: nn.Module, description: Mapping[str, Any]) -> str | None:
    """How a described network, with the weights of ``model``, differs from it in eval mode, at two batch sizes.

    Args:
        model: left as it is.
        description: of it, or of another network with the same keys.

    Returns:
        A part of a sentence; None where both give the same.

    Raises:
        PreconditionError: if no network can be made of the description, or one of the two does not run.
    """
    ours = working_copy(model, training=False)
    for block in sites(ours).values():
        block.collapsed = False
    tensors = {key: value.clone() for key, value in ours.state_dict().items() if isinstance(value, Tensor)}
    try:
        described, _ = rebuild(description, tensors)
    except CheckpointError as error:
        raise PreconditionError(str(error)) from error
    described.to(next((x.device for x in ours.parameters()), torch.device("cpu")))
    wanted = origin_of(described)
    assert wanted is not None
    example = inputs_for(ours, random_inputs(wanted.inputs), who="load")
    more = random_inputs(wanted.inputs, seed=1, batch=batch_of(tree_leaves(example)) + 1)
    for number, inputs in enumerate((example, inputs_for(ours, more, who="load"))):
        running = working_copy(ours)
        (theirs, failed), (own, refused) = _tried(working_copy(described), inputs), _tried(running, inputs)
        if stopped := failed or refused:
            if not number:
                raise PreconditionError(f"{type(stopped).__name__}: {stopped}") from stopped
            if failed and refused:
                continue
            one, other = ("does not run", "does") if failed else ("runs", "does not")
            return f"with {batch_of(tree_leaves(inputs))} samples: the file's {one}, and the model {other}"
        try:
            judgment = judge(running, [(inputs, _placed(own))], [_placed(theirs)], read=_placed)
        except PreconditionError as error:
            first = _first(described, ours, inputs, TOLERANCE[torch.float32])
            return f"{first}: {error}"
        if not judgment.passed:  # the arithmetic may differ: TF32, another order of sums
            first = _first(described, ours, inputs, judgment.limit.error)
            where = re.sub(r"""output\[(["'])(output.*)\1\]""", r"\2", judgment.place)
            return f"{first}: relative error {judgment.error:.2e}{where}, at most {judgment.limit} is rounding"
    return None


def _tried(model: nn.Module, inputs: Inputs) -> tuple[Any, Exception | None]:
    try:
        return output_of(model, inputs), None
    except Exception as error:
        return None, error


def _placed(output: Any) -> dict[str, Tensor]:
    """What it returns by where that is, whatever holds it; without what is no tensor."""
    try:
        return dict(sorted(placed_tensors(output)))
    except PreconditionError:
        return {str(i): x for i, x in enumerate(tensors_within(output))}


def _error(theirs: Any, own: Any) -> float:
    try:
        return relative_error(list(tensors_within(theirs)), list(tensors_within(own)))
    except PreconditionError:
        return float("inf")


def _first(described: fx.GraphModule, ours: nn.Module, inputs: Inputs, limit: float) -> str:
    """Where they differ first."""
    names = dict.fromkeys(str(node.target) for node in described.graph.find_nodes(op="call_module"))
    seen: dict[str, list[Any]] = {name: [] for name in names}
    differing: list[str] = []

    def note(name: str, _: nn.Module, __: Any, ___: Any, output: Any) -> None:
        seen[name].append([x.clone() for x in tensors_within(output)])  # it may be written into later

    def compare(node: fx.Node, value: Any) -> None:
        name = str(node.target)
        if node.op == "call_module" and seen[name] and _error(value, seen[name].pop(0)) > limit:
            differing.append(name)

    copy_ = working_copy(ours)
    with watched([(name, copy_.get_submodule(name)) for name in names], leave=note):
        output_of(copy_, inputs)
    interpret(described, inputs, after=compare)
    return f"first at '{differing[0]}'" if differing else "in what it returns"
