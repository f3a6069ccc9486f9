"""How each operator hands channels on; what is in no rule freezes them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from nbcompile.core.example import Inputs
from nbcompile.core.graph.operators import of_function
from nbcompile.core.random_state import forked_rng
from nbcompile.core.tracing.places import code_place
from nbcompile.core.width.follow import ChannelRule, Follow, compact, freeze, same_along
from nbcompile.core.width.layer_rules import OF_LAYERS
from nbcompile.core.width.numbers import KeptNumber, mark_numbers_


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MIXES = _words("mean sum amax amin std var logsumexp norm prod all any")
_ALONE = _words("sqrt rsqrt exp log abs square round floor erf sin cos reciprocal clamp clamp_min clamp_max zeros_like")
_ALONE |= _words(
    "ones_like nan_to_num masked_fill to type type_as float double half bfloat16 contiguous detach cpu clone"
)
_ALONE |= _words("softmax log_softmax softmin normalize cumsum")  # mix what is beside an element, as many as it may be
_MOVES = _words(
    "getitem chunk split tensor_split hsplit vsplit dsplit split_with_sizes unbind transpose t adjoint permute"
)
_MOVES |= _words("unsafe_chunk unsafe_split unsafe_split_with_sizes moveaxis movedim swapaxes swapdims broadcast_to")
_MOVES |= _words("expand expand_as narrow select index_select cat concat concatenate stack roll flip channel_shuffle")
_TOGETHER = _words("maximum minimum where lerp addcmul eq ne lt le gt ge pow rpow ipow")


def rule_of(function: Callable[..., Any]) -> ChannelRule:
    """The rule for a function of torch or a method of tensors."""
    name = getattr(function, "__name__", "").strip("_")
    row = of_function(function)
    if name in OF_LAYERS:
        return OF_LAYERS[name]
    if row.broadcasts or name in _TOGETHER:
        return together
    if name in _MIXES:
        return mixed
    if name == "pad":
        return with_padding
    if row.reshapes or name in _MOVES:
        return moved
    if name == "glu":
        return gated
    if name.startswith("new_"):  # it is asked for its dtype and device
        return nothing
    if row.identity or row.elementwise or row.activation or name in _ALONE:
        return alone
    return over_maps if row.channelwise else freeze


def moved(follow: Follow, func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Elements go elsewhere: done with their labels, too."""
    source = next(x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))

    def labels(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        known = follow.of(value)
        if known is None and value is not source and value.dtype in (torch.int64, torch.bool):
            if value.is_meta:
                raise RuntimeError("an index whose values are not known")
            return value
        return torch.zeros(value.shape, dtype=torch.int64, device="cpu") if known is None else known

    if not any(follow.of(x) is not None for x in tree_leaves((args, kwargs))):
        return None
    try:
        given = tree_map(labels, (args, kwargs))
        try:
            there = func(*given[0], **given[1])
        except RuntimeError:  # a view of what is expanded
            given = tree_map(lambda x: x.contiguous() if isinstance(x, Tensor) else x, given)
            there = func(*given[0], **given[1])
    except Exception:
        return freeze(follow, func, args, kwargs, result)
    for value, known in zip(tree_leaves(result), tree_leaves(there), strict=True):
        if isinstance(value, Tensor):
            follow.put(value, known)
    if func is Tensor.__getitem__:
        _note_ends(follow, args[1], result)
    elif getattr(func, "__name__", "").endswith("split"):
        _note_parts(follow, args, kwargs, result)
    elif getattr(func, "__name__", "") in ("view", "reshape"):
        for dim, size in enumerate(args[1] if isinstance(args[1], list | tuple) else args[1:]):
            if isinstance(size, KeptNumber) and size == size.whole:
                follow.counts(size, result, dim)
    return None


def _note_ends(follow: Follow, index: Any, result: Tensor) -> None:
    """A module's own number that channels are cut off at grows with them."""
    for dim, part in enumerate(index if isinstance(index, tuple) else (index,)):
        if not isinstance(part, slice):  # dimensions go, or come
            return
        if isinstance(part.stop, KeptNumber) and not part.start and result.size(dim) == part.stop == part.stop.whole:
            follow.counts(part.stop, result, dim)


def _note_parts(follow: Follow, args: Any, kwargs: Any, result: Any) -> None:
    """And those of the parts of a split, or that of all."""
    sizes = kwargs.get("split_size_or_sizes", kwargs.get("split_size", args[1] if len(args) > 1 else None))
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
    if isinstance(sizes, KeptNumber) and args and args[0].size(dim) == sizes.whole:
        follow.counts(sizes, args[0], dim % args[0].ndim)
    else:
        parts = sizes if isinstance(sizes, list | tuple) else [sizes] * len(result)
        for part, size in zip(result, parts, strict=False):
            if isinstance(size, KeptNumber) and part.size(dim) == size == size.whole:
                follow.counts(size, part, dim % part.ndim)


def nothing(follow: Follow, func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """No channels."""


def gated(follow: Follow, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
    """One half is multiplied by what the other is."""
    labels = follow.of(args[0] if args else kwargs["input"])
    if labels is None:
        return
    one, other = labels.chunk(2, kwargs.get("dim", args[1] if len(args) > 1 else -1))
    follow.labels.meet(compact(one), compact(other), f"'glu' multiplies it by a fixed number at {code_place()}")
    follow.put(result, one)


def alone(follow: Follow, func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """An element of the output is one of the input, or mixes what is beside it in a way that any number can."""
    source = next(x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
    labels = follow.of(source)
    if not isinstance(result, Tensor) or result.shape != source.shape:
        return freeze(follow, func, args, kwargs, result)
    return follow.put(result, labels)


def together(follow: Follow, func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Channels at one place of several values meet; who has one number for all does not ask."""
    values = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    numbers = [_numbers(follow, value, values) for value in values]
    why = f"'{getattr(func, '__name__', func)}' joins it with a fixed number of channels at {code_place()}"
    met: Tensor | None = None
    for labels in numbers:
        if labels is not None:
            met = labels if met is None else _meet(follow, met, labels, why)
    for value, labels in zip(values, numbers, strict=True):
        if labels is None and met is not None:
            varying = [d - met.ndim for d in range(met.ndim) if not same_along(met, d)]
            if any(-d <= value.ndim and value.size(d) > 1 for d in varying):
                follow.labels.freeze(compact(met), why)
                met = None
    follow.put(result, met)


def _numbers(follow: Follow, value: Tensor, values: list[Tensor]) -> Tensor | None:
    """Its labels; of the network's own tensor of several dimensions, along that in which the others have channels."""
    labels = follow.of(value)
    name = follow.name(value)
    if labels is not None or name is None or not isinstance(value, torch.nn.Parameter):
        return labels
    others = [known for x in values if x is not value and (known := follow.of(x)) is not None]
    along = {d - x.ndim for x in others for d in range(x.ndim) if not same_along(x, d)}
    along = {d for d in along if -d <= value.ndim and value.size(d) > 1}
    if not along:
        return None

    def different(d: int) -> int:
        return len({label for x in others if d >= -x.ndim for label in x.movedim(d, 0).flatten(1)[:, 0].tolist()})

    dim = max(along, key=different) + value.ndim
    return follow.along(follow.writes(value, dim), value, dim)


def _meet(follow: Follow, a: Tensor, b: Tensor, why: str) -> Tensor:
    """The labels of what is made of both: where one has a single number for all places, the other's."""
    one, other = compact(a), compact(b)
    ndim = max(one.ndim, other.ndim)
    one, other = (x.view(*(1,) * (ndim - x.ndim), *x.shape) for x in (one, other))
    spread = [d for d in range(ndim) if 1 in (one.size(d), other.size(d)) and one.size(d) != other.size(d)]
    if any(not bool(x.any()) for x in (one, other)):
        return a if bool(one.any()) else b
    varies = [{d for d in range(ndim) if not same_along(x, d)} for x in (one, other)]
    if not (varies[0] & varies[1]) and spread:  # along different dimensions: the outer product of channels
        follow.labels.freeze(one, why)
        follow.labels.freeze(other, why)
        return torch.zeros(1, dtype=torch.int64, device="cpu")
    follow.labels.meet(one, other, why)
    return a if a.numel() >= b.numel() else b


def mixed(follow: Follow, func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """A reduction: channels that are mixed are gone, others stay; maps of channels that are summed meet."""
    source = args[0] if args else kwargs["input"]
    labels = follow.of(source)
    if labels is None or not isinstance(result, Tensor):
        return None if labels is None else freeze(follow, func, args, kwargs, result)
    dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
    if func.__name__ == "norm":
        dim = kwargs.get("dim", args[2] if len(args) > 2 else None)
    asked = range(source.ndim) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    dims = sorted({d % source.ndim for d in asked}, reverse=True)
    keep = result.ndim == source.ndim
    stays = any(not same_along(labels, d) for d in range(labels.ndim) if d not in dims)
    why = f"'{func.__name__}' joins it with a fixed number of channels at {code_place()}"
    for d in dims:
        first = labels.narrow(d, 0, 1)
        if not same_along(labels, d):
            if stays:
                follow.labels.meet(compact(labels), compact(first, keep=d), why)
            else:
                first = torch.zeros_like(first)
        labels = first
    for d in dims if not keep else ():
        labels = labels.squeeze(d)
    return follow.put(result, labels)


def over_maps(follow: Follow, func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Pooling, padding, resizing: a channel of the output is the one of the input."""
    source = next(x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
    results = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
    labels = follow.of(source)
    if labels is None:
        return None
    axes = min((d for d in range(labels.ndim) if _rest_is_same(labels, d)), default=labels.ndim)
    for value in results:
        if value.ndim != source.ndim or value.shape[:axes] != source.shape[:axes]:
            return freeze(follow, func, args, kwargs, result)
    for value in results:
        narrow = labels
        for d in range(axes, labels.ndim):
            narrow = narrow.narrow(d, 0, 1)
        follow.put(value, narrow)
    return None


def with_padding(follow: Follow, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
    """What is new along channels is none."""
    got = {**dict(zip(("input", "pad", "mode"), args, strict=False)), **kwargs}
    if (labels := follow.of(got["input"])) is None:
        return None
    pad = list(got["pad"])
    for n in range(len(pad) // 2):
        if same_along(labels, dim := labels.ndim - 1 - n):
            labels = labels.narrow(dim, 0, 1)
            pad[2 * n : 2 * n + 2] = 0, 0
    if any(pad) and got.get("mode", "constant") != "constant":
        return freeze(follow, func, args, kwargs, result)
    return follow.put(result, torch.nn.functional.pad(labels, pad) if any(pad) else labels)


def _rest_is_same(labels: Tensor, first: int) -> bool:
    return all(same_along(labels, d) for d in range(first, labels.ndim))


def followed(
    model: nn.Module, inputs: Inputs, modes: tuple[bool, ...] = (False,), look: Callable[..., Follow] = Follow
) -> Follow:
    """The channels of one run of ``model`` on ``inputs``, or of one in each mode; what it gives keeps its number.

    Args:
        model: a copy of the caller's, which is changed.
        inputs: of ``forward``.
        modes: of the runs, one after the other: some layers run in train mode only.
        look: makes what follows them.
    """
    device = next((tensor.device for tensor in tree_leaves(inputs)), torch.device("cpu"))
    mark_numbers_(model)
    follow = look(model, rule_of, device, modes)
    for training in modes:
        model.train(training)
        with forked_rng(), torch.no_grad(), follow:
            output = model(*inputs)
        follow.freeze(tree_leaves(output), "the network's output has it")
    return follow
