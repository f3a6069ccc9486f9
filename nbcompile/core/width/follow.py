"""Follows channels through a run of the network: each tensor gets labels of its shape, each operator has a rule."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from nbcompile.core.graph.operators import of_function
from nbcompile.core.tracing.places import code_place
from nbcompile.core.width.labels import GROUPS, NO_CHANNEL, Labels, Slot, counted
from nbcompile.core.width.numbers import KeptNumber

Kinds = dict[tuple[Any, ...], int]
"""Numbers for whatever channels have in common; the same in all runs that share them."""

_NO_TENSORS = (torch.Size, int, float, str, torch.dtype, torch.device)


class Follow(TorchFunctionMode):
    """Sees every function of torch that the network calls.

    Attributes:
        labels: who is who.
        rule_of: how the result of a function gets its labels.
        read: labels by position of each slot that reads channels: the inputs of a convolution, a norm's numbers.
        grouped: of the weight of a convolution in groups, how many inputs and outputs a group has.
        names: of the network's own tensors, by identity.
        several: names of tensors that have another name, too.
        calls: every function, and what it gave.
        modes: whether it is run in train mode, or in both one after the other.
    """

    def __init__(
        self,
        model: nn.Module,
        rule_of: Callable[[Callable[..., Any]], Callable[..., None]],
        device: torch.device,
        modes: tuple[bool, ...] = (False,),
    ) -> None:
        super().__init__()
        self.rule_of, self.modes = rule_of, modes
        self.labels = Labels()
        self.read: dict[Slot, Tensor] = {}
        self.grouped: dict[str, tuple[int, int]] = {}
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self.names = {id(tensor): name for name, tensor in reversed(named)}
        self.several = {name for name, tensor in named if self.names[id(tensor)] != name}
        self.calls: list[tuple[Callable[..., Any], Any]] = []
        self._own = [tensor for _, tensor in named]
        self._device = device
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call ``func``, and label what it gives."""
        kwargs = kwargs or {}
        result, labelled = self.called(func, args, kwargs)
        self.calls.append((func, result))
        if labelled or isinstance(result, _NO_TENSORS):  # who asks for a size gives none
            return result
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        channels = any(id(x) in self._known or id(x) in self.names for x in tensors)
        gives = any(isinstance(x, Tensor) for x in tree_leaves(result)) or func is Tensor.__setitem__
        if channels and gives:
            self.rule_of(func)(self, func, args, kwargs, result)
        return result

    def called(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, bool]:
        """What ``func`` gives, and whether it has its labels already."""
        if args and isinstance(args[0], Tensor) and args[0].is_floating_point() and _keeps_shape(func, args, kwargs):
            return torch.empty_like(args[0]), False  # on meta these run in Python, and take milliseconds
        with self._device:  # what is made anew is there, too
            return func(*args, **kwargs), False

    def of(self, tensor: Any) -> Tensor | None:
        """The labels of a tensor, of its shape; None where it has no channels."""
        if not isinstance(tensor, Tensor):
            return None
        if id(tensor) in self._known:
            return self.labels.roots(compact(self._known[id(tensor)][1])).expand(tensor.shape)
        name = self.names.get(id(tensor))
        if name is None:
            return None
        wide = [dim for dim, size in enumerate(tensor.shape) if size > 1]
        if len(wide) != 1 or not isinstance(tensor, nn.Parameter):
            return None
        return self.along(self.labels.born(Slot(name, wide[0]), tensor.shape[wide[0]]).labels(), tensor, wide[0])

    def kinds(self, known: Kinds) -> Tensor:
        """``(n,)``: by root, a number for what makes and reads it, and how often: a flattened map does at every place.

        What a convolution in groups reads is of a kind if what it makes of it is, too.
        """
        of = torch.zeros(len(self.labels.root), dtype=torch.int64, device="cpu")

        def note(roots: Tensor, numbers: Tensor, *what: Any) -> None:
            """Those of one number are of one kind from here on."""
            many = int(numbers.max()) + 1 if len(numbers) else 1
            pairs, which = torch.unique(of[roots] * many + numbers, return_inverse=True)
            new = [known.setdefault((*what, *divmod(pair, many)), len(known) + 1) for pair in pairs.tolist()]
            of[roots] = torch.tensor(new, dtype=torch.int64, device="cpu")[which]

        slots = {slot: block.labels() for slot, block in self.labels.blocks.items()} | self.read
        for slot in sorted(slots):
            note(*counted(self.labels.roots(slots[slot])), slot)
        for name, (read, written) in reversed(self.grouped.items()):
            made = of[self.labels.roots(self.labels.blocks[Slot(name, 0)].labels())].view(-1, written)
            groups = [known.setdefault((name, *row), len(known) + 1) for row in made.tolist()]
            given = self.labels.roots(self.read[Slot(name, GROUPS)]).view(-1, read)
            for place in range(read):
                note(given[:, place], torch.tensor(groups, dtype=torch.int64, device="cpu"), name, place)
        return of

    def slots(self) -> set[Slot]:
        """All that write channels or read them."""
        return {*self.labels.blocks, *self.read}

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
        """``(size,)``: what the positions along ``dim`` are; those of other places meet, for they are read as one."""
        if labels is None:
            return torch.zeros(size, dtype=torch.int64, device="cpu")
        flat = compact(labels, keep=dim).movedim(dim, 0).flatten(1)
        first = flat[:, 0].clone()
        if not bool((flat == flat[:, :1]).all()):
            self.labels.meet(flat, flat[:, :1], why)
            first[(flat == NO_CHANNEL).any(1)] = NO_CHANNEL
        return first

    def reads(self, tensor: Any, dim: int, labels: Tensor) -> None:
        """The slot of ``tensor``, if it is the network's own, has these channels; with what else it reads they meet."""
        name = self.name(tensor)
        if name is None:
            if isinstance(tensor, Tensor):
                self.labels.freeze(labels, f"a computed weight reads it at {code_place()}")
            return
        if name in self.several:
            self.labels.freeze(labels, f"'{name}' has several names")
        self._note(Slot(name, dim), labels)

    def counts(self, number: KeptNumber, tensor: Tensor, dim: int) -> None:
        """``number`` is how many channels ``tensor`` has there, if it has some, and nothing else elsewhere."""
        if (labels := self.of(tensor)) is None:
            return
        flat = compact(labels, keep=dim).movedim(dim, 0).flatten(1)
        if bool(flat.all()) and bool((flat == flat[:, :1]).all()):
            self._note(number.slot, flat[:, 0].clone())

    def _note(self, slot: Slot, labels: Tensor) -> None:
        if slot not in self.read:
            self.read[slot] = labels
        elif len(labels) != len(self.read[slot]):
            self.labels.freeze(labels, f"'{slot.tensor}' is another number elsewhere")
        else:
            why = f"'{slot.tensor}' reads it, and what has a fixed number of channels"
            self.labels.meet(self.read[slot], labels, why)

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


