"""Merge a norm into the layer before it where the two are called several times, as in heads that share their weights.

    y = norm(conv(a)),  z = norm(conv(b))     =>     y = conv'(a),  z = conv'(b)

Keeps: the function in eval mode, names of other nodes, device, dtype, and that the weights are stored once. Leaves
alone: a layer of which some call is read by anything but the one call of the norm behind it, a norm that is called
elsewhere, and tensors that somebody else reads. What the two make together is for
:class:`nbcompile.passes.MergeAffine` to say, which sees one call of each.

Source: the algebra of :mod:`nbcompile.core.algebra`.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import fx, nn

from nbcompile.core.example import Inputs
from nbcompile.core.graph.aliasing import Aliasing
from nbcompile.core.graph.constants import Constants
from nbcompile.core.graph.nodes import calls, module_of, norm_of
from nbcompile.core.graph.replace import keep_what_is_read
from nbcompile.core.graph.shapes import Shapes
from nbcompile.passes.base import Pass, PassResult, Skip, require_norms_in_eval_mode
from nbcompile.passes.merge_affine import MergeAffine

LAYER, NORM = "layer", "norm"


@dataclass(frozen=True)
class MergeShared(Pass):
    """Merges norms into layers that are called several times.

    Attributes:
        inputs: of the model; only for questions that the graph alone does not answer.
    """

    name: ClassVar[str] = "merge-shared"

    inputs: Inputs | None = None

    def requires(self, gm: fx.GraphModule) -> None:
        """Norms in eval mode."""
        require_norms_in_eval_mode(gm, self.name)

    def call(self, gm: fx.GraphModule) -> PassResult:
        """Merge what can be merged."""
        callers = calls(gm)
        pairs = [(layer, nodes, _behind(gm, nodes)) for layer, nodes in callers.items() if len(nodes) > 1]
        pairs = [pair for pair in pairs if pair[2]]
        if not pairs:
            return PassResult(gm)
        constants, shapes = Constants(gm, Aliasing(gm)), Shapes(gm, self.inputs)
        rewritten, how, skipped = [], [], []
        for layer, nodes, behind in pairs:
            name, norm = str(nodes[0].target), gm.get_submodule(str(behind[0].target))
            if len(callers[norm]) > len(behind):
                skipped.append(Skip(str(behind[0].target), f"it is called elsewhere than behind '{name}', too"))
            elif any(not constants.readers(node) <= {*nodes, *behind} for node in (nodes[0], behind[0])):
                skipped.append(Skip(str(behind[0].target), f"its numbers, or those of '{name}', are read elsewhere"))
            elif (merged := _merged(layer, norm, shapes.of(nodes[0].all_input_nodes[0]))) is not None:
                _put(gm, nodes, behind, name, merged)
                rewritten.append(name)
                how.append(f"{name} <- {name} + {behind[0].target}, in {len(nodes)} places")
        keep_what_is_read(gm)
        return PassResult(gm, tuple(rewritten), tuple(skipped), tuple(how))


def _behind(gm: fx.GraphModule, nodes: list[fx.Node]) -> list[fx.Node]:
    """The calls of one norm, each all that reads one of ``nodes``; none where that is not so."""
    readers = [list(node.users) for node in nodes]
    behind = [users[0] for users in readers if len(users) == 1]
    if len(behind) < len(nodes) or len({module_of(gm, node) for node in behind}) > 1:
        return []
    first = norm_of(gm, behind[0])
    if first is None or not first.batch or module_of(gm, behind[0]) is None:
        return []
    alone = all(node.args == (source,) and not node.kwargs for node, source in zip(behind, nodes, strict=True))
    return behind if alone else []


def _merged(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...] | None) -> nn.Module | None:
    """The one layer that both are together, where the input has such a shape, if known; None where they are none."""
    graph = fx.Graph()
    root = nn.ModuleDict({LAYER: layer, NORM: norm})
    graph.output(graph.call_module(NORM, (graph.call_module(LAYER, (graph.placeholder("x"),)),)))
    gm = fx.GraphModule(root, graph)
    merge = MergeAffine(None if shape is None else (next(layer.parameters()).new_zeros(shape),))
    left = [node.target for node in merge.apply(gm).gm.graph.nodes if node.op not in ("placeholder", "output")]
    return gm.get_submodule(LAYER) if left == [LAYER] else None


def _put(gm: fx.GraphModule, nodes: list[fx.Node], behind: list[fx.Node], name: str, merged: nn.Module) -> None:
    """Let every call be one of ``merged``, and nothing stand behind it."""
    gm.set_submodule(name, merged)
    for node, norm in zip(nodes, behind, strict=True):
        node.target = name
        norm.replace_all_uses_with(node)
        gm.graph.erase_node(norm)
