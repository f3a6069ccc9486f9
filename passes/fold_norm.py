"""Fold a batch norm with fixed statistics into the convolution that feeds it.

    y = conv(x); z = norm(y)     =>     z = conv'(x)

Keeps: the function in eval mode, names of other nodes, device, dtype. The folded convolution keeps its qualified name
and has a bias. Leaves alone: a convolution that is read by another node, called more than once or shares its weight.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, fx, nn

from nbcompile.core.algebra import AffineMap, compose, frozen_norm
from nbcompile.core.errors import PreconditionError
from nbcompile.core.graph import argument, calls, layer_of, module_of, norm_of, read_directly, readers, tied_to
from nbcompile.core.layers import CONVOLUTIONS, lift, why_no_layer
from nbcompile.passes.base import Pass, PassResult, Skip


@dataclass(frozen=True)
class FoldNorm(Pass):
    """Folds frozen batch norms into the convolutions that feed them."""

    name: ClassVar[str] = "fold-norm"

    def requires(self, gm: fx.GraphModule) -> None:
        """Norms in eval mode."""
        for node in gm.graph.nodes:
            norm, module = norm_of(gm, node), module_of(gm, node)
            if norm and norm.batch and module is not None and module.training:
                raise PreconditionError(f"{self.name}: '{node.target}' is in training mode; call model.eval() first")

    def call(self, gm: fx.GraphModule) -> PassResult:
        """Fold what can be folded."""
        rewritten, skipped = [], []
        for node in list(gm.graph.nodes):
            norm = norm_of(gm, node)
            if norm is None or not norm.batch:
                continue
            source = node.all_input_nodes[0]
            if reason := _why_not(gm, source, node, norm.running_mean):
                skipped.append(Skip(node.name, reason))
                continue
            conv = gm.get_submodule(cast(str, source.target))
            gm.set_submodule(cast(str, source.target), _folded(conv, _lift_norm(gm, node)))
            node.replace_all_uses_with(source)
            _erase(gm.graph, node)
            rewritten.append(str(source.target))
        gm.delete_all_unused_submodules()
        return PassResult(gm, tuple(rewritten), tuple(skipped))


def _erase(graph: fx.Graph, norm: fx.Node) -> None:
    """Only the norm and its constants: other nodes without readers may write in place."""
    constants = [node for node in norm.all_input_nodes if node.op == "get_attr"]
    graph.erase_node(norm)
    for node in constants:
        if not node.users:
            graph.erase_node(node)


def _why_not(gm: fx.GraphModule, source: fx.Node, norm: fx.Node, running_mean: str | None) -> str | None:
    layer = layer_of(gm, source)
    if not isinstance(layer, CONVOLUTIONS):
        return f"its input '{source.name}' is no convolution"
    if reason := why_no_layer(layer):
        return f"'{source.target}' is left alone: {reason}"
    if running_mean is None:
        return "it has no running statistics: it normalises by the batch, also in eval mode"
    if computed := [n.name for n in norm.all_input_nodes[1:] if n.op != "get_attr"]:
        return f"'{computed[0]}', one of its parameters, is computed"
    if len(readers(source)) > 1:
        return f"'{source.target}' has {len(readers(source))} readers"
    if (times := len(calls(gm)[layer])) > 1:
        return f"'{source.target}' is called {times} times: its weights are shared"
    if tied_to(gm, layer):
        return f"'{source.target}' shares a parameter with another module"
    if read_directly(gm, layer):
        return f"'{source.target}' has its weight read by other code, too"
    return None


def _lift_norm(gm: fx.GraphModule, node: fx.Node) -> AffineMap:
    axes = _axes(gm, node)
    module = module_of(gm, node)
    if module is not None:
        return lift(module, torch.float64, axes)
    values = [argument(node, i, name) for i, name in enumerate(("", "running_mean", "running_var", "weight", "bias"))]
    mean, var, gamma, beta = (None if v is None else _tensor(gm, v).double() for v in values[1:])
    return frozen_norm(cast(Tensor, mean), cast(Tensor, var), gamma, beta, float(argument(node, 7, "eps", 1e-5)), axes)


def _axes(gm: fx.GraphModule, node: fx.Node) -> int:
    source = node.all_input_nodes[0]
    return len(cast(nn.Conv2d, gm.get_submodule(cast(str, source.target))).kernel_size)


def _tensor(gm: fx.GraphModule, node: fx.Node) -> Tensor:
    """The tensor that a get_attr node reads."""
    value: object = gm
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return cast(Tensor, value)


def _folded(conv: nn.Module, norm: AffineMap) -> nn.Module:
    """A copy of ``conv`` that computes ``norm(conv(x))``."""
    with torch.no_grad():
        whole = compose(lift(conv, torch.float64, len(norm.kernel)), norm)
        new = copy.deepcopy(conv)
        weight = cast(Tensor, new.weight)
        weight.copy_(whole.weight)
        new.bias = nn.Parameter(cast(Tensor, whole.bias).to(weight.dtype), requires_grad=weight.requires_grad)
    return new
