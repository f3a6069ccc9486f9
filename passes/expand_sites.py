"""Replace chosen layers by expansion blocks.

    y = layer(x)     =>     y = block(x)

Keeps: node names, the qualified names of modules, mode, dtype, device, memory format of each layer, and with
``preserve`` the function. Refuses, by name: a layer whose weight does not say everything it computes, and one followed
by an activation that cannot be linearised.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import fx, nn
from torch.nn import functional as F

from nbcompile.core.activations import KNOWN, Activation
from nbcompile.core.blocks import KINDS, Expanded, SiteSpec, sites
from nbcompile.core.errors import PostconditionError, PreconditionError, UsageError
from nbcompile.core.graph import (
    Norm,
    activation_of,
    aliases,
    calls,
    downstream,
    layer_of,
    module_of,
    norm_of,
    read_directly,
    readers,
    tied_to,
)
from nbcompile.core.layers import LayerSpec, why_no_layer
from nbcompile.core.observe import is_observed
from nbcompile.passes.base import Pass, PassResult
from nbcompile.passes.patterns import locate
from nbcompile.passes.select import select

_SYNC_OR_CALL = (nn.SyncBatchNorm, type(None))  # F.batch_norm is no module
_NORMS = {
    1: (nn.BatchNorm1d, *_SYNC_OR_CALL),
    2: (nn.BatchNorm2d, *_SYNC_OR_CALL),
    3: (nn.BatchNorm3d, *_SYNC_OR_CALL),
}


@dataclass(frozen=True)
class ExpandSites(Pass):
    """Replaces layers by expansion blocks.

    Attributes:
        where: see :func:`nbcompile.passes.select.select`.
        block: one of ``inverted-residual``, ``bottleneck``, ``basic``.
        ratio: hidden width over the layer's input channels, >= 1.
        preserve: keep the original layer as a parallel branch; the function is unchanged at first.
        pad_first: see :class:`nbcompile.core.blocks.SiteSpec`.
    """

    name: ClassVar[str] = "expand-sites"

    where: str | Sequence[str] = "uniform:0.5"
    block: str = "inverted-residual"
    ratio: int = 6
    preserve: bool = False
    pad_first: bool = False

    def __post_init__(self) -> None:
        if self.block not in KINDS:
            raise UsageError(f"block='{self.block}' is unknown; one of {', '.join(KINDS)}")
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, int) or not 1 <= self.ratio <= 64:
            raise UsageError(f"ratio={self.ratio!r} must be a whole number from 1 to 64")

    def requires(self, gm: fx.GraphModule) -> None:
        """The network must hold no expansion block yet."""
        if found := sites(gm):
            first = next(iter(found))
            raise PreconditionError(
                f"{self.name}: the model already has {len(found)} expansion blocks (the first: '{first}'); "
                "fuse it first"
            )

    def call(self, gm: fx.GraphModule) -> PassResult:
        """Replace the chosen layers."""
        pattern, found = locate(gm)
        candidates = [str(node.target) for node in found]
        layers = dict.fromkeys(str(node.target) for node in gm.graph.nodes if layer_of(gm, node) is not None)
        nodes = calls(gm)
        chosen = select(self.where, candidates, list(layers))
        specs = [
            self._spec(gm, name, nodes[gm.get_submodule(name)], pattern if name in candidates else "named")
            for name in _unique(gm, chosen)
        ]
        for spec in specs:
            layer = gm.get_submodule(spec.name)
            block = Expanded(spec, layer)
            for alias in aliases(gm, layer):
                gm.set_submodule(alias, block)
        return PassResult(gm, tuple(spec.name for spec in specs))

    def ensures(self, gm: fx.GraphModule) -> None:
        """Every call of a block is a call of what was a layer."""
        for node in gm.graph.nodes:
            module = module_of(gm, node)
            if isinstance(module, Expanded) and len(node.all_input_nodes) != 1:
                raise PostconditionError(f"{self.name}: block '{node.target}' has {len(node.all_input_nodes)} inputs")

    def _spec(self, gm: fx.GraphModule, name: str, nodes: list[fx.Node], pattern: str) -> SiteSpec:
        layer = gm.get_submodule(name)
        if reason := why_no_layer(layer):
            raise PreconditionError(f"{self.name}: '{name}' cannot be expanded: {reason}")
        if other := tied_to(gm, layer):
            raise PreconditionError(
                f"{self.name}: '{name}' cannot be expanded: it shares a parameter with '{other}', which would part them"
            )
        if read_directly(gm, layer):
            raise PreconditionError(
                f"{self.name}: '{name}' cannot be expanded: other code reads its weight directly; "
                "name other layers with where=[...]"
            )
        spec = LayerSpec.of(layer)
        if not self.preserve and not any(p.requires_grad for p in layer.parameters()):
            raise PreconditionError(
                f"{self.name}: '{name}' cannot be expanded: it is frozen, so its block would stay random; unfreeze it, "
                "or keep it with preserve=True"
            )
        absorbers = _absorbers(gm, spec, nodes)
        beside = (norm_of(gm, reader) for node in nodes for reader in readers(node))
        norm = next((n for n in beside if n), Norm(False))
        inner = "norm" if norm.batch and spec.axes else "bias"
        if not spec.bias and not absorbers:
            inner = "scale"
        return SiteSpec(
            name=name,
            layer=spec,
            block=self.block,
            ratio=self.ratio,
            preserve=self.preserve,
            activation=_activation(gm, name, nodes),
            inner=inner,
            eps=norm.eps,
            momentum=norm.momentum,
            sync=norm.sync,
            pad_first=self.pad_first,
            absorbers=() if spec.bias else absorbers,
            pattern=pattern,
        )


def _unique(gm: fx.GraphModule, names: Sequence[str]) -> list[str]:
    """One name a layer: a shared layer called by two names is one site."""
    return list({gm.get_submodule(name): name for name in reversed(names)}.values())[::-1]


def _absorbers(gm: fx.GraphModule, spec: LayerSpec, nodes: list[fx.Node]) -> tuple[str, ...]:
    """Keys of the running means that can take the layer's shift: all its readers' are, and only theirs; else none.

    None either for a linear layer (behind more than one leading dimension a norm normalises another axis), and where
    the graph shows only one of the paths that the model can take.
    """
    if not spec.axes or is_observed(gm):
        return ()
    own = set(nodes)
    buffers = dict(gm.named_buffers(remove_duplicate=False))
    keys: dict[str, None] = {}
    for node in nodes:
        for reader in readers(node):
            norm = norm_of(gm, reader)
            if norm is None or norm.running_mean is None or reader.all_input_nodes[0] is not node:
                return ()
            mean = buffers.get(norm.running_mean)
            if (
                mean is None
                or mean.shape != (spec.outputs,)
                or not isinstance(module_of(gm, reader), _NORMS[spec.axes])
            ):
                return ()
            keys[norm.running_mean] = None
    for node in gm.graph.nodes:
        norm = norm_of(gm, node)
        if norm and norm.running_mean in keys and node.all_input_nodes[0] not in own:
            return ()
        read = buffers.get(str(node.target)) if node.op == "get_attr" else None
        if any(read is buffers[key] for key in keys) and _read_elsewhere(node, own):
            return ()
    return tuple(keys)


def _read_elsewhere(buffer: fx.Node, sources: set[fx.Node]) -> bool:
    """Whether something reads ``buffer`` that is no norm right behind one of ``sources``."""
    return any(user.target is not F.batch_norm or user.all_input_nodes[0] not in sources for user in buffer.users)


def _activation(gm: fx.GraphModule, name: str, nodes: list[fx.Node]) -> Activation:
    """The nearest activation that follows; for a last layer, the nearest before; in a network without any, ReLU."""
    for up in (False, True):
        for node in downstream(nodes, up=up):
            activation = activation_of(gm, node)
            if isinstance(activation, str):
                raise PreconditionError(
                    f"expand-sites: '{name}' cannot be expanded: the activation beside it, '{node.target}' "
                    f"({activation}), cannot be linearised by PLT, which knows {KNOWN}; "
                    "name other layers with where=[...]"
                )
            if activation is not None:
                return activation
    return Activation("relu")
