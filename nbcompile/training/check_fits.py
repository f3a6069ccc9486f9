"""Does this network fit this data set? Asked once, before anything is trained."""

import torch
from torch import Tensor, nn

from nbcompile.core.copies import copied
from nbcompile.core.errors import UsageError
from nbcompile.training.data.base import Data


def check_fits(model: nn.Module, data: Data, who: str | None = None) -> None:
    """Run a copy of ``model`` once in train mode, on two images of zeros.

    Args:
        model: the network to train, or a teacher.
        data: the data set.
        who: what messages call a network that is not trained here, such as ``the teacher resnet.pt``; None is the
            network to train, called by its class.

    Raises:
        UsageError: if it cannot take the images, or does not give one logit per class.
    """
    named = type(model).__name__ if who is None else f"{who} ({type(model).__name__})"
    trial = copied(model, training=True)
    parameter = next(trial.parameters(), None)
    if parameter is None:
        raise UsageError(f"{named} has no parameters: there is nothing to {'train' if who is None else 'learn from'}")
    images = torch.zeros((2, *data.shape), dtype=parameter.dtype, device=parameter.device)
    size = "×".join(str(side) for side in data.shape)
    taken = next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), 3)
    trained = f"it must have been trained on {data.name}, or on the same classes"
    try:
        with torch.no_grad():
            logits = trial(images)
    except Exception as error:  # whatever layers, and code that looks at sizes or waits for targets, raise
        advice = f"write MODEL?{_keys(data, taken)}, or choose another input_size" if who is None else trained
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"{named} cannot take the images of {data.name}, {size} ({reason}): {advice}") from error
    if not isinstance(logits, Tensor):
        raise UsageError(
            f"{named} gives a {type(logits).__name__} in training, not a tensor of logits: "
            f"switch its auxiliary heads off, as in MODEL?aux_logits=False"
        )
    if logits.shape != (2, len(data.classes)):
        advice = f"write MODEL?{_keys(data, taken)}, as in nbcompile:dscnn?{_keys(data, 1)}" if who is None else trained
        raise UsageError(
            f"{named} gives outputs of shape {tuple(logits.shape[1:])}, but {data.name} has "
            f"{len(data.classes)} classes: {advice}"
        )


def _keys(data: Data, taken: int) -> str:
    """The options of a MODEL that fits ``data``: the channels, too, unless there are 3 and so many are ``taken``."""
    channels = "" if data.shape[0] == taken == 3 else f"&in_channels={data.shape[0]}"
    return f"num_classes={len(data.classes)}{channels}"
