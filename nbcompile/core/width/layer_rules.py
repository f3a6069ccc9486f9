"""How layers hand channels on: what reads them, what makes new ones, what has a number for each."""

from typing import Any

from torch import Tensor

from nbcompile.core.tracing.places import code_place
from nbcompile.core.width.follow import ChannelRule, Follow, freeze, same_along
from nbcompile.core.width.labels import GROUPS


def _bound(func: Any, names: str, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments by their names; builtins have no signature."""
    return {**dict(zip(names.split(), args, strict=False)), **kwargs}


def _convolution(follow: Follow, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
    got = _bound(func, "input weight bias stride padding dilation groups", args, kwargs)
    weight, groups = got["weight"], got.get("groups", 1)
    channels = 1 if result.ndim == weight.ndim else 0
    why = f"'{func.__name__}' is not given it as channels at {code_place()}"
    read = follow.across(follow.of(got["input"]), got["input"].size(channels), channels, why)
    born = follow.writes(weight, 0)
    if groups == 1:
        follow.reads(weight, 1, read)
    else:
        _note_groups(follow, weight, weight.size(1), weight.size(0) // groups)
        follow.reads(weight, GROUPS, read)
    if got.get("bias") is not None:
        follow.reads(got["bias"], 0, born)
    follow.put(result, follow.along(born, result, channels))


def _note_groups(follow: Follow, weight: Tensor, read: int, written: int) -> None:
    name = follow.name(weight)
    if name is not None:
        follow.grouped[name] = read, written


def _transposed(follow: Follow, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
    got = _bound(func, "input weight bias stride padding output_padding groups dilation", args, kwargs)
    if got.get("groups", 1) != 1:
        return freeze(follow, func, args, kwargs, result)
    weight = got["weight"]
    channels = 1 if result.ndim == weight.ndim else 0
    why = f"'{func.__name__}' is not given it as channels at {code_place()}"
    follow.reads(weight, 0, follow.across(follow.of(got["input"]), got["input"].size(channels), channels, why))
    born = follow.writes(weight, 1)
    if got.get("bias") is not None:
        follow.reads(got["bias"], 0, born)
    return follow.put(result, follow.along(born, result, channels))


def _linear(follow: Follow, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
    got = _bound(func, "input weight bias", args, kwargs)
    weight, last, labels = got["weight"], got["input"].ndim - 1, follow.of(got["input"])
    why = f"'linear' is not given it as features at {code_place()}"
    born = follow.writes(weight, 0)
    if labels is not None and weight.size(1) > 1 and same_along(labels, last):  # it mixes places, each channel's own
        follow.labels.freeze(born, f"'linear' mixes places with it at {code_place()}")
        return follow.put(result, labels.narrow(last, 0, 1))
    follow.reads(weight, 1, follow.across(labels, got["input"].size(last), last, why))
    if got.get("bias") is not None:
        follow.reads(got["bias"], 0, born)
    return follow.put(result, follow.along(born, result, last))


def _per_channel(words: str, numbers: str) -> ChannelRule:
    """A norm or activation with a number for each channel, dimension 1, and other arguments between."""

    def rule(follow: Follow, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
        got = _bound(func, words, args, kwargs)
        labels = follow.of(got["input"])
        why = f"'{func.__name__}' is not given it as channels at {code_place()}"
        read = follow.across(labels, got["input"].size(1), 1, why)
        for name in numbers.split():
            if got.get(name) is not None and got[name].numel() > 1:
                follow.reads(got[name], 0, read)
        follow.put(result, follow.along(read, result, 1))

    return rule


def _last(follow: Follow, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
    got = _bound(func, "input normalized_shape weight bias", args, kwargs)
    if len(got["normalized_shape"]) != 1:
        return freeze(follow, func, args, kwargs, result)
    last = result.ndim - 1
    why = f"'{func.__name__}' is not given it as features at {code_place()}"
    read = follow.across(follow.of(got["input"]), got["input"].size(last), last, why)
    for name in ("weight", "bias"):
        if isinstance(got.get(name), Tensor):
            follow.reads(got[name], 0, read)
    return follow.put(result, follow.along(read, result, last))


def _group_norm(follow: Follow, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
    groups = _bound(func, "input num_groups weight bias", args, kwargs)["num_groups"]
    if groups > 1:  # which channels a group holds would change
        return freeze(follow, func, args, kwargs, result)
    return _per_channel("input num_groups weight bias", "weight bias")(follow, func, args, kwargs, result)


def _embedding(follow: Follow, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
    weight = _bound(func, "input weight", args, kwargs)["weight"]
    follow.put(result, follow.along(follow.writes(weight, 1), result, result.ndim - 1))


OF_LAYERS: dict[str, ChannelRule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    "linear": _linear,
    "batch_norm": _per_channel("input running_mean running_var weight bias", "running_mean running_var weight bias"),
    "instance_norm": _per_channel("input running_mean running_var weight bias", "running_mean running_var weight bias"),
    "prelu": _per_channel("input weight", "weight"),
    "group_norm": _group_norm,
    "layer_norm": _last,
    "rms_norm": _last,
    "embedding": _embedding,
}