def _keeps_shape(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether ``func`` is an activation, or a batch norm that has a number for every channel."""
    row = of_function(func)
    if getattr(func, "__name__", "") == "batch_norm" and args[0].ndim > 1:
        numbers = [x for x in (*args[1:], *kwargs.values()) if isinstance(x, Tensor)]
        return all(x.shape == args[0].shape[1:2] for x in numbers)
    return row.activation and row.elementwise and not row.per_channel


def compact(labels: Tensor, keep: int | None = None) -> Tensor:
    """Without the repetitions of dimensions that were expanded."""
    for dim in range(labels.ndim):
        if dim != keep and labels.size(dim) > 1 and labels.stride(dim) == 0:
            labels = labels.narrow(dim, 0, 1)
    return labels


def same_along(labels: Tensor, dim: int) -> bool:
    """Whether all positions of a dimension have the same labels."""
    if labels.size(dim) < 2 or labels.stride(dim) == 0:
        return True
    return bool((labels == labels.narrow(dim, 0, 1)).all())


def freeze(follow: Follow, func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Nothing is known of it."""
    why = f"'{getattr(func, '__name__', func)}' is not understood at {code_place()}"
    follow.freeze((*tree_leaves((args, kwargs)), *tree_leaves(result)), why)
    for value in tree_leaves(result):
        if isinstance(value, Tensor):
            follow.put(value, None)


ChannelRule = Callable[[Follow, Callable[..., Any], tuple[Any, ...], dict[str, Any], Any], None]
"""Labels what a function gave, from the labels of what it was given."""
