"""One run of a network, written down."""

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

from nbcompile.core.running import WritesWeightsError, quiet
from nbcompile.core.tracing.call import Call
from nbcompile.core.tracing.modules import containers
from nbcompile.core.tracing.recorder import Recorder
from nbcompile.core.tracing.recording import Recording
from nbcompile.core.tracing.rig import Rig


class ModelError(Exception):
    """The model does not run on these inputs; why is the cause."""


def record(
    rig: Rig,
    call: Call,
    tensors: Sequence[Tensor],
    *,
    opaque: Collection[str] = (),
    sizes: bool = True,
    strict: bool = True,
    keep: bool = False,
) -> Recording:
    """Run a network once, in eval mode and without gradients, and write down what it does.

    Args:
        rig: where it runs.
        call: how it is called.
        tensors: of the call; they are left as they are.
        opaque: names of modules that are to be one node, whatever they do.
        sizes: whether numbers that are sizes of what depends on the inputs, or are computed of such, become nodes.
        strict: False writes down what was seen of this run, nothing opaque, be it the network or not.
        keep: all values, to be looked at; without, they go as they do when the network runs.

    Raises:
        ModelError: if the network raises.
    """
    root = rig.root
    try:
        made = _recorded(Recorder(rig, opaque, sizes, strict, keep), call, tensors)
    except WritesWeightsError:
        rig.clear(writes=True)
        root = rig.root
        made = _recorded(Recorder(rig, opaque, sizes, strict, keep), call, tensors)
    made.kept, made.root = rig.kept, root if rig.kept else None
    return made


def _recorded(recorder: Recorder, call: Call, tensors: Sequence[Tensor]) -> Recording:
    with recorder.rig.running(recorder) as root, quiet(root, tuple(tensors)) as inputs:
        for name, x in zip(call.names(root), inputs, strict=True):
            recorder.values.put(x, recorder.values.new("placeholder", name))
        args, kwargs = call.filled(inputs)
        recorder.recording.tensors = tensors
        given = containers((args, kwargs))
        recorder.recording.outputs = _outputs(recorder, root, args, kwargs)
        return recorder.finished(containers((args, kwargs)) == given)


def _outputs(recorder: Recorder, root: nn.Module, args: Any, kwargs: Any) -> Any:
    try:
        with recorder:
            return root(*args, **kwargs)
    except Exception as error:
        raise ModelError from error
