"""Linear branches that a layer can be the sum of, and what they do to its gradient.

A branch ``i`` with a constant scale ``s_i`` per output channel adds ``s_i E_i(W_i)`` to the layer's weight ``W``;
``E_i`` puts the branch's own weight where it belongs in a kernel of the layer's size. Plain SGD on the ``W_i`` moves
``W`` along ``sum_i s_i² E_i E_iᵀ G``, where ``G`` is the gradient of ``W``. Where ``E_i`` puts every number in one
place, ``E_i E_iᵀ`` is a mask; of average pooling it is a sum over the kernel.

Source: Ding et al. 2023, arXiv:2205.15242 (RepOptimizers), sec. 3.2, proposition 1, for masks; the sum is ours.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from nbcompile.core.layers import LayerSpec

FULL, CENTER, IDENTITY, AXES, AVERAGE = "full", "center", "identity", "axes", "average"
BRANCHES: dict[str, tuple[str, ...]] = {
    "rep": (FULL, CENTER, IDENTITY),
    "dbb": (FULL, CENTER, AVERAGE),
    "expand": (FULL, CENTER, IDENTITY, AXES),
}
"""Kinds of branches, by the name of what has them."""

Scales = Mapping[str, float | Tensor]
"""By kind: one number, or ``(outputs,)``."""


@dataclass(frozen=True)
class Branch:
    """One branch of a layer whose weight is ``(O, I / groups, *kernel)``.

    Attributes:
        kind: a word of ``BRANCHES``.
        mask: where its weight stands, of the layer's shape, bool; all of it for ``average``.
        scale: ``(O, 1, …)``, positive.
    """

    kind: str
    mask: Tensor
    scale: Tensor

    @property
    def taps(self) -> int:
        """How many places of the kernel share one number of its weight."""
        return prod(self.mask.shape[2:]) if self.kind == AVERAGE else 1

    def start(self, generator: torch.Generator | None = None) -> Tensor:
        """What it adds to the layer's weight at the beginning: torch's own initialization, an identity of 1."""
        if self.kind == IDENTITY:
            return self.scale * self.mask
        fan_in = self.mask[0].sum() / self.taps
        shape = (*self.mask.shape[:2], *(1,) * (self.mask.ndim - 2)) if self.kind == AVERAGE else self.mask.shape
        drawn = torch.rand(shape, generator=generator, dtype=self.scale.dtype).to(self.scale.device) * 2 - 1
        return self.scale * self.mask * (drawn / fan_in.clamp_min(1).sqrt() / self.taps)


@dataclass(frozen=True)
class Multiplier:
    """What a layer's branches make of its gradient, and of an update that Adam computed.

    Attributes:
        entries: ``sum_i s_i²`` over the branches that reach an entry, of the weight's shape.
        average: ``(s / taps)²`` of average pooling, ``(O, 1, …)``; None where there is none.
        update: ``sum_i s_i``, as ``entries``; Adam has normalized the other power away.
    """

    entries: Tensor
    average: Tensor | None
    update: Tensor

    @classmethod
    def of(cls, branches: list[Branch]) -> "Multiplier":
        """The sum of all."""
        masked = [branch for branch in branches if branch.kind != AVERAGE]
        averages = [(branch.scale / branch.taps).square() for branch in branches if branch.kind == AVERAGE]
        entries, update = (torch.stack([b.scale**power * b.mask for b in masked]).sum(0) for power in (2, 1))
        return cls(entries, averages[0] if averages else None, update)

    def like(self, tensor: Tensor) -> "Multiplier":
        """In the dtype and on the device of ``tensor``."""
        if self.entries.dtype == tensor.dtype and self.entries.device == tensor.device:
            return self
        average = None if self.average is None else self.average.to(tensor)
        return Multiplier(self.entries.to(tensor), average, self.update.to(tensor))

    def of_gradient(self, gradient: Tensor) -> Tensor:
        """The gradient that moves the weight as its branches would; linear, so that of parts the sum may be taken."""
        found = gradient * self.entries
        if self.average is None:
            return found
        return found + self.average * gradient.sum(tuple(range(2, gradient.ndim)), keepdim=True)


def branches_of(spec: LayerSpec, weight: Tensor, kinds: tuple[str, ...], scales: Scales) -> list[Branch]:
    """The branches of a layer, the full one first, without those that it cannot have or that have the form of another.

    An identity may stand beside the center of a depthwise layer, as in RepVGG's blocks; beside a full one that is no
    more than it, nothing does.

    Args:
        spec: of a convolution or linear layer, not transposed.
        weight: of the layer; its dtype and device are taken, and not its values.
        kinds: of a row of ``BRANCHES``.
        scales: of each kind; 1 where there is none.
    """
    found: list[Branch] = []
    for kind in kinds:
        for mask in _masks(kind, spec, weight):
            of_its_form = {IDENTITY: found[:1], AVERAGE: []}.get(kind, found)
            if any(torch.equal(branch.mask, mask) for branch in of_its_form):
                continue
            scale = torch.as_tensor(scales.get(kind, 1.0), dtype=weight.dtype, device=weight.device)
            found.append(Branch(kind, mask, scale.expand(spec.outputs).reshape(-1, *(1,) * (weight.ndim - 1))))
    return found


def _masks(kind: str, spec: LayerSpec, weight: Tensor) -> Iterator[Tensor]:
    """Where branches of a kind have their numbers; several for ``axes``, none where the layer cannot have one."""
    everywhere = torch.ones_like(weight, dtype=torch.bool, memory_format=torch.contiguous_format)
    if kind == FULL or (kind == AVERAGE and prod(spec.kernel) > 1):
        yield everywhere
    if kind in (FULL, AVERAGE):
        return
    if any(size % 2 == 0 for size in spec.kernel):
        return  # a kernel of even size has no center
    if kind == AXES:
        for axis in range(spec.axes):
            yield everywhere & _middle(spec, [other for other in range(spec.axes) if other != axis], weight)
    elif kind == CENTER:
        yield everywhere & _middle(spec, list(range(spec.axes)), weight)
    elif spec.inputs == spec.outputs and all(step == 1 for step in spec.stride):
        inside = torch.arange(spec.outputs, device=weight.device) % weight.shape[1]
        own = torch.arange(weight.shape[1], device=weight.device) == inside[:, None]
        diagonal = own.reshape(*own.shape, *(1,) * spec.axes)
        yield diagonal & _middle(spec, list(range(spec.axes)), weight) & everywhere


def _middle(spec: LayerSpec, axes: list[int], weight: Tensor) -> Tensor:
    """The places of a kernel that are in the middle of each of ``axes``, ``(1, 1, *kernel)``."""
    middle = torch.ones((1, 1, *spec.kernel), dtype=torch.bool, device=weight.device)
    for axis in axes:
        size = spec.kernel[axis]
        at = torch.arange(size, device=weight.device) == size // 2
        middle = middle & at.reshape(*(size if other == axis + 2 else 1 for other in range(middle.ndim)))
    return middle
