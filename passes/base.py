"""What a pass is: ``requires``, ``call``, ``ensures``, and an honest result."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from nbcompile.core.errors import PreconditionError
from nbcompile.core.graph.nodes import module_of, norm_of


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


def require_norms_in_eval_mode(gm: fx.GraphModule, who: str) -> None:
    """Check that batch norms normalise by what they have learnt.

    Raises:
        PreconditionError: naming the first that does not; ``who`` asks.
    """
    for node in gm.graph.nodes:
        norm, module = norm_of(gm, node), module_of(gm, node)
        if norm and norm.batch and module is not None and module.training:
            raise PreconditionError(f"{who}: '{node.target}' is in training mode; call model.eval() first")
