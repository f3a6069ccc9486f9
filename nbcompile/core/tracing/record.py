"""One run of a network, written down."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nbcompile.core.running import quiet
from nbcompile.core.tracing.call import Call
from nbcompile.core.tracing.modules import containers
from nbcompile.core.tracing.recorder import Recorder, WritesWeightsError
from nbcompile.core.tracing.recording import Recording
from nbcompile.core.tracing.shadow import shadow, state
from nbcompile.core.wrappers import copied


class ModelError(Exception):
    """The model does not run on these inputs; why is the cause."""


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
        ModelError: if the model raises.
    """
    shared = frozenset(x.untyped_storage()._cdata for x in model.parameters() if x.layout is torch.strided)
    try:
        return _recorded(Recorder(shadow(model), opaque, sizes, strict, shared), call, tensors)
    except WritesWeightsError:
        made = _recorded(Recorder(copied(model), opaque, sizes, strict), call, tensors)
        made.writes = True
        return made


def _recorded(recorder: Recorder, call: Call, tensors: Sequence[Tensor]) -> Recording:
    model = recorder.root
    with quiet(model, tuple(tensors)) as inputs:
        for name, x in zip(call.names(model), inputs, strict=True):
            recorder.values.put(x, recorder.values.new("placeholder", name))
        args, kwargs = call.filled(inputs)
        recorder.recording.root, recorder.recording.before, recorder.recording.tensors = model, state(model), tensors
        given = containers((args, kwargs))
        with recorder.looking():
            recorder.recording.outputs = _outputs(recorder, args, kwargs)
    return recorder.finished(containers((args, kwargs)) == given)


def _outputs(recorder: Recorder, args: Any, kwargs: Any) -> Any:
    try:
        with recorder:
            return recorder.root(*args, **kwargs)
    except Exception as error:
        raise ModelError from error
