"""New heads: a classifier for other classes (transfer to another data set), a detector's head on a classifier."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nbcompile.core.blocks import Expanded, sites
from nbcompile.core.copies import copied
from nbcompile.core.errors import UsageError
from nbcompile.core.example import Origin, TensorSpec, origin_of, remember
from nbcompile.core.graph.replace import put
from nbcompile.core.layers import CONVOLUTIONS
from nbcompile.core.running import eval_mode, watched
from nbcompile.detection.decode import BoxCoding
from nbcompile.detection.network import Detector, grid_of
from nbcompile.expansion import record_again
from nbcompile.spec_strings import detector_on, with_option
from nbcompile.training.seeds import seed_everything
from nbcompile.training.tasks.detection import Detection
from nbcompile.wide.giants import refuse_wide

if TYPE_CHECKING:
    from nbcompile.training.data.base import Data
    from nbcompile.training.options.config import TrainConfig

LIBRARIES = ("nbcompile", "torchvision", "timm")
"""Whose networks a file may name: a package.module:factory in a file would run whatever it names."""

_LAYERS: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, nn.Linear, Expanded)


def with_fitting_head(model: nn.Module, data: "Data", config: "TrainConfig") -> "tuple[nn.Module, Data]":
    """What is trained, and on what.

    Args:
        model: as it is given; of a detector the file says what its maps mean.
        data: as it is loaded.
        config: gives ``new_head``, and the seed of what is new.

    Raises:
        UsageError: if a head cannot be put on ``model``, a detector finds others than ``data`` has, or what measures it
            is not installed.
        PreconditionError: if it is a giant in width that would get one.
    """
    if not isinstance(data.task, Detection):
        if config.new_head:
            seed_everything(config.seed)
            model = with_classes(model, len(data.classes), torch.zeros(1, *data.shape))
        return model, data
    grid_of(data.shape[1])
    data.task.score()  # what it needs is missed now, not after an epoch
    known = coding_of(model)
    if known is None and not isinstance(model, Detector):
        seed_everything(config.seed)
        return _with_head(model, data), data
    if config.new_head:
        raise UsageError(
            "new_head: a detector keeps its classes; give the network that it stands on, which gets a head for those "
            f"of {data.name}"
        )
    if known is None:
        return model, data
    check_coding(model, data, "the detector")
    task = replace(data.task, coding=known)
    return model, replace(data, task=task, preprocessing=data.preprocessing | {"boxes": known.to_json()})


def coding_of(model: nn.Module) -> BoxCoding | None:
    """What the maps of ``model`` mean, where it is a trained detector.

    Raises:
        UsageError: if its file says so in a way that cannot be read.
    """
    origin = origin_of(model)
    found = origin.preprocessing.get("boxes") if origin else None
    return None if found is None else BoxCoding.from_json(found)


def check_coding(model: nn.Module, data: "Data", who: str, *, anchors: bool = False) -> None:
    """Check that a trained detector finds what the data has, in the same order of channels; others always pass.

    Args:
        model: the network.
        data: what is learnt.
        who: what messages call the network.
        anchors: whether its maps must also mean the same.

    Raises:
        UsageError: if not.
    """
    known = coding_of(model)
    if known is None or not isinstance(data.task, Detection):
        return
    if known.classes != data.classes:
        raise UsageError(
            f"{who} finds {', '.join(known.classes)}, and {data.name} has {', '.join(data.classes)}: give the network "
            "that it stands on, which gets a head for those"
        )
    if anchors and known.anchors != data.task.coding.anchors:
        raise UsageError(
            f"{who} has other anchors than the network, so that its maps mean other boxes: train it on the same boxes"
        )


def _with_head(model: nn.Module, data: "Data") -> nn.Module:
    """A detector on ``model``, which remembers how it was made."""
    refuse_wide(model, "a detector's head", "fuse it, put the head on what comes of that, and widen again")
    origin = origin_of(model)
    spec = origin.model if origin else None
    detector = Detector(model, len(data.classes), in_channels=data.shape[0])
    named = detector_on(spec, len(data.classes)) if spec and spec.partition(":")[0] in LIBRARIES else None
    remember(detector, Origin((TensorSpec((1, *data.shape)),), named))
    if sites(detector):
        record_again(detector)
    return detector


def with_classes(model: nn.Module, classes: int, images: Tensor) -> nn.Module:
    """A copy of ``model`` with a new last layer, of random weights, for ``classes`` logits.

    The last layer is the convolution or linear layer that is called last and gives as many channels as the network
    gives logits.

    Args:
        model: gives logits ``(N, K)``.
        classes: the new K.
        images: ``(N, C, H, W)``, which it takes.

    Raises:
        UsageError: if the network has no such layer, or that one is a site.
        PreconditionError: if it is a giant in width.
    """
    refuse_wide(model, "new_head", "fuse it, give what comes of that the new head, and widen again")
    model = copied(model)
    name, layer = _last(model, images)
    if isinstance(layer, nn.Linear):
        fresh: nn.Module = nn.Linear(layer.in_features, classes, layer.bias is not None)
    elif isinstance(layer, CONVOLUTIONS) and layer.groups == 1:
        kind: Any = type(layer)
        fresh = kind(
            layer.in_channels, classes, layer.kernel_size, layer.stride, layer.padding,
            dilation=layer.dilation, bias=layer.bias is not None, padding_mode=layer.padding_mode,
        )  # fmt: skip
    else:
        raise UsageError(f"new_head: '{name}', the last layer of {type(model).__name__}, is grouped: give it a new one")
    weight = next(layer.parameters())
    fresh.to(device=weight.device, dtype=weight.dtype).train(layer.training)
    put(model, layer, fresh)
    origin = origin_of(model)
    if origin is not None and origin.model is not None:
        remember(model, replace(origin, model=with_option(origin.model, "num_classes", classes)))
    if sites(model):
        record_again(model)
    return model


def _last(model: nn.Module, images: Tensor) -> tuple[str, nn.Module]:
    """The name of the last layer, and the layer.

    Raises:
        UsageError: if there is none, or it is a site.
    """
    called: list[tuple[str, nn.Module, int]] = []

    def note(name: str, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        channels = output.shape[-1] if isinstance(module, nn.Linear) else output.shape[1]
        called.append((name, module, channels))

    inside = {id(part) for block in sites(model).values() for part in block.modules() if part is not block}
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, _LAYERS) and id(m) not in inside]
    with watched(layers, leave=note), eval_mode(model), torch.no_grad():
        logits = model(images)
    fitting = [(name, module) for name, module, channels in called if channels == logits.shape[1]]
    if not fitting or fitting[-1][0] != called[-1][0]:
        raise UsageError(f"new_head: {type(model).__name__} has no last layer that gives its {logits.shape[1]} logits")
    name, module = fitting[-1]
    if isinstance(module, Expanded):
        raise UsageError(f"new_head: '{name}', the last layer of {type(model).__name__}, is expanded: expand others")
    return name, module
