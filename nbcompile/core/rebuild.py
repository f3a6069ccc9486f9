"""Rebuild the leaf modules of a graph, and bound what a graph from a file would allocate."""

import inspect
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from nbcompile.core import allowed
from nbcompile.core.errors import CheckpointError
from nbcompile.core.example import TensorSpec
from nbcompile.core.serial import IDENTIFIER, NotSerialisable, decode, encode, match

MAX_ELEMENTS = 2**28
MAX_BYTES = 2**35


class Bounds(fx.Interpreter):
    """Runs a graph on ``meta`` tensors and refuses sizes that no network for a small device has."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self._bytes = 0

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and count what it made."""
        result = super().run_node(n)
        for tensor in _tensors(result):
            self._bytes += tensor.numel() * tensor.element_size()
            if tensor.numel() > MAX_ELEMENTS or self._bytes > MAX_BYTES:
                raise CheckpointError(
                    f"the graph would make a tensor of shape {tuple(tensor.shape)} at '{n.name}': at most "
                    f"{MAX_ELEMENTS:,} elements a tensor and {MAX_BYTES / 2**30:.0f} GiB in all are read from a file"
                )
        return result


def check_bounds(gm: fx.GraphModule, inputs: tuple[TensorSpec, ...]) -> None:
    """Prove on ``meta`` tensors that ``gm`` (itself on ``meta``) runs on its inputs, and in which sizes.

    Raises:
        CheckpointError: if it does not, or would allocate absurdly.
    """
    for spec in inputs:
        if math.prod(spec.shape) > MAX_ELEMENTS:
            raise CheckpointError(f"the recorded input has shape {spec.shape}: over {MAX_ELEMENTS:,} elements")
    values = [torch.empty(spec.shape, dtype=spec.dtype, device="meta") for spec in inputs]
    try:
        with torch.no_grad():
            Bounds(gm).run(*values)
    except CheckpointError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        raise CheckpointError(
            f"the graph does not run on its recorded inputs: {type(error).__name__}: {first}"
        ) from None


def module_to_json(module: nn.Module) -> dict[str, Any]:
    """Class and constructor arguments of a leaf module, read from the attributes of the same names.

    Raises:
        NotSerialisable: if it could not be rebuilt to the same shapes.
    """
    name = allowed.module_class_name(module)
    if name is None:
        raise NotSerialisable(f"a module of class {type(module).__module__}.{type(module).__qualname__}")
    arguments: dict[str, Any] = {}
    for parameter in inspect.signature(type(module).__init__).parameters.values():
        if parameter.name in ("self", "device", "dtype") or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            continue
        value = _constructor_argument(module, parameter.name)
        if value is not parameter.empty and _plain(value):
            arguments[parameter.name] = encode(value)
    data = {"class": name, "arguments": arguments}
    try:
        again = module_from_json(data)
    except CheckpointError as error:
        raise NotSerialisable(str(error)) from None
    if _shapes(again) != _shapes(module) or again.extra_repr() != module.extra_repr():
        raise NotSerialisable(f"a {type(module).__name__} that its own constructor arguments do not rebuild")
    return data


def module_from_json(data: Any) -> nn.Module:
    """The module that :func:`module_to_json` wrote, on ``meta``, in eval mode.

    Raises:
        CheckpointError: if its class is not allowed or does not take its arguments.
    """
    try:
        cls = allowed.module_class(data["class"])
        arguments = {match(IDENTIFIER, k, "argument"): decode(v, {}) for k, v in data["arguments"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the graph has a malformed module: {type(error).__name__}: {error}") from None
    try:
        with torch.device("meta"):
            return cls(**arguments).eval()
    except Exception as error:
        raise CheckpointError(f"a module of class '{data['class']}' cannot be built: {error}") from None


def resize(name: str, module: nn.Module, tensors: Mapping[str, Tensor], notes: list[str]) -> nn.Module:
    """``module``, or one of the size that its tensors in the file have: a head for another number of classes.

    Args:
        name: qualified name of the module.
        module: on ``meta``.
        tensors: the file's.
        notes: gets a sentence where the size changed.
    """
    weight = tensors.get(f"{name}.weight")
    own = module._parameters.get("weight")
    if weight is None or own is None or weight.shape == own.shape or weight.ndim != own.ndim:
        return module
    with torch.device("meta"):
        if isinstance(module, nn.Linear):
            new: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], module.bias is not None)
        elif isinstance(module, _BatchNorm):
            new = type(module)(weight.shape[0], module.eps, module.momentum, module.affine, module.track_running_stats)
        elif isinstance(module, _ConvNd) and not module.transposed and weight.shape[2:] == own.shape[2:]:
            data = module_to_json(module)
            data["arguments"] |= {"out_channels": weight.shape[0], "in_channels": weight.shape[1] * module.groups}
            new = module_from_json(data)
        else:
            return module
    notes.append(
        f"'{name}' was rebuilt to {tuple(weight.shape)}, as the file holds it; the record has {tuple(own.shape)}"
    )
    return new.eval()


def _constructor_argument(module: nn.Module, name: str) -> Any:
    if name == "bias" and isinstance(module, nn.MultiheadAttention):
        return module.in_proj_bias is not None
    if name in ("add_bias_kv",):
        return cast(nn.MultiheadAttention, module).bias_k is not None
    value = getattr(module, name, inspect.Parameter.empty)
    if name == "bias" and (value is None or isinstance(value, torch.Tensor)):
        return value is not None
    return value


def _plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in _tensors(v)] if isinstance(value, (tuple, list)) else []
