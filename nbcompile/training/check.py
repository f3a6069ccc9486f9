"""Does this network fit this data set? Asked once, before anything is trained."""

import copy

import torch
from torch import Tensor, nn

from nbcompile.core.errors import UsageError
from nbcompile.training.data import Data


def check_fits(model: nn.Module, data: Data) -> None:
    """Run a copy of ``model`` once in train mode, on two images of zeros.

    Raises:
        UsageError: if it cannot take the images, or does not give one logit per class.
    """
    trial = copy.deepcopy(model).train()
    parameter = next(trial.parameters(), None)
    if parameter is None:
        raise UsageError(f"{type(model).__name__} has no parameters: there is nothing to train")
    images = torch.zeros((2, *data.shape), dtype=parameter.dtype, device=parameter.device)
    size = "×".join(str(side) for side in data.shape)
    try:
        with torch.no_grad():
            logits = trial(images)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:  # what layers raise on a wrong shape
        raise UsageError(
            f"{type(model).__name__} cannot take the images of {data.name}, {size} "
            f"({str(error).splitlines()[0]}): write MODEL?{_keys(data)}, or choose another input_size"
        ) from error
    if not isinstance(logits, Tensor):
        raise UsageError(
            f"{type(model).__name__} gives a {type(logits).__name__} in training, not a tensor of logits: "
            f"switch its auxiliary heads off, as in MODEL?aux_logits=False"
        )
    if logits.shape != (2, len(data.classes)):
        raise UsageError(
            f"{type(model).__name__} gives outputs of shape {tuple(logits.shape[1:])}, but {data.name} has "
            f"{len(data.classes)} classes: write MODEL?{_keys(data)}, as in nbcompile:dscnn?{_keys(data)}"
        )


def _keys(data: Data) -> str:
    channels = "" if data.shape[0] == 3 else f"&in_channels={data.shape[0]}"
    return f"num_classes={len(data.classes)}{channels}"
