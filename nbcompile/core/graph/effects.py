"""What a node of a graph does beside giving a value."""

from torch import fx

from nbcompile.core.graph.aliasing import writes_in_place
from nbcompile.core.graph.nodes import module_of, operator_of
from nbcompile.core.graph.operators import is_foreign


def only_gives(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether ``node`` does nothing that would be missed if nobody reads it, and as much each time.

    A check, a function that is not torch's, a random number, a module with hooks or of a class that is not torch's, or
    in training mode, may do more; so does what writes into a value.
    """
    if node.op in ("placeholder", "output") or writes_in_place(gm, node):
        return False
    module = module_of(gm, node)
    if operator_of(gm, node).random:
        return False
    if module is not None:
        hooked = module._forward_hooks or module._forward_pre_hooks
        return type(module).__module__.startswith("torch.nn") and not hooked and not module.training
    return node.op == "get_attr" or not (is_foreign(node) or node.is_impure())
