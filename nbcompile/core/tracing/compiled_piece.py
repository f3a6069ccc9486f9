"""What stands in a model for a module that was compiled: its graph, in that module's clothes."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch import fx, nn

from nbcompile.core.graph.guards import OtherSizesError
from nbcompile.core.tracing.call import Call


class CompiledPiece(nn.Module):
    """Computes what a module computed, by the graph that was compiled from it.

    To the code around it, it is still that module: all its attributes and methods are there, and ``isinstance`` holds,
    because the module itself stays alive behind it, outside the module tree (no key of the ``state_dict`` is its).
    It answers what the graph cannot: attributes, methods, and calls of another kind than the captured one. It shares
    its layers with the graph; only those that a merge replaced are kept twice.

    Args:
        original: the module.
        compiled: its graph.
        call: the kind of call that the graph stands for.
    """

    def __init__(self, original: nn.Module, compiled: fx.GraphModule, call: Call) -> None:
        super().__init__()
        self.compiled = compiled
        self.__dict__.update(_original=original, _call=call, training=original.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The graph's output; for another kind of call, or sizes that it was not made for, the original's."""
        tensors = self._call.tensors(args, kwargs)
        if tensors is not None:
            with suppress(OtherSizesError):
                return self.compiled(*tensors)
        return self._original(*args, **kwargs)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """For ``isinstance``."""
        return type(self.__dict__["_original"]) if "_original" in self.__dict__ else CompiledPiece

    def __getattr__(self, name: str) -> Any:
        """What the module tree holds is the graph; everything else is the original's."""
        if name == "compiled" and "_modules" in self.__dict__:
            return self.__dict__["_modules"][name]
        if name.startswith("__") or "_original" not in self.__dict__:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        return getattr(self.__dict__["_original"], name)

    def __reduce__(self) -> Any:
        """For copies and pickles; ``__class__`` would mislead the default."""
        return _blank, (type(self),), self.__dict__

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        """Casts and moves go to the original, too; what both have is cast once more, which changes nothing."""
        self._original._apply(fn, recurse)
        applied: nn.Module = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return applied

    def train(self, mode: bool = True) -> "CompiledPiece":
        """The mode of the original, too."""
        self._original.train(mode)
        return super().train(mode)


class _CompiledSequence(CompiledPiece):
    """A sequence stays one."""

    def __len__(self) -> int:
        return len(self._original)

    def __getitem__(self, index: Any) -> Any:
        return self._original[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._original)


def dressed(original: nn.Module, compiled: fx.GraphModule, call: Call) -> CompiledPiece:
    """``compiled`` in the clothes of ``original``."""
    return (_CompiledSequence if isinstance(original, nn.Sequential) else CompiledPiece)(original, compiled, call)


def _blank(cls: type[CompiledPiece]) -> CompiledPiece:
    return cls.__new__(cls)
