"""The weights of a deploy form, back in the network that it was made of: same class, same keys.

A merged layer is the layer whose name it has, scaled by the norm behind it, and all else that was merged into it. That
layer's weight and the norm's shift take up what training changed; then the network is merged again, and compared.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nbcompile.core.copies import copied
from nbcompile.core.errors import CaptureError
from nbcompile.core.example import Inputs, origin_of
from nbcompile.core.serialization.own_ranges import remember_ranges
from nbcompile.core.tracing.capture import capture
from nbcompile.deploy.deploy_form import deploy
from nbcompile.exporters.to_tflite.quantize.learned import LearnedRanges

SAME_WEIGHT = 1e-4
"""Of a layer's largest weight; half a step of int8 is 40 times that."""

_DEAD = 1e-6
"""Of a norm's largest scale: a channel with less of it cannot take up anything."""

Layers = Mapping[str, nn.Module]


def written_back(
    network: nn.Module, deployed: fx.GraphModule, layers: Layers, inputs: Inputs, ranges: LearnedRanges
) -> tuple[nn.Module, str | None]:
    """A copy of ``network`` that merges to ``layers``, and remembers ``ranges``.

    Where there is none, because something else than one layer and its norm made a layer, the deploy form with these
    weights.

    Args:
        network: without expansion blocks, in eval mode.
        deployed: its deploy form, before it was trained on.
        layers: layers of the deploy form, trained on, by name.
        inputs: example.
        ranges: of its int8 file.

    Returns:
        The network; where it is the deploy form, the layer for whose sake it is.
    """
    result = copied(network, training=False).cpu()
    try:
        with torch.no_grad():
            _write(result, deployed, layers, inputs)
        again = deploy(result, inputs)
        missed = next((name for name, layer in layers.items() if not _same(again, name, layer)), None)
    except (_NoHostError, CaptureError) as error:
        missed = str(error)
    if missed is not None:
        result = copied(deployed, training=False).cpu()
        with torch.no_grad():
            for name, layer in layers.items():
                for key, value in layer.named_parameters():
                    result.get_submodule(name).get_parameter(key).copy_(value)
    remember_ranges(result, origin_of(network), ranges.to_json())
    return result, missed


class _NoHostError(Exception):
    """A layer that cannot take up what its merged form has learnt; says its name."""


def _write(network: nn.Module, deployed: fx.GraphModule, layers: Layers, inputs: Inputs) -> None:
    norms = _norms(network, capture(network, inputs, proof=False))
    for name, layer in layers.items():
        old = deployed.get_submodule(name)
        host = dict(network.named_modules()).get(name)
        weight = getattr(host, "weight", None)
        if host is None or not isinstance(weight, nn.Parameter) or weight.shape != layer.weight.shape:
            raise _NoHostError(name)
        new_weight, old_weight = (cast(Tensor, one.weight).detach().double().cpu() for one in (layer, old))
        new_bias, old_bias = (_bias(one) for one in (layer, old))
        norm = norms.get(name)
        if norm is None:
            weight.copy_(weight.double() + new_weight - old_weight)
            _add(host.bias, new_bias - old_bias, name)
            continue
        shape = (-1, *[1] * (weight.ndim - 1))
        scale, mean, spread = _scale(norm), cast(Tensor, norm.running_mean).double(), _spread(norm)
        rest = old_weight - scale.reshape(shape) * weight.double()
        dead = scale.abs() <= _DEAD * scale.abs().max()
        used = torch.where(dead, torch.ones_like(scale), scale)
        weight.copy_((new_weight - rest) / used.reshape(shape))
        own = _bias(host)
        norm.weight.copy_(torch.where(dead, spread, norm.weight.double()))
        norm.bias.add_((new_bias - old_bias + (scale - used) * (own - mean)).to(norm.bias.dtype))


def _norms(network: nn.Module, graph: fx.GraphModule) -> dict[str, _BatchNorm]:
    """The norm that reads each layer, where nothing else does; whether it is called itself or calls ``batch_norm``."""
    found = {}
    modules = dict(network.named_modules())
    for node in graph.graph.find_nodes(op="call_module"):
        reader = next(iter(node.users), None)
        if reader is None or len(node.users) != 1:
            continue
        read = [str(reader.target)] if reader.op == "call_module" else []
        if reader.target is torch.nn.functional.batch_norm:
            read = [str(one.target).rpartition(".")[0] for one in reader.all_input_nodes if one.op == "get_attr"]
        norm = modules.get(read[0]) if read else None
        if isinstance(norm, _BatchNorm) and norm.affine and norm.running_mean is not None:
            found[str(node.target)] = norm
    return found


def _spread(norm: _BatchNorm) -> Tensor:
    return (cast(Tensor, norm.running_var).double() + norm.eps).sqrt()


def _scale(norm: _BatchNorm) -> Tensor:
    return norm.weight.double() / _spread(norm)


def _bias(layer: nn.Module) -> Tensor:
    bias = cast(Tensor | None, layer.bias)
    return torch.zeros(1, dtype=torch.float64) if bias is None else bias.detach().double().cpu()


def _add(bias: object, change: Tensor, name: str) -> None:
    if isinstance(bias, nn.Parameter):
        bias.add_(change.to(bias.dtype))
    elif bool(change.abs().max() > 0):
        raise _NoHostError(name)


def _same(deployed: nn.Module, name: str, layer: nn.Module) -> bool:
    again = dict(deployed.named_modules()).get(name)
    if again is None:
        return False
    largest = float(cast(Tensor, layer.weight).detach().abs().max())
    for key, wanted in layer.named_parameters():
        got = getattr(again, key, None)
        if got is None or got.shape != wanted.shape:
            return False
        size = max(largest, float(wanted.detach().abs().max())) if key == "bias" else largest
        if float((got.detach() - wanted.detach().cpu()).abs().max()) > SAME_WEIGHT * size:
            return False
    return True
