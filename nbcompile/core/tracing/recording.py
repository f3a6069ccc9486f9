"""What is written down of one run of a network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from nbcompile.core.example import TensorSpec
from nbcompile.core.tracing.call import Call


@dataclass(frozen=True)
class Reason:
    """Why a graph cannot say what code did.

    Attributes:
        place: file, line and function of that code.
        why: what the code does.
    """

    place: str
    why: str

    def __str__(self) -> str:
        return f"{self.place}: it {self.why}"


@dataclass(frozen=True)
class Choice:
    """That Python chose its way by comparing numbers.

    Attributes:
        function: the comparison.
        numbers: its operands, nodes among them.
        outcome: what it gave.
        inside: the module in which it was made.
        place: the code that made it.
    """

    function: Callable[..., Any]
    numbers: tuple[Any, ...]
    outcome: bool
    inside: str
    place: str

    @property
    def nodes(self) -> list[fx.Node]:
        """The operands that are nodes."""
        return [x for x in self.numbers if isinstance(x, fx.Node)]


@dataclass(eq=False)
class Recording:
    """One run.

    Attributes:
        graph: numbers in it that depend on sizes are nodes marked as such, if it was recorded so.
        constants: tensors from elsewhere, by the names under which the graph reads them.
        opaque: why a module is one node that is no leaf, by its name.
        calls: how each module was called that is no leaf: the call, and its tensors.
        passed_by: names of modules whose inner modules, of those that hold tensors, were called while they did not run.
        refusal: why the network as a whole cannot be said; the graph is then without an output.
        asks_layout: whether code asked how a value that depends on the inputs lies in memory.
        choices: that Python made by comparing sizes.
        outputs: what the network returned.
        tensors: what it ran on.
        root: the copy that ran, as the run has left it; none unless the run has changed it.
        kept: names of its modules, and of their attributes, that the run changed.
        seen: values of nodes, as they are after the run.
    """

    graph: fx.Graph = field(default_factory=fx.Graph)
    constants: dict[str, Tensor] = field(default_factory=dict)
    opaque: dict[str, Reason] = field(default_factory=dict)
    calls: dict[str, list[tuple[Call | None, list[TensorSpec]]]] = field(default_factory=dict)
    passed_by: set[str] = field(default_factory=set)
    refusal: Reason | None = None
    asks_layout: bool = False
    choices: list[Choice] = field(default_factory=list)
    outputs: Any = None
    tensors: Sequence[Tensor] = ()
    root: nn.Module | None = None
    kept: list[tuple[str, str]] = field(default_factory=list)
    seen: dict[fx.Node, Tensor] = field(default_factory=dict)
