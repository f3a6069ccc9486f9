"""What a pass is: ``requires``, ``call``, ``ensures``, and an honest result."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import fx


@dataclass(frozen=True)
class Skip:
    """Something a pass could have rewritten and did not, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class PassResult:
    """What a pass did.

    Attributes:
        gm: the graph, rewritten in place.
        rewritten: names of the layers or nodes it changed.
        skipped: what it left alone, with reasons.
        how: for people, a line for each of ``rewritten``, if its name does not say it all.
    """

    gm: fx.GraphModule
    rewritten: tuple[str, ...] = ()
    skipped: tuple[Skip, ...] = ()
    how: tuple[str, ...] = ()

    @property
    def modified(self) -> bool:
        """Whether the graph differs from before."""
        return bool(self.rewritten)


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a graph, in place; its fields are its options."""

    name: ClassVar[str]

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Check, rewrite, check the *result*; the graph can then be run."""
        result = self.apply(gm)
        result.gm.recompile()
        return result

    def apply(self, gm: fx.GraphModule) -> PassResult:
        """As a call, for who recompiles the graph later."""
        self.requires(gm)
        result = self.call(gm)
        result.gm.graph.lint()
        self.ensures(result.gm)
        return result

    def requires(self, gm: fx.GraphModule) -> None:  # noqa: B027 - most passes take any graph
        """Raise PreconditionError where the input is not ready."""

    @abstractmethod
    def call(self, gm: fx.GraphModule) -> PassResult:
        """Rewrite ``gm``."""

    def ensures(self, gm: fx.GraphModule) -> None:  # noqa: B027
        """Raise PostconditionError where the result is wrong."""
