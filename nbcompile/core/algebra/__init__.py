"""The mathematics of merging: affine maps on feature maps. Tensors in, tensors out; no graph, no nn.Module.

Every function is differentiable and works in the dtype of its operands: ``fuse`` passes float64 and rounds once at
the end. A merge is border-exact (equal on the full map, the ring that padding touches included) or is refused with
:class:`NotExact`, whose message is the reason. Each rule stands once, on :class:`Geometry`: ``composed``, ``added``
and ``concatenated`` decide without numbers, for plans; ``compose``, ``add`` and ``concatenate`` ask them first.

Notation: kernel tap ``j`` of a layer reads its input at ``stride * i + dilation * j - padding`` for output position
``i``, per axis; that of a transposed one adds input position ``i`` to that output position. A linear layer is an
affine map with no spatial axes.

Source: NetBooster (arXiv 2306.13586) Eq. 3-4 for the composed kernel, here in cross-correlation form with strides,
dilations, groups and borders; Ding et al. 2021 (Diverse Branch Block, arXiv 2103.13425) for sums, stacks and borders.
"""

from nbcompile.core.algebra.composition import carried, compose, composed, shift_fits
from nbcompile.core.algebra.groups import embed_groups, regrouped
from nbcompile.core.algebra.maps import (
    AffineMap,
    Geometry,
    NotExact,
    from_transposed_weight,
    to_transposed_weight,
)
from nbcompile.core.algebra.primitives import average_pool, frozen_norm, identity, padding_map, per_channel, selection
from nbcompile.core.algebra.sums import add, added, concatenate, concatenated

__all__ = [
    "AffineMap",
    "Geometry",
    "NotExact",
    "add",
    "added",
    "average_pool",
    "carried",
    "compose",
    "composed",
    "concatenate",
    "concatenated",
    "embed_groups",
    "from_transposed_weight",
    "frozen_norm",
    "identity",
    "padding_map",
    "per_channel",
    "regrouped",
    "selection",
    "shift_fits",
    "to_transposed_weight",
]
