"""Where a network runs: on a copy, whose modules tell when they run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nbcompile.core.copies import copied, shadow
from nbcompile.core.layers import why_changed
from nbcompile.core.running import storages, tensors_of
from nbcompile.core.tracing.modules import calls_itself, changed, hollow_scripts, is_leaf, state


@dataclass(frozen=True, eq=False)
class Part:
    """A module of the copy.

    Attributes:
        name: qualified; empty for the network itself.
        module: it.
        leaf: whether it is one node of every graph.
        one: whether it is one node, because it is a leaf or carries what a graph would lose.
        around: names of the modules that hold it, if it holds tensors.
    """

    name: str
    module: nn.Module
    leaf: bool
    one: bool
    around: frozenset[str]


class Watcher(Protocol):
    """Is told of every call of a module, but of the network itself; torch's functions are not told of what it does."""

    def entered(self, part: Part, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """It is called."""

    def left(self, part: Part, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
        """It gave ``value``, or raised, and that is None; what is returned takes its place."""


class Rig:
    """A copy of a network, which serves as long as no run changes it; then there is another.

    Args:
        model: left as it is. Its weights are the copy's, too, until somebody asks for weights of its own.

    Attributes:
        writes: whether the network writes into its weights.
        kept: names of the modules, and of their attributes, that the last run changed.
        names: of the tensors of the copy, by identity; of several the first.
        state: identities of its parameters and buffers.
        shared: the storages that are the model's own.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.writes = model, False
        self.kept: list[tuple[str, str]] = []
        self._root: nn.Module | None = None
        self._watcher: Watcher | None = None
        self._hooks = ExitStack()

    @property
    def root(self) -> nn.Module:
        """The copy."""
        if self._root is None:
            self._set_up()
        assert self._root is not None
        return self._root

    def clear(self, *, writes: bool = False) -> None:
        """Let the next run be on a copy that never ran, with weights of its own if it ``writes``; forget this one."""
        self._root, self.writes = None, self.writes or writes
        self._hooks.close()

    def owns(self, module: nn.Module) -> bool:
        """Whether all tensors of ``module`` are still those that the copy had before the run."""
        holders = module.modules() if module._modules else (module,)
        held = (x for one in holders for x in (*one._parameters.values(), *one._buffers.values()))
        return all(x is None or id(x) in self.names for x in held)

    @contextmanager
    def running(self, watcher: Watcher | None = None) -> Iterator[nn.Module]:
        """Inside, the copy may run; ``watcher`` is told."""
        root, self._watcher = self.root, watcher
        try:
            yield root
        finally:
            self._watcher = None
            self.kept = changed(self._before, state(root))
            if self.kept:
                self.clear()

    def _set_up(self) -> None:
        root = copied(self.model) if self.writes else shadow(self.model)
        modules, around = hollow_scripts(root), holders(root)
        named = list(_named(root))
        self.names = {id(x): name for name, x in named}
        self.state = frozenset(map(id, tensors_of(root)))
        self.shared = frozenset[int]() if self.writes else storages(root)
        for name, module in modules:
            if module is not root and not calls_itself(module):
                leaf = is_leaf(module)
                one = leaf or why_changed(module) is not None
                self._watch(Part(name, module, leaf, one, around[module]))
        self._root, self._before = root, state(root)

    def _watch(self, part: Part) -> None:
        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            if self._watcher is not None:
                with torch._C.DisableTorchFunction():
                    self._watcher.entered(part, args, kwargs)

        def leave(_: nn.Module, args: Any, kwargs: Any, value: Any) -> Any:
            if self._watcher is None:
                return value
            with torch._C.DisableTorchFunction():
                return self._watcher.left(part, args, kwargs, value)

        # other hooks of the module are what it does, too
        for hook in (
            part.module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True),
            part.module.register_forward_hook(leave, with_kwargs=True, always_call=True),
        ):
            self._hooks.callback(hook.remove)


def holders(root: nn.Module) -> dict[nn.Module, frozenset[str]]:
    """The modules of ``root`` that hold each module that holds tensors, under whatever name."""
    named = dict(root.named_modules(remove_duplicate=False))
    first = {module: name for name, module in reversed(named.items())}
    around: dict[nn.Module, set[str]] = {module: set() for module in named.values()}
    for name, module in named.items():
        parent, _, last = name.rpartition(".")
        if last and next(tensors_of(module), None) is not None:
            around[module] |= {first[named[parent]]} | around[named[parent]]
    return {module: frozenset(names - {""}) for module, names in around.items()}


def _named(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and tensors in plain attributes; of a tensor with several names the first comes last."""
    found = [*root.named_parameters(), *root.named_buffers()]
    for name, module in root.named_modules():
        plain_ones = ((key, x) for key, x in vars(module).items() if isinstance(x, Tensor))
        found += [(f"{name}.{key}".lstrip("."), x) for key, x in plain_ones]
    return reversed(found)
