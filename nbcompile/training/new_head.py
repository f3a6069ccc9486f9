"""A new classifier on a trained network: transfer to another data set."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nbcompile.core.blocks import Expanded, sites
from nbcompile.core.copies import copied
from nbcompile.core.errors import UsageError
from nbcompile.core.example import origin_of, remember
from nbcompile.core.graph.replace import put
from nbcompile.core.layers import CONVOLUTIONS
from nbcompile.core.running import eval_mode, watched
from nbcompile.expansion import record_again
from nbcompile.spec_strings import with_option
from nbcompile.wide.giants import refuse_wide

_LAYERS: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, nn.Linear, Expanded)


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
