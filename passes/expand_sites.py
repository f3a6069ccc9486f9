"""Replace chosen layers by expansion blocks.

    y = layer(x)     =>     y = block(x)

Keeps: node names, the qualified names of modules, mode, dtype, device, memory format of each layer, and with
``preserve`` the function. Refuses, by name: a layer whose weight does not say everything it computes, and one followed
by an activation that cannot be linearised.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import fx

from nbcompile.core.activations import KNOWN, Activation
from nbcompile.core.blocks import Expanded, sites
from nbcompile.core.errors import PostconditionError, PreconditionError, UsageError
from nbcompile.core.graph.nodes import (
    Norm,
    activation_of,
    downstream,
    layer_of,
    module_of,
    norm_of,
    readers,
)
from nbcompile.core.graph.owners import Owners
from nbcompile.core.graph.replace import put_all
from nbcompile.core.layers import LayerSpec, why_no_layer
from nbcompile.core.site_spec import BLOCKS, SiteSpec
from nbcompile.core.tracing.pieces import Piece
from nbcompile.passes.base import Pass, PassResult
from nbcompile.passes.sites.absorbers import absorbers
from nbcompile.passes.sites.patterns import locate
from nbcompile.passes.sites.select import named_patterns, select_sites


@dataclass(frozen=True)
class ExpandSites(Pass):
    """Replaces layers by expansion blocks.

    Attributes:
        where: see :func:`nbcompile.passes.sites.select.select_sites`.
        block: one of ``inverted-residual``, ``bottleneck``, ``basic``.
        ratio: hidden width over the layer's input channels, >= 1.
        preserve: keep the original layer as a parallel branch; the function is unchanged at first.
        pad_first: see :class:`nbcompile.core.site_spec.SiteSpec`.
        parts: the pieces of the model, where the graph shows only one run of it.
        spared: names of layers that are no candidates, for a reason that the graph does not show.
    """

    name: ClassVar[str] = "expand-sites"

    where: str | Sequence[str] = "uniform:0.5"
    block: str = "inverted-residual"
    ratio: int = 6
    preserve: bool = False
    pad_first: bool = False
    parts: tuple[Piece, ...] = ()
    spared: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.block not in BLOCKS:
            raise UsageError(f"block='{self.block}' is unknown; one of {', '.join(BLOCKS)}")
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, int) or not 1 <= self.ratio <= 64:
            raise UsageError(f"ratio={self.ratio!r} must be a whole number from 1 to 64")

    def requires(self, gm: fx.GraphModule) -> None:
        """The network must hold no expansion block yet."""
        if blocks := sites(gm):
            first = next(iter(blocks))
            raise PreconditionError(
                f"{self.name}: the model already has {len(blocks)} expansion blocks (the first: '{first}'); "
                "fuse it first"
            )

    def call(self, gm: fx.GraphModule) -> PassResult:
        """Replace the chosen layers."""
        owners = Owners(gm)
        layers, nodes = _layers(gm), owners.calls
        pattern, candidates = self._candidates(owners)
        if layers and not candidates and named_patterns(self.where) is None:
            first = next(iter(layers))
            reason = self._why_not(owners, first, nodes[gm.get_submodule(first)]) or "no output depends on it"
            raise PreconditionError(f"{self.name}: no layer of this network can be expanded; not '{first}': {reason}")
        chosen = select_sites(self.where, candidates, list(layers))
        specs = [
            self._spec(owners, name, nodes[gm.get_submodule(name)], pattern if name in candidates else "named")
            for name in _unique(gm, chosen)
        ]
        old = {spec: gm.get_submodule(spec.name) for spec in specs}
        put_all(gm, {layer: Expanded(spec, layer) for spec, layer in old.items()})
        return PassResult(gm, tuple(spec.name for spec in specs))

    def candidates(self, gm: fx.GraphModule) -> tuple[str, tuple[str, ...]]:
        """The pattern that finds layers that can be expanded, and their names."""
        return self._candidates(Owners(gm))

    def _candidates(self, owners: Owners) -> tuple[str, tuple[str, ...]]:
        gm, nodes = owners.gm, owners.calls
        names = {gm.get_submodule(name): name for name in reversed(_layers(gm))}
        pattern, matches = locate(gm, lambda layer: self._why_not(owners, names[layer], nodes[layer]) is None)
        return pattern, tuple(str(node.target) for node in matches)

    def ensures(self, gm: fx.GraphModule) -> None:
        """Every call of a block is a call of what was a layer."""
        for node in gm.graph.nodes:
            module = module_of(gm, node)
            if isinstance(module, Expanded) and len(node.all_input_nodes) != 1:
                raise PostconditionError(f"{self.name}: block '{node.target}' has {len(node.all_input_nodes)} inputs")

    def _spec(self, owners: Owners, name: str, nodes: list[fx.Node], pattern: str) -> SiteSpec:
        if reason := self._why_not(owners, name, nodes):
            raise PreconditionError(f"{self.name}: '{name}' cannot be expanded: {reason}")
        gm = owners.gm
        spec = LayerSpec.of(gm.get_submodule(name))
        taken_by = absorbers(owners, spec, nodes, self.parts)
        beside = (norm_of(gm, reader) for node in nodes for reader in readers(node))
        norm = next((n for n in beside if n), Norm(False))
        inner = "norm" if norm.batch and spec.axes else "bias"
        if not spec.bias and not taken_by:
            inner = "scale"
        return SiteSpec(
            name=name,
            layer=spec,
            block=self.block,
            ratio=self.ratio,
            preserve=self.preserve,
            activation=cast(Activation, _activation(gm, nodes)),
            inner=inner,
            eps=norm.eps,
            momentum=norm.momentum,
            sync=norm.sync,
            pad_first=self.pad_first,
            absorbers=() if spec.bias else taken_by,
            pattern=pattern,
        )

    def _why_not(self, owners: Owners, name: str, nodes: list[fx.Node]) -> str | None:
        """Why the layer called ``name`` cannot be expanded, or None."""
        layer = owners.gm.get_submodule(name)
        if reason := why_no_layer(layer):
            return reason
        if name in self.spared:
            return "other code needs the layer itself"
        if any(len(node.args) + len(node.kwargs) != 1 for node in nodes):
            return "it is called with an output size, which its block does not take"
        if other := owners.tied_to(layer):
            return f"it shares a parameter with '{other}', which would part them"
        if owners.read_directly(layer):
            return "other code reads its weight directly; name other layers with where=[...]"
        if not self.preserve and not any(p.requires_grad for p in layer.parameters()):
            return "it is frozen, so its block would stay random; unfreeze it, or keep it with preserve=True"
        activation = _activation(owners.gm, nodes)
        return activation if isinstance(activation, str) else None


def _layers(gm: fx.GraphModule) -> dict[str, None]:
    """Names that layers are called by, in graph order."""
    return dict.fromkeys(str(node.target) for node in gm.graph.nodes if layer_of(gm, node) is not None)


def _unique(gm: fx.GraphModule, names: Sequence[str]) -> list[str]:
    """One name a layer: a shared layer called by two names is one site."""
    return list({gm.get_submodule(name): name for name in reversed(names)}.values())[::-1]


def _activation(gm: fx.GraphModule, nodes: list[fx.Node]) -> Activation | str:
    """The nearest activation that follows; for a last layer, the nearest before; in a network without any, ReLU.

    A sentence where it cannot be linearised.
    """
    for up in (False, True):
        for node in downstream(nodes, up=up):
            activation = activation_of(gm, node)
            if isinstance(activation, str):
                place = node.target if isinstance(node.target, str) else node.name
                return (
                    f"the activation beside it, '{place}' ({activation}), cannot be linearised by PLT, which "
                    f"knows {KNOWN}; name other layers with where=[...]"
                )
            if activation is not None:
                return activation
    return Activation("relu")
