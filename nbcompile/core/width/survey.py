"""A run at a width that does not end where an operator fails: it names what does not fit, and goes on.

Where an operator fails, all spaces whose channels it is given are *blamed*: they will keep their number. So it would
have given what it gave at the original's width, and that is put in its place. What is computed from a replacement may
fail, too, and blames nobody; a layer is given what it wants to read, so behind it all is as it would be.
"""

from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from nbcompile.core.tracing.places import caller, code_place
from nbcompile.core.width.follow import Follow
from nbcompile.core.width.spaces import Space
from nbcompile.core.words import first_line

_LAYERS = ("linear", *(f"conv{'_transpose' * t}{d}d" for t in (0, 1) for d in (1, 2, 3)))


Blamed = list[tuple[set[int], str]]
"""Numbers of spaces that fail together, and how."""


class Survey(Follow):
    """Follows a run at another width than ``base``.

    Attributes:
        blamed: for each operator that failed.
    """

    def __init__(
        self,
        blamed: Blamed,
        base: Follow,
        spaces: Sequence[Space],
        steps: Sequence[int],
        model: nn.Module,
        rule_of: Callable[..., Any],
        device: torch.device,
        modes: tuple[bool, ...],
    ) -> None:
        super().__init__(model, rule_of, device, modes)
        self.blamed, self.base = blamed, base
        self._grows = {b.slot: n for n, space in enumerate(spaces) if steps[n] for b in space.blocks}
        self._replaced: dict[int, Tensor] = {}
        self._asked: list[tuple[FrameType, Tensor]] = []

    def called(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, bool]:
        """What ``func`` gives, or would give if the blamed had their number."""
        layer = getattr(func, "__name__", "") in _LAYERS
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        of_replaced = any(id(x) in self._replaced for x in given)
        try:
            result, _ = super().called(func, args, kwargs)
            if of_replaced and not layer:
                self._replace(result)
            if isinstance(result, torch.Size | int) and given:
                self._asked.append((caller(), given[0]))
            return result, False
        except Exception as error:
            if not of_replaced:
                self._blame(given[:2] if layer else given, f"{first_line(error)} at {code_place()}", error)
        number = len(self.calls)
        if number >= len(self.base.calls) or self.base.calls[number][0] is not func:
            raise ValueError("it runs other operators there")
        before = self.base.calls[number][1]
        if layer and isinstance(before, Tensor):
            return self._layer(func, args, kwargs, before), True
        result = tree_map(lambda x: torch.empty_like(x) if isinstance(x, Tensor) else x, before)
        self._replace(result)
        return result, True

    def _layer(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], before: Tensor) -> Any:
        """What a layer makes of an input of the size that it reads: its map has the size that it had."""
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        transposed = "transpose" in func.__name__
        dim = before.ndim - 1 if func.__name__ == "linear" else before.ndim - weight.ndim + 1
        dim = max(dim, 0) if before.ndim == weight.ndim else dim - (before.ndim < weight.ndim)
        shape = list(before.shape)
        shape[dim] = weight.size(1) if transposed else weight.size(0)
        result = before.new_empty(shape)
        self.put(result, self.along(self.writes(weight, int(transposed)), result, dim))
        return result

    def _replace(self, result: Any) -> None:
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._replaced[id(value)] = value

    def _blame(self, given: Sequence[Tensor], why: str, error: Exception) -> None:
        """All that grows of what was given."""
        found: set[int] = set()
        for tensor in given:
            if (name := self.name(tensor)) is not None:
                for slot, labels in self.base.read.items():
                    if slot.tensor == name:
                        found |= self._spaces(self.base, labels)
            elif (own := self.of(tensor)) is not None:
                found |= self._spaces(self, own)
        if not found:  # its sizes are those of what was asked for some there
            place = caller()
            for frame, tensor in self._asked:
                if frame is place and (sized := self.of(tensor)) is not None:
                    found |= self._spaces(self, sized)
        if not found:
            raise error
        self.blamed.append((found, why))

    def _spaces(self, run: Follow, labels: Tensor) -> set[int]:
        return {self._grows[slot] for slot in run.labels.homes(labels) if slot in self._grows}
