"""What hangs in a module's tree: putting a module in the place of another, and dropping what a graph does not read."""

from torch import fx, nn

from nbcompile.core.graph.nodes import aliases


def put(tree: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace ``old`` by ``new`` in ``tree``, under every name it has there."""
    for name in aliases(tree, old):
        tree.set_submodule(name, new)


def keep_what_is_read(gm: fx.GraphModule) -> None:
    """Let ``gm`` hold the modules that its graph calls, the tensors that it reads, and nothing else.

    Its tree is made anew, because the old one may be of others: the modules in it are those of the model that was
    captured, and one of which only a tensor is read by now must keep the rest there.
    """
    called = {str(node.target) for node in gm.graph.find_nodes(op="call_module")}
    read = called | {str(node.target) for node in gm.graph.find_nodes(op="get_attr")}
    tree = _grown(gm, "", called, read)
    for name in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
        setattr(gm, name, getattr(tree, name))


def _grown(old: nn.Module, prefix: str, called: set[str], read: set[str]) -> nn.Module:
    """A bare module with what is read of ``old``, whose name is ``prefix``."""
    new = nn.Module().train(old.training)
    for name, parameter in old._parameters.items():
        if prefix + name in read:
            new.register_parameter(name, parameter)
    for name, buffer in old._buffers.items():
        if prefix + name in read:
            new.register_buffer(name, buffer, persistent=name not in old._non_persistent_buffers_set)
    for name, value in vars(old).items():
        if prefix and prefix + name in read:  # a plain attribute; those of the root stay where they are
            setattr(new, name, value)
    for name, child in old.named_children():
        path = prefix + name
        if path in called:
            new.add_module(name, child)
        elif any(target.startswith(f"{path}.") for target in read):
            new.add_module(name, _grown(child, f"{path}.", called, read))
    return new
