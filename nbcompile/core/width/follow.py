"""Follows channels through a run of the network: each tensor gets labels of its shape, each operator has a rule."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from nbcompile.core.tracing.places import code_place
from nbcompile.core.width.labels import Labels, Slot

Readers = frozenset[tuple[Slot, int]]


class Follow(TorchFunctionMode):
    """Sees every function of torch that the network calls.

    Attributes:
        labels: who is who.
        rule_of: how the result of a function gets its labels.
        read: labels by position of each slot that reads channels: the inputs of a convolution, a norm's numbers.
        grouped: of the weight of a convolution in groups, how many inputs and outputs a group has.
        names: of the network's own tensors, by identity.
        several: names of tensors that have another name, too.
    """

    def __init__(self, model: nn.Module, rule_of: Callable[[Callable[..., Any]], Callable[..., None]]) -> None:
        super().__init__()
        self.rule_of = rule_of
        self.labels = Labels()
        self.read: dict[Slot, Tensor] = {}
        self.grouped: dict[str, tuple[int, int]] = {}
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self.names = {id(tensor): name for name, tensor in reversed(named)}
        self.several = {name for name, tensor in named if self.names[id(tensor)] != name}
        self._own = [tensor for _, tensor in named]
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, and label what it gives."""
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        channels = any(id(x) in self._known or id(x) in self.names for x in tensors)
        result = func(*args, **kwargs)
        gives = any(isinstance(x, Tensor) for x in tree_leaves(result)) or func is Tensor.__setitem__
        if channels and gives:  # who asks for a size gives none
            self.rule_of(func)(self, func, args, kwargs, result)
        return result

    def of(self, tensor: Any) -> Tensor | None:
        """The labels of a tensor, of its shape; None where it has no channels."""
        if not isinstance(tensor, Tensor):
            return None
        if id(tensor) in self._known:
            return self._known[id(tensor)][1]
        name = self.names.get(id(tensor))
        if name is None:
            return None
        wide = [dim for dim, size in enumerate(tensor.shape) if size > 1]
        if len(wide) != 1 or not isinstance(tensor, nn.Parameter):
            return None
        return self.along(self.labels.born(Slot(name, wide[0]), tensor.shape[wide[0]]).labels(), tensor, wide[0])

    def readers(self) -> list[Readers]:
        """By root, the slots that read it, and how often: a flattened map has a channel once for every place."""
        by_root: list[set[tuple[Slot, int]]] = [set() for _ in self.labels.parent]
        for slot, labels in self.read.items():
            for root, times in Counter(self.labels.roots(labels)).items():
                by_root[root].add((slot, times))
        return [frozenset(slots) for slots in by_root]

    def name(self, tensor: Any) -> str | None:
        """Of one of the network's own tensors."""
        return self.names.get(id(tensor)) if isinstance(tensor, Tensor) else None

    def put(self, tensor: Tensor, labels: Tensor | None) -> None:
        """``labels``, of the tensor's shape or one that can be expanded to it."""
        if labels is None or not bool(labels.any()):
            self._known.pop(id(tensor), None)
        else:
            self._known[id(tensor)] = tensor, labels.expand(tensor.shape)  # held, lest its identity be given away

    @staticmethod
    def along(labels: Tensor, tensor: Tensor, dim: int) -> Tensor:
        """``(n,)`` as the labels of ``tensor``, whose dimension ``dim`` they number."""
        shape = [1] * tensor.ndim
        shape[dim] = -1
        return labels.view(shape).expand(tensor.shape)

    def across(self, labels: Tensor | None, size: int, dim: int, why: str) -> Tensor:
        """``(size,)``: what the positions along ``dim`` are; where others differ, they are frozen, and 0 is given."""
        if labels is None:
            return torch.zeros(size, dtype=torch.int64, device="cpu")
        flat = compact(labels, keep=dim).movedim(dim, 0).flatten(1)
        if not bool((flat == flat[:, :1]).all()):
            self.labels.freeze(flat, why)
            return torch.zeros(size, dtype=torch.int64, device="cpu")
        return flat[:, 0].clone()

    def reads(self, tensor: Any, dim: int, labels: Tensor) -> None:
        """The slot of ``tensor``, if it is the network's own, has these channels; with what else it reads they meet."""
        name = self.name(tensor)
        if name is None:
            if isinstance(tensor, Tensor):
                self.labels.freeze(labels, f"a computed weight reads it at {code_place()}")
            return
        slot = Slot(name, dim)
        if name in self.several:
            self.labels.freeze(labels, f"'{name}' has several names")
        if slot in self.read:
            self.labels.meet(self.read[slot], labels, f"'{name}' reads it, and what has a fixed number of channels")
        else:
            self.read[slot] = labels

    def writes(self, tensor: Any, dim: int) -> Tensor:
        """The channels that are born in ``tensor``: ``(n,)``; fixed where it is not the network's own."""
        name = self.name(tensor)
        if name is None:
            return torch.zeros(tensor.shape[dim], dtype=torch.int64, device="cpu")
        block = self.labels.born(Slot(name, dim), tensor.shape[dim])
        if name in self.several:
            self.labels.freeze(block.labels(), f"'{name}' has several names")
        return block.labels()

    def freeze(self, values: Iterable[Any], why: str) -> None:
        """All channels of ``values`` keep their number."""
        for value in values:
            if (labels := self.of(value)) is not None:
                self.labels.freeze(compact(labels), why)


def compact(labels: Tensor, keep: int | None = None) -> Tensor:
    """Without the repetitions of dimensions that were expanded."""
    for dim in range(labels.ndim):
        if dim != keep and labels.size(dim) > 1 and labels.stride(dim) == 0:
            labels = labels.narrow(dim, 0, 1)
    return labels


def freeze(follow: Follow, func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Nothing is known of it."""
    why = f"'{getattr(func, '__name__', func)}' is not understood at {code_place()}"
    follow.freeze((*tree_leaves((args, kwargs)), *tree_leaves(result)), why)
    for value in tree_leaves(result):
        if isinstance(value, Tensor):
            follow.put(value, None)


ChannelRule = Callable[[Follow, Callable[..., Any], tuple[Any, ...], dict[str, Any], Any], None]
"""Labels what a function gave, from the labels of what it was given."""
