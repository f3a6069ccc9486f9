"""What a graph checks when it runs, because it was made for these inputs only."""

from typing import Any

from torch import Tensor, fx

from nbcompile.core.errors import PreconditionError


class OtherSizesError(PreconditionError):
    """A graph was made for other sizes than it is given."""


class CheckedGraph(fx.GraphModule):
    """A graph of a network that says what is wrong if it is called as the network can be, and it cannot."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph.

        Raises:
            PreconditionError: if it is called with more than its inputs.
        """
        names = [str(node.target) for node in self.graph.find_nodes(op="placeholder")]
        if len(args) > len(names) or not kwargs.keys() <= set(names):
            more = [*(k for k in kwargs if k not in names), *(f"input {i + 1}" for i in range(len(names), len(args)))]
            raise PreconditionError(
                f"the graph of this {type(self).__name__} takes {', '.join(names)}, as in the example that it was "
                f"made with, and no {more[0]}: all else is as it was then; make it again with an example with {more[0]}"
            )
        return super().__call__(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        """A copy that has the network's name, too."""
        made: fx.GraphModule = super().__deepcopy__(memo)
        type(made).__name__ = type(self).__name__
        return made


@fx.has_side_effect
def require_sizes(x: Tensor, name: str, sizes: tuple[int | None, ...]) -> None:
    """Check the sizes of an input, but for its batch.

    Args:
        x: the input.
        name: of it.
        sizes: of its dimensions from the second on; None where any will do.

    Raises:
        OtherSizesError: if they are others.
    """
    given = tuple(x.shape[1:])
    if len(given) != len(sizes) or any(size not in (None, n) for size, n in zip(sizes, given, strict=True)):
        held = ", ".join("any" if size is None else str(size) for size in sizes)
        raise OtherSizesError(
            f"'{name}' has the sizes {given} behind its batch, but the graph holds for ({held}) "
            "only: the network chooses its way by them, or computes with them in a way that could not be followed; "
            "make it again with an example input of the sizes that you want"
        )


@fx.has_side_effect
def require_same_choice(outcome: Any, expected: bool, place: str) -> None:
    """Check that code which chose its way by sizes would choose as it did.

    Args:
        outcome: of its comparison, for the inputs at hand.
        expected: what it was for the example.
        place: file, line and function of the code.

    Raises:
        OtherSizesError: if it would choose otherwise.
    """
    if bool(outcome) != expected:
        raise OtherSizesError(
            f"{place}: the network chooses its way by the sizes of its input, and for these it is another than the "
            "graph's; make it again with an example input of the sizes that you want"
        )


def is_guarded(gm: fx.GraphModule) -> bool:
    """Whether ``gm`` holds for some sizes only."""
    return any(gm.graph.find_nodes(op="call_function", target=check) for check in (require_sizes, require_same_choice))
