"""What to merge in a chain: what a plan says, and what it leaves alone with which reason."""

from dataclasses import dataclass, field

from torch import fx

from nbcompile.core.affine.chains import Chain, Join, joins
from nbcompile.core.affine.cost_law import Expense
from nbcompile.core.affine.primitive import Primitive


@dataclass(frozen=True, eq=False)
class Merge:
    """Consecutive elements of a chain that become one layer.

    Attributes:
        elements: first to last.
        axes: number of spatial axes.
        channels: that the first takes.
    """

    elements: tuple[Primitive | Join, ...]
    axes: int
    channels: int


@dataclass(frozen=True)
class Refusal:
    """Elements that could have become one layer, and why they do not."""

    elements: tuple[Primitive | Join, ...]
    reason: str


@dataclass(frozen=True, eq=False)
class Regrouping:
    """A sum that is written anew, because some of its branches become one layer.

    Attributes:
        join: the sum.
        merges: each of a join of some of its branches, which no other has.
    """

    join: Join
    merges: tuple[Merge, ...]


@dataclass
class Plan:
    """What to merge in a chain, joins inside it included."""

    expense: Expense = field(default_factory=Expense)
    merges: list[Merge] = field(default_factory=list)
    regroupings: list[Regrouping] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def __add__(self, other: "Plan") -> "Plan":
        """Both."""
        return Plan(
            self.expense + other.expense,
            self.merges + other.merges,
            self.regroupings + other.regroupings,
            self.refusals + other.refusals,
        )


def halves_a_sum(chain: Chain, plan: Plan) -> bool:
    """Whether, by ``plan``, a sum that has the node of the one around it would stand for that one.

    A term that goes on from the chain before its base can meet another term there: then a sum is in a sum, and one node
    is the value of both. All of it can become one layer; a part of it cannot, for want of a node of its own.
    """
    outer: dict[fx.Node, Join] = {}
    inner = {join.node for join in joins(chain) if outer.setdefault(join.node, join) is not join}
    merged = [merge.elements[-1] for merge in plan.merges]
    return any(outer[node] not in merged for node in inner)
