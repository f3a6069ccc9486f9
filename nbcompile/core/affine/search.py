"""The cost law, and the cheapest split of a chain.

A merge must be exact, be what one layer can do, contain a convolution or linear layer, and let neither multiply-
accumulates nor stored numbers grow; of all splits of a chain the one with the fewest multiply-accumulates wins, then
with the fewest weights, then with the fewest nodes. Decided on geometries: no weight is touched, but where a
border asks for the value of a shift.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations

from nbcompile.core.affine.chains import Join, nodes_of, primitives
from nbcompile.core.affine.cost_law import Expense, TwoSizes, one_layer
from nbcompile.core.affine.evaluate import Element, Outlines
from nbcompile.core.affine.lifter import Lifter
from nbcompile.core.affine.map_sizes import Walk
from nbcompile.core.affine.plan import Merge, Plan, Refusal, Regrouping
from nbcompile.core.affine.primitive import Primitive
from nbcompile.core.affine.to_layer import why_no_one_layer
from nbcompile.core.algebra import Geometry, NotExact


@dataclass(frozen=True)
class Stretch:
    """What the cost law asks of elements in a row: sums over them, so that a longer part takes no longer.

    Attributes:
        expense: as they are.
        layer: whether a convolution or linear layer is among them.
        shared: those whose parameters something else than their own element reads, too.
    """

    expense: Expense = field(default_factory=Expense)
    layer: bool = False
    shared: tuple[Primitive, ...] = ()

    def __add__(self, other: "Stretch") -> "Stretch":
        """Both."""
        return Stretch(self.expense + other.expense, self.layer or other.layer, self.shared + other.shared)


@dataclass(frozen=True)
class _Way:
    """The cheapest way that is known to compute a chain up to some element.

    Attributes:
        expense: of all of it; None where there is no way yet.
        start: index of the first element of its last part.
        last: what is done with that part.
    """

    expense: Expense | None
    start: int = -1
    last: Plan = field(default_factory=Plan)

    def is_above(self, before: "_Way", last: Expense, start: int) -> bool:
        """Whether a way that goes on from ``before`` with a part that costs ``last`` is to be taken instead.

        Of equal costs the one with the shorter last part is: between two layers, a norm then belongs to the one before
        it, whose output it was trained to normalise.
        """
        assert before.expense is not None
        other = before.expense + last
        return self.expense is None or other < self.expense or (other == self.expense and start > self.start)

    def or_else(self, before: "_Way", last: Plan, start: int) -> "_Way":
        """The better one of the two."""
        if not self.is_above(before, last.expense, start):
            return self
        assert before.expense is not None
        return _Way(before.expense + last.expense, start, last)


class Search:
    """The cheapest split of chains that have one number of spatial axes.

    Attributes:
        walk: along the chains.
    """

    def __init__(self, axes: int, lifter: Lifter) -> None:
        self._axes = axes
        self._constants = lifter.constants
        self._outlines = Outlines(axes, lifter)
        self.walk = Walk(axes, self._outlines)

    def chain(self, elements: tuple[Element, ...], channels: int, sizes: TwoSizes) -> Plan:
        """The best plan for ``elements`` on maps of these sizes."""
        starts = list(self.walk.states(elements, channels, sizes))
        as_it_is = [self._part(e, self._expense(e, c, s)) for e, (c, s) in zip(elements, starts, strict=False)]
        refusals: list[Refusal] = []
        # Costs of parts add up, so the cheapest way to `end` goes through a cheapest way to where its last part starts:
        # n²/2 parts decide between the 2ⁿ splits.
        ways = [_Way(Expense())] + [_Way(None)] * len(elements)
        for i, (element, (width, size)) in enumerate(zip(elements, starts, strict=False)):
            ways[i + 1] = ways[i + 1].or_else(ways[i], self._kept(element, as_it_is[i].expense, width, size), i)
            part = Stretch()
            for j, geometry in self._merged(elements, i, width, refusals):
                part = part + as_it_is[j]
                if reason := self._why_not(elements[i : j + 1], part, geometry, size):
                    refusals.append(Refusal(elements[i : j + 1], reason))
                elif ways[j + 1].is_above(ways[i], one_layer(geometry, size), i):
                    merge = Merge(elements[i : j + 1], self._axes, width)
                    ways[j + 1] = ways[j + 1].or_else(ways[i], Plan(one_layer(geometry, size), [merge]), i)
        parts, end = list[Plan](), len(elements)
        while end:
            parts.append(ways[end].last)
            end = ways[end].start
        return sum(reversed(parts), Plan()) + Plan(refusals=refusals)

    def _expense(self, element: Element, channels: int, sizes: TwoSizes) -> Expense:
        """What an element costs as it is."""
        if isinstance(element, Primitive):
            nodes = 1 + len(element.parts) + self._constants.steps(element.node)
            if not element.layer:
                return Expense(nodes=nodes, vectors=element.constants)
            layer = one_layer(self._outlines.of(element, channels), sizes)
            # What it stores, not what its geometry has: a computed weight may be made of fewer numbers, or of more.
            return Expense(layer.macs, element.constants - layer.vectors, nodes, layer.vectors)
        total = Expense(nodes=len(element.nodes))
        for branch in element.branches:
            states = self.walk.states(branch.elements, channels, sizes)
            for inner, (width, size) in zip(branch.elements, states, strict=False):
                total += self._expense(inner, width, size)
        return total

    def _kept(self, element: Element, as_it_is: Expense, channels: int, sizes: TwoSizes) -> Plan:
        """An element that is not merged with its neighbours; inside a join, branches may still merge."""
        if isinstance(element, Primitive):
            return Plan(as_it_is)
        plans = [self.chain(branch.elements, channels, sizes) for branch in element.branches]
        apart = sum(plans, Plan(Expense(nodes=len(element.nodes))))
        if element.dim is not None or len(plans) < 3:
            return apart  # of a concatenation no part is a value by itself; two branches merge as a whole or not
        return min(apart, self._regrouped(element, plans, channels, sizes), key=lambda plan: plan.expense)

    def _regrouped(self, join: Join, plans: list[Plan], channels: int, sizes: TwoSizes) -> Plan:
        """Branches become one layer two by two, until no two can."""
        terms = zip(join.branches, join.factors, plans, strict=True)
        groups = [(replace(join, branches=(branch,), factors=(factor,)), plan) for branch, factor, plan in terms]
        # Greedy, not every partition: what lets two branches merge, their strides and borders, a group has as they do.
        while (pair := self._pair(groups, channels, sizes)) is not None:
            i, j, both = pair
            groups = [*(group for k, group in enumerate(groups) if k not in (i, j)), both]
        merges = tuple(plan.merges[0] for group, plan in groups if len(group.branches) > 1)
        kept = [plan for group, plan in groups if len(group.branches) == 1]
        expense = sum((plan.expense for _, plan in groups), Expense(nodes=len(groups) - 1))
        return replace(sum(kept, Plan()), expense=expense) + Plan(regroupings=[Regrouping(join, merges)] * bool(merges))

    def _pair(
        self, groups: list[tuple[Join, Plan]], channels: int, sizes: TwoSizes
    ) -> tuple[int, int, tuple[Join, Plan]] | None:
        """Two groups of branches that become one layer at less cost, and that layer."""
        for (i, (a, plan)), (j, (b, other)) in combinations(enumerate(groups), 2):
            both = replace(a, branches=a.branches + b.branches, factors=a.factors + b.factors)
            merged = self._one_layer(both, channels, sizes)
            if merged is not None and merged.expense < (plan + other).expense + Expense(nodes=1):  # one for their sum
                return i, j, (both, merged)
        return None

    def _one_layer(self, join: Join, channels: int, sizes: TwoSizes) -> Plan | None:
        """A plan that merges some branches of a sum, if that may be."""
        try:
            geometry = self._outlines.of(join, channels)
        except NotExact:
            return None
        if self._why_not((join,), self._part(join, self._expense(join, channels, sizes)), geometry, sizes):
            return None
        return Plan(one_layer(geometry, sizes), [Merge((join,), self._axes, channels)])

    def _merged(
        self, elements: tuple[Element, ...], start: int, channels: int, refusals: list[Refusal]
    ) -> Iterator[tuple[int, Geometry]]:
        """The geometry of ``elements[start : j + 1]`` as one map, for every ``j`` that is exact."""
        geometry: Geometry | None = None
        for j in range(start, len(elements)):
            try:
                geometry = self._outlines.extended(elements[start:j], geometry, elements[j], channels)
            except NotExact as reason:
                refusals.append(Refusal(elements[start : j + 1], str(reason)))
                return
            yield j, geometry

    def _part(self, element: Element, expense: Expense) -> Stretch:
        """One element, which costs ``expense`` as it is."""
        nodes, own = set(nodes_of((element,))), list(primitives((element,)))
        shared = tuple(p for p in own if not self._constants.readers(p.node) <= nodes)
        return Stretch(expense, any(p.layer for p in own), shared)

    def _why_not(self, elements: tuple[Element, ...], part: Stretch, geometry: Geometry, sizes: TwoSizes) -> str | None:
        """Why a part that is one map does not become one layer; empty where there is nothing to merge."""
        if not part.layer:
            return "no convolution or linear layer is among them"
        before = part.expense
        if before.nodes == 1:
            return "it is one layer already"
        if part.shared:  # what a node outside reads, too, stays stored after the merge: it cannot pay for the new layer
            nodes = set(nodes_of(elements))
            stays = sum(p.constants for p in part.shared if not self._constants.readers(p.node) <= nodes)
            before = replace(before, vectors=before.vectors - stays)
        return why_no_one_layer(geometry) or one_layer(geometry, sizes).grows(before)
