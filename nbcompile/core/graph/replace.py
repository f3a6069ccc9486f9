"""What hangs in a module's tree: putting a module in the place of another, and dropping what a graph does not read."""

from collections.abc import Callable, Mapping

from torch import fx, nn

from nbcompile.core.graph.nodes import aliases


def put(tree: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace ``old`` by ``new`` in ``tree``, under every name it has there."""
    for name in aliases(tree, old):
        tree.set_submodule(name, new)


def put_all(tree: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Replace each key of ``new`` by its value in ``tree``, under every name it has there; none is in another."""
    for name, old in list(tree.named_modules(remove_duplicate=False)):
        if old in new:
            tree.set_submodule(name, new[old])


class FreeNames:
    """Names that no module of ``tree`` has."""

    def __init__(self, tree: nn.Module) -> None:
        self._taken = {name for name, _ in tree.named_modules()}

    def like(self, name: str) -> str:
        """``name``, or one that starts so; it is taken from now on."""
        while name in self._taken:
            name += ".merged" if not name.endswith("merged") else "_"
        self._taken.add(name)
        return name


def drop_unread(gm: fx.GraphModule, may_go: Callable[[fx.Node], bool]) -> None:
    """Remove nodes that ``may_go``, modules, parameters and buffers that nothing reads any more."""
    for node in reversed(gm.graph.nodes):
        if not node.users and may_go(node):
            gm.graph.erase_node(node)
    keep_what_is_read(gm)


def keep_what_is_read(gm: fx.GraphModule) -> None:
    """Let ``gm`` hold the modules that its graph calls, the tensors that it reads, and nothing else.

    Its tree is made anew, because the old one may be of others: the modules in it are those of the model that was
    captured, and one of which only a tensor is read by now must keep the rest there.
    """
    called = {str(node.target) for node in gm.graph.find_nodes(op="call_module")}
    read = called | {str(node.target) for node in gm.graph.find_nodes(op="get_attr")}
    holders = {target[:end] for target in read for end, sign in enumerate(target) if sign == "."}
    tree = _grown(gm, "", called, read, holders)
    for name in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
        setattr(gm, name, getattr(tree, name))


def _grown(old: nn.Module, prefix: str, called: set[str], read: set[str], holders: set[str]) -> nn.Module:
    """A bare module with what is read of ``old``, whose name is ``prefix``; ``holders`` are read of, too."""
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
        elif path in holders:
            new.add_module(name, _grown(child, f"{path}.", called, read, holders))
    return new
