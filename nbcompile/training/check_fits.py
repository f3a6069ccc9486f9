"""Does this network fit this data set? Asked once, before anything is trained."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from nbcompile.core.copies import copied
from nbcompile.core.errors import UsageError
from nbcompile.core.example import origin_of
from nbcompile.training.data.base import Data
from nbcompile.training.tasks.classification import CLASSIFICATION


def check_fits(model: nn.Module, data: Data, who: str | None = None, sizes: Sequence[int] = ()) -> None:
    """Run a copy of ``model`` once in train mode, on two images of zeros of each size.

    Args:
        model: the network to train, or a teacher.
        data: the data set.
        who: what messages call a network that is not trained here, such as ``the teacher resnet.pt``; None is the
            network to train, called by its class.
        sizes: sides of images that are trained on, in pixels; none: as ``data`` gives them.

    Raises:
        UsageError: if it cannot take the images, or does not give one logit per class.
    """
    if not sizes:
        _check_size(model, data, who, "another input_size")
    for side in dict.fromkeys(sizes):
        _check_size(model, replace(data, shape=(data.shape[0], side, side)), who, "other sizes")


def _check_size(model: nn.Module, data: Data, who: str | None, choose: str) -> None:
    named = type(model).__name__ if who is None else f"{who} ({type(model).__name__})"
    trial = copied(model, training=True)
    device = _require_trainable(trial, named, learns=who is None)
    images = torch.zeros((2, *data.shape), device=device)
    size = "×".join(str(side) for side in data.shape)
    trained = f"it must have been trained on {data.name}, or on the same classes"
    try:
        with torch.no_grad():
            outputs = trial(images)
    except Exception as error:  # whatever layers, and code that looks at sizes or waits for targets, raise
        advice = f"write {_fitting_model(model, data)}, or choose {choose}" if who is None else trained
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"{named} cannot take the images of {data.name}, {size} ({reason}): {advice}") from error
    if data.task is CLASSIFICATION and not isinstance(outputs, Tensor):
        raise UsageError(
            f"{named} gives a {type(outputs).__name__} in training, not a tensor of logits: "
            f"switch its auxiliary heads off, as in MODEL?aux_logits=False"
        )
    if misfit := data.task.misfit(outputs, len(data.classes)):
        example = f"as in nbcompile:dscnn?num_classes={len(data.classes)}&in_channels={data.shape[0]}"
        fitting = f"write {_fitting_model(model, data)}, {example}"
        if data.task is not CLASSIFICATION:
            fitting = f"give a detector num_classes={len(data.classes)}, or the network that it stands on"
        advice = fitting if who is None else trained
        raise UsageError(f"{named} {misfit}, but {data.name} has {len(data.classes)} classes: {advice}")


def _require_trainable(model: nn.Module, named: str, *, learns: bool) -> torch.device:
    """The device of parameters in float32, some of which are trained in a network that ``learns``."""
    parameters = dict(model.named_parameters())
    if not parameters:
        raise UsageError(f"{named} has no parameters: there is nothing to {'train' if learns else 'learn from'}")
    if learns and not any(x.requires_grad for x in parameters.values()):
        raise UsageError(f"{named} is frozen, no parameter of it requires a gradient: there is nothing to train")
    for name, x in parameters.items():
        if x.is_floating_point() and x.dtype != torch.float32:
            raise UsageError(
                f"'{name}' of {named} is {str(x.dtype).removeprefix('torch.')}, and images are float32: call .float() "
                "on the network (precision bf16-mixed computes in bfloat16 and keeps the weights in float32)"
            )
    return next(iter(parameters.values())).device


def _fitting_model(model: nn.Module, data: Data) -> str:
    """A MODEL like ``model`` that fits ``data``; its channels are named where they are not the 3 that it takes."""
    origin = origin_of(model)
    home = ((origin.model if origin else None) or "").partition(":")[0]
    taken = next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), 3)
    words = f"num_classes={len(data.classes)}"
    if data.shape[0] == taken == 3:
        return f"MODEL?{words}"
    if home == "torchvision" and data.shape[0] != taken:
        return f"timm:NAME?{words}&in_chans={data.shape[0]} (torchvision's networks take {taken} channels)"
    return f"MODEL?{words}&{'in_chans' if home == 'timm' else 'in_channels'}={data.shape[0]}"
