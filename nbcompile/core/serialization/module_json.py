"""The leaf modules of a graph as JSON, and back."""

import inspect
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from nbcompile.core.errors import CheckpointError
from nbcompile.core.layers import why_changed
from nbcompile.core.serialization import allow_list
from nbcompile.core.serialization.bounds import bounded
from nbcompile.core.serialization.graph_json import IDENTIFIER, NotSerialisable, decode_argument, encode_argument, match


def module_to_json(module: nn.Module) -> dict[str, Any]:
    """Class and constructor arguments of a leaf module, read from the attributes of the same names.

    Raises:
        NotSerialisable: if it could not be rebuilt to the same shapes.
    """
    name = allow_list.module_class_name(module)
    if name is None:
        raise NotSerialisable(f"a module of class {type(module).__module__}.{type(module).__qualname__}")
    if reason := why_changed(module):
        raise NotSerialisable(f"a {type(module).__name__}: {reason}")
    arguments: dict[str, Any] = {}
    for parameter in _constructor_parameters(type(module)):
        value = _constructor_argument(module, parameter.name)
        if _plain(value):
            arguments[parameter.name] = encode_argument(value)
        elif parameter.default is not None:
            raise NotSerialisable(f"a {type(module).__name__}, which does not tell its argument '{parameter.name}'")
    data = {"class": name, "arguments": arguments}
    try:
        again = _looks(json.dumps(data))
    except CheckpointError as error:
        raise NotSerialisable(str(error)) from None
    if again != (_shapes(module), module.extra_repr()):
        raise NotSerialisable(f"a {type(module).__name__} that its own constructor arguments do not rebuild")
    return data


@lru_cache
def _looks(data: str) -> tuple[dict[str, tuple[int, ...]], str]:
    """Shapes and representation of what is read of ``data``: most modules of a network have twins."""
    made = module_from_json(json.loads(data))
    return _shapes(made), made.extra_repr()


def module_from_json(data: Any) -> nn.Module:
    """The module that :func:`module_to_json` wrote, on ``meta``, in eval mode.

    Raises:
        CheckpointError: if its class is not allowed or does not take its arguments.
    """
    try:
        cls = allow_list.module_class(data["class"])
        arguments = {match(IDENTIFIER, k, "argument"): decode_argument(v, {}) for k, v in data["arguments"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the graph has a malformed module: {type(error).__name__}: {error}") from None
    try:
        with bounded():
            return cls(**arguments).eval()
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise CheckpointError(f"a module of class '{data['class']}' cannot be built: {said}") from None


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
    with bounded():
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


def _constructor_parameters(cls: type[nn.Module]) -> list[inspect.Parameter]:
    """What the constructor takes, but for where the module is and what it is filled with."""
    parameters = dict(inspect.signature(cls.__init__).parameters)
    skipped = {"self", "device", "dtype"}
    if issubclass(cls, nn.RNNBase):  # GRU, LSTM and RNN hand on what they are given
        parameters |= inspect.signature(nn.RNNBase.__init__).parameters
        skipped |= {"mode"} if cls is nn.LSTM else {"mode", "proj_size"}
    if cls is nn.RNN:
        parameters["nonlinearity"] = inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY)
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p for name, p in parameters.items() if p.kind not in variable and name not in skipped and name[0] != "_"]


def _constructor_argument(module: nn.Module, name: str) -> Any:
    if name == "bias" and isinstance(module, nn.MultiheadAttention):
        return module.in_proj_bias is not None
    if name == "add_bias_kv":
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
