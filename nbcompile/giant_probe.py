"""Does a giant run as its original did? One run in each mode tells, right after the layers were replaced."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn

from nbcompile.core.blocks import Expanded, sites
from nbcompile.core.copies import shadow, working_copy
from nbcompile.core.errors import PreconditionError
from nbcompile.core.example import Inputs
from nbcompile.core.running import LeavesWeights, WritesWeightsError, output_of
from nbcompile.core.tracing.replay import require_same_function


class LayerNeededError(PreconditionError):
    """Code beyond the graph needs a layer that was to be replaced."""

    def __init__(self, layer: str, message: str) -> None:
        super().__init__(message)
        self.layer = layer


def probe(
    giant: nn.Module,
    model: nn.Module,
    tried: Sequence[Inputs],
    wanted: dict[str, int],
    graph: fx.GraphModule | None = None,
    *,
    may_write: bool = True,
) -> None:
    """Run a copy in eval and train mode: every block must be called as often as its layer was, and none for a weight.

    Args:
        giant: what ``expand`` made.
        model: what it was made from: where that does not run either, nothing can be learnt.
        tried: inputs for which the graph of ``model`` holds, in order; in each mode those count on which it runs.
        wanted: how often the eval graph calls each site.
        graph: of the giant; it must compute what the giant does in eval mode.
        may_write: whether a run of ``model`` in eval mode may write into parameters.

    Raises:
        LayerNeededError: if other code needs a layer that was replaced; it is named.
        PostconditionError: if the graph gives another output.
        PreconditionError: if the giant does not run although the model does.
    """
    ran: set[bool] = set()
    for training, inputs in product((False, True), tried):
        if training in ran:
            continue
        batch = _twice(inputs) if training else inputs
        probe, reached, (output, failure) = _run(giant, batch, training, may_write)
        if failure is not None:
            if name := _weightless(failure, probe):
                raise LayerNeededError(
                    name,
                    f"expand: '{name}' cannot be expanded: other code reads its weight directly "
                    f"({failure}); name other layers with where=[...]",
                ) from failure
            if _outcome(working_copy(model, training=training), batch)[1] is None:
                raise PreconditionError(f"expand: the giant does not run on the example input: {failure}") from failure
            continue
        ran.add(training)
        if not training and (missed := [name for name, count in wanted.items() if reached[name] != count]):
            raise LayerNeededError(
                missed[0],
                f"expand: '{missed[0]}' was replaced, but the model still calls the old layer (it is kept somewhere "
                "outside the module tree); name other layers with where=[...]",
            )
        if not training and graph is not None:
            require_same_function(probe, output, graph, inputs)


def _run(
    giant: nn.Module, inputs: Inputs, training: bool, may_write: bool
) -> tuple[nn.Module, Counter[str], tuple[Any, Exception | None]]:
    """The copy that ran, how often each site in it did, and what came of it."""
    if training:
        probe = shadow(giant, training=True)
        try:
            with LeavesWeights(giant):  # in eval mode, torch's transformer layers take another path with it
                return _noted(probe, inputs)
        except WritesWeightsError:
            may_write = True
    return _noted((working_copy if may_write else shadow)(giant, training=training), inputs)


def _noted(probe: nn.Module, inputs: Inputs) -> tuple[nn.Module, Counter[str], tuple[Any, Exception | None]]:
    reached: Counter[str] = Counter()
    for site, block in sites(probe).items():  # no hooks: of them, those layers are aware, too
        object.__setattr__(block, "forward", partial(_noting, reached, site, block.forward))
    return probe, reached, _outcome(probe, inputs)


def _noting(reached: Counter[str], name: str, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    reached[name] += 1
    return forward(x)


def _twice(inputs: Inputs) -> Inputs:
    """The batch twice over: batch statistics need more than one value. A list of images is taken as it is."""
    return tuple(torch.cat([x, x]) if isinstance(x, Tensor) and x.ndim else x for x in inputs)


def _outcome(model: nn.Module, inputs: Inputs) -> tuple[Any, Exception | None]:
    """What the model gives for ``inputs``, or raises."""
    try:
        return output_of(model, inputs), None
    except Exception as error:
        return None, error


def _weightless(error: Exception, giant: nn.Module) -> str | None:
    """The block whose missing attribute made ``error``, if one did."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    asked = frame.tb_frame.f_locals.get("self") if frame is not None else None
    if not isinstance(error, AttributeError) or not isinstance(asked, Expanded):
        return None
    return next(name for name, block in sites(giant).items() if block is asked)
