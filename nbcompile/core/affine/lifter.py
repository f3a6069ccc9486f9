"""From a node of a graph to the affine map that it computes, if it computes one.

A node is *affine* when it applies an affine map to one value that depends on the inputs, everything else it reads being
constant.
"""

from torch import fx

from nbcompile.core.affine.arithmetic import ARITHMETIC_RULES
from nbcompile.core.affine.norms import NORM_RULES
from nbcompile.core.affine.primitive import Context, Primitive, Rule
from nbcompile.core.affine.slices import SLICE_RULES
from nbcompile.core.affine.weighted import LAYER_RULES
from nbcompile.core.affine.windows import WINDOW_RULES
from nbcompile.core.graph.nodes import argument, module_of
from nbcompile.core.graph.operators import Operator, called, named, of_class

RULES: dict[Operator, Rule] = {
    named(name): rule
    for rules in (ARITHMETIC_RULES, LAYER_RULES, NORM_RULES, WINDOW_RULES, SLICE_RULES)
    for name, rule in rules.items()
}
"""By the row of the operator."""


class Lifter(Context):
    """Lifts the nodes of one graph; to be asked in the graph's order."""

    def lift(self, node: fx.Node) -> Primitive | str | None:
        """The affine map of ``node``; the reason why it has none although it looks like one; or None."""
        module = module_of(self.gm, node)
        does = called(node) if module is None else of_class(type(module))
        rule = RULES.get(does)
        if rule is None or not self._takes_one_value(node, does):
            return None
        lifted = rule(self, node, does, module)
        changes = self.aliasing.writers.get(node)
        if isinstance(lifted, Primitive) and changes is not None:
            return f"it changes '{changes.name}' in place, which is read again"
        return lifted

    def _takes_one_value(self, node: fx.Node, does: Operator) -> bool:
        """Whether ``node`` applies its operator to one value that depends on the inputs: its first, or any of a sum."""
        if node.op == "call_module":
            return len(node.all_input_nodes) == len(node.args) + len(node.kwargs) == 1
        if node in self.constants or node.kwargs.get("out") is not None:
            return False
        source = argument(node, 0, "input")
        return does.broadcasts or (isinstance(source, fx.Node) and source not in self.constants)
