"""What branches make of a layer's gradients and updates, put between a network and its optimizer."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from nbcompile.core.errors import UsageError
from nbcompile.reparam.branches import Branch, Multiplier


class _Handle(Protocol):
    def remove(self) -> None: ...


class GradReparam:
    """What `grad_reparam` found: the branches of each layer, and what they do to its gradient.

    Attributes:
        branches: kinds of branches, by the names of the layers that have more than their own.
        multipliers: by the names of their weights, of the same shapes: ``sum_i s_i²`` over the branches that reach an
            entry. What average pooling adds to them is a sum over the kernel, and not in here.
    """

    def __init__(self, found: Mapping[str, tuple[nn.Parameter, list[Branch]]]) -> None:
        self._found = dict(found)
        self._all = {parameter: Multiplier.of(branches) for parameter, branches in found.values()}
        self._handles: list[_Handle] = []

    @property
    def branches(self) -> dict[str, tuple[str, ...]]:
        """See the class."""
        return {name: tuple(branch.kind for branch in branches) for name, (_, branches) in self._found.items()}

    @property
    def multipliers(self) -> dict[str, Tensor]:
        """See the class."""
        return {f"{name}.weight" if name else "weight": self._all[p].entries for name, (p, _) in self._found.items()}

    def attach(self, optimizer: Optimizer | None = None) -> None:
        """From now on the layers learn as their branches would; a second call changes nothing.

        With SGD every gradient is multiplied as it is computed, before it is added to ``.grad``: once, however many
        parts a batch has, before processes exchange it, and as well scaled (AMP) as not. That is equal to SGD on the
        branches at any momentum, with Nesterov or without. Weight decay is not multiplied, and is that of every branch
        alike: ``sum_i s_i E_i((1 - d) W_i) = (1 - d) W``. What is not linear in gradients, such as clipping their norm,
        is not equal to itself on the branches.

        With AdamW the update is multiplied, by ``sum_i s_i``, after each of its steps, and decoupled weight decay is
        not. That is equal to AdamW on the branches as far as its ``eps`` is small beside the gradients: theirs are
        ``s_i`` times as large.

        Args:
            optimizer: an ``SGD``, or an ``AdamW`` (also an ``Adam`` without weight decay) of the network; None is an
                SGD that need not exist yet.

        Raises:
            UsageError: for another optimizer, and for AdamW with average pooling: the parts of such a branch's gradient
                are added up before Adam squares them.
        """
        if self._handles:
            return
        optimizer = getattr(optimizer, "optimizer", optimizer)  # inside of Accelerate's
        if optimizer is None or isinstance(optimizer, SGD):
            hooks = [(parameter, partial(_multiplied, self._all, parameter)) for parameter in self._all]
            self._handles = [parameter.register_hook(hook) for parameter, hook in hooks]  # type: ignore[no-untyped-call]
        else:
            self._check(optimizer)
            before: dict[nn.Parameter, Tensor] = {}
            self._handles = [
                optimizer.register_step_pre_hook(partial(_remember, self._all, before)),
                optimizer.register_step_post_hook(partial(_stretch, self._all, before)),
            ]

    def detach(self) -> None:
        """The layers learn by themselves again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @torch.no_grad()
    def draw_(self, generator: torch.Generator | None = None) -> "GradReparam":
        """Make the weights those of branches at the beginning: the layer's own, as it is now, is the full one.

        To that the others are added, each by its scale: of random weights as torch's layers have them at first, and an
        identity of 1. The network computes something else afterwards.

        Args:
            generator: of the random weights, on the CPU; None is torch's own.
        """
        for parameter, branches in self._found.values():
            total = parameter.detach() * branches[0].scale
            parameter.copy_(total + sum(branch.start(generator) for branch in branches[1:]))
        return self

    def _check(self, optimizer: Optimizer) -> None:
        kind = type(optimizer).__name__
        decoupled = isinstance(optimizer, Adam) and all(
            group.get("decoupled_weight_decay") or not group["weight_decay"] for group in optimizer.param_groups
        )
        if not decoupled:
            raise UsageError(
                f"grad_reparam: what branches do under {kind} is not known: SGD, AdamW, or Adam without weight_decay"
            )
        if any(multiplier.average is not None for multiplier in self._all.values()):
            raise UsageError(f"grad_reparam: branches with average pooling have no equal under {kind}: choose others")


_Multipliers = dict[nn.Parameter, Multiplier]


def _kept(multipliers: _Multipliers, parameter: nn.Parameter) -> Multiplier:
    """Of ``parameter``, where that is by now."""
    multiplier = multipliers[parameter] = multipliers[parameter].like(parameter)
    return multiplier


def _multiplied(multipliers: _Multipliers, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
    return _kept(multipliers, parameter).of_gradient(gradient)


def _learning(multipliers: _Multipliers, optimizer: Optimizer) -> "list[tuple[dict[str, Any], nn.Parameter]]":
    groups = optimizer.param_groups
    return [(g, p) for g in groups for p in g["params"] if p in multipliers and p.grad is not None]


def _remember(multipliers: _Multipliers, before: dict[nn.Parameter, Tensor], optimizer: Optimizer, *_: Any) -> None:
    before.update((p, p.detach().clone()) for _, p in _learning(multipliers, optimizer))


@torch.no_grad()
def _stretch(multipliers: _Multipliers, before: dict[nn.Parameter, Tensor], optimizer: Optimizer, *_: Any) -> None:
    """Multiply what a step did to the weights, but for their decay."""
    for group, p in _learning(multipliers, optimizer):
        old = before.pop(p)
        decayed = old * (1 - group["lr"] * group["weight_decay"])
        stretched = decayed + _kept(multipliers, p).update * (p - decayed)
        p.copy_(torch.where(p == old, old, stretched))  # a step that AMP skips decays nothing
