"""What the elements of a region are as one map: its numbers, and, without them, its geometry."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nbcompile.core.affine.chains import Join, primitives
from nbcompile.core.affine.primitive import Context, Primitive
from nbcompile.core.algebra import (
    AffineMap,
    Geometry,
    NotExact,
    add,
    added,
    carried,
    compose,
    composed,
    concatenate,
    concatenated,
    identity,
    per_channel,
    regrouped,
    shift_fits,
)

Element = Primitive | Join


def evaluate(elements: Sequence[Element], axes: int, channels: int, like: Tensor) -> AffineMap:
    """The one map of ``elements``, in float64 and in memory of its own.

    Args:
        elements: one after the other.
        axes: number of spatial axes.
        channels: that the first takes.
        like: gives the device, and the dtype that the model computes in.

    Raises:
        NotExact: if they are not one map.
    """
    whole: AffineMap | None = None
    for element in elements:
        if whole is None:
            whole, own = _one(element, axes, channels, like), isinstance(element, Primitive)
            continue
        second = _one(element, axes, whole.weight.shape[0], like)
        if second.groups != second.weight.numel():  # per-channel factors scale a weight as it is, without a copy of it
            whole, second = _wide(whole), _wide(second)
        whole, own = _after(whole, second, like.dtype), False
    return identity(channels, axes, like.double()) if whole is None else _wide(whole, copy=own)


def _one(element: Element, axes: int, channels: int, like: Tensor) -> AffineMap:
    """In float64, but for a layer, which is read where it is: factors of float64 make its product float64."""
    if isinstance(element, Join):
        return _join(element, axes, channels, like)
    return element.build(None if element.layer else torch.float64, axes, channels)


def _wide(m: AffineMap, *, copy: bool = False) -> AffineMap:
    """``m`` in float64; with ``copy`` in memory of its own."""
    bias = None if m.bias is None else m.bias.double()
    return replace(m, weight=m.weight.to(torch.float64, copy=copy), bias=bias)


def _after(first: AffineMap, second: AffineMap, dtype: torch.dtype) -> AffineMap:
    """``second`` after ``first``; a shift that ``second`` takes away again is gone, not a residue of rounding."""
    whole = compose(first, second)
    if first.bias is None or second.bias is None or not bool(second.bias.any()):
        return whole
    through = carried(replace(second, bias=None), first.bias)
    return replace(whole, bias=None) if shift_fits(through, -second.bias.to(dtype)) else whole


def _join(join: Join, axes: int, channels: int, like: Tensor) -> AffineMap:
    maps = [evaluate(branch.elements, axes, channels, like) for branch in join.branches]
    if join.dim is not None:
        return regrouped(concatenate(*maps))
    for i, factor in enumerate(join.factors):
        if factor != 1:
            scale = like.new_full((maps[i].weight.shape[0],), factor).double()
            maps[i] = compose(maps[i], per_channel(scale, None, axes))
    return add(*maps, overwrite=True)


class Outlines:
    """Geometries of elements. No weight is touched, but where a border asks for the value of a shift.

    Args:
        axes: number of spatial axes.
        context: of the graph.
    """

    def __init__(self, axes: int, context: Context) -> None:
        self._axes = axes
        self._context = context
        self._known: dict[tuple[Element, int], Geometry] = {}

    def of(self, element: Element, channels: int) -> Geometry:
        """Of one element that takes ``channels``.

        Raises:
            NotExact: if it is a join that is not one map.
        """
        key = (element, channels)
        if key not in self._known:
            if isinstance(element, Join):
                self._known[key] = self._joined(element, channels)
            else:
                self._known[key] = element.geometry(self._axes, channels)
        return self._known[key]

    def extended(
        self, before: tuple[Element, ...], geometry: Geometry | None, element: Element, channels: int
    ) -> Geometry:
        """Of ``before``, which has ``geometry``, and ``element`` as one map.

        Raises:
            NotExact: if they are not.
        """
        if geometry is None:
            return self.of(element, channels)
        second = self.of(element, geometry.outputs)
        try:
            return composed(geometry, second)
        except NotExact:
            whole = composed(geometry, second, shift_fits=True)  # unless it is another reason
            first = self._map(before, channels)
            value = self._map((element,), geometry.outputs).pad_value if second.filled else None
            shift = carried(first, first.pad_value)
            # a shift that only happens to be zero, as in a fresh norm, would make the layers depend on the weights
            if (shift is None or second.filled) and shift_fits(shift, value):
                return whole
            raise

    def _joined(self, join: Join, channels: int) -> Geometry:
        if join.dim is not None:
            self._require_channels(join)
        if any(p.cuts for p in primitives((join,))):  # which channels are cut decides on the groups
            return self._map((join,), channels).geometry
        geometries = []
        for branch in join.branches:
            geometry: Geometry | None = None
            for i, element in enumerate(branch.elements):
                geometry = self.extended(branch.elements[:i], geometry, element, channels)
            geometries.append(geometry or identity(channels, self._axes, self._context.like(None)).geometry)
        if any(g.filled for g in geometries):
            return self._map((join,), channels).geometry
        return added(*geometries) if join.dim is None else concatenated(*geometries)

    def _map(self, elements: tuple[Element, ...], channels: int) -> AffineMap:
        return evaluate(elements, self._axes, channels, self._context.like(None))

    def _require_channels(self, join: Join) -> None:
        """Check that ``join`` concatenates channels."""
        if join.dim == -self._axes - 1:
            return
        shape = self._context.shapes.of(join.node)
        if shape is None:
            raise NotExact(f"'{join.node.name}' cannot be seen to concatenate channels: fuse with an example_input")
        if join.dim != len(shape) - self._axes - 1:
            raise NotExact(f"'{join.node.name}' concatenates along another dimension than the channels")
