"""Who has which name in a graph's module tree, and who reads its tensors: one walk for all questions."""

from functools import cached_property

from torch import Tensor, fx, nn

from nbcompile.core.graph.nodes import calls, norm_of


class Owners:
    """The modules and tensors of one graph.

    It is of the graph as it is when a question of its kind is first asked: who changes the graph makes another.

    Args:
        gm: the graph.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        self.gm = gm

    @cached_property
    def calls(self) -> dict[nn.Module, list[fx.Node]]:
        """The nodes that call each leaf module, whatever name they call it by."""
        return calls(self.gm)

    @cached_property
    def buffers(self) -> dict[str, Tensor]:
        """By every key that they have."""
        return dict(self.gm.named_buffers(remove_duplicate=False))

    @cached_property
    def means(self) -> dict[str, list[fx.Node]]:
        """The norms that normalise by a running mean, by its key, in graph order."""
        found: dict[str, list[fx.Node]] = {}
        for node in self.gm.graph.nodes:
            norm = norm_of(self.gm, node)
            if norm is not None and norm.running_mean is not None:
                found.setdefault(norm.running_mean, []).append(node)
        return found

    @cached_property
    def reads(self) -> dict[int, list[fx.Node]]:
        """The nodes that read a buffer as a value, by its identity."""
        found: dict[int, list[fx.Node]] = {}
        for node in self.gm.graph.find_nodes(op="get_attr"):
            if (buffer := self.buffers.get(str(node.target))) is not None:
                found.setdefault(id(buffer), []).append(node)
        return found

    def read_directly(self, module: nn.Module) -> bool:
        """Whether the graph reads a tensor of ``module`` past the module."""
        return not self._read.isdisjoint(self._names.get(module, ()))

    def tied_to(self, layer: nn.Module) -> str | None:
        """The key of a parameter of another module that is one of the layer's own, or None."""
        names = self._names.get(layer, ())
        keys = [key for p in layer.parameters(recurse=False) for key in self._keys.get(id(p), ())]
        return min(
            (key for key in keys if key.rpartition(".")[0] not in names), key=self._place.__getitem__, default=None
        )

    @cached_property
    def _names(self) -> dict[nn.Module, list[str]]:
        names: dict[nn.Module, list[str]] = {}
        for name, module in self.gm.named_modules(remove_duplicate=False):
            names.setdefault(module, []).append(name)
        return names

    @cached_property
    def _keys(self) -> dict[int, list[str]]:
        keys: dict[int, list[str]] = {}
        for key, parameter in self.gm.named_parameters(remove_duplicate=False):
            keys.setdefault(id(parameter), []).append(key)
        return keys

    @cached_property
    def _place(self) -> dict[str, int]:
        """The order of all parameters."""
        return {key: i for i, (key, _) in enumerate(self.gm.named_parameters(remove_duplicate=False))}

    @cached_property
    def _read(self) -> set[str]:
        """Names of the modules of which a tensor is read as a value."""
        return {str(node.target).rpartition(".")[0] for node in self.gm.graph.find_nodes(op="get_attr")}
