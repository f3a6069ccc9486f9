"""Which parts of an affine region to merge: the cost law, and the cheapest split of a chain.

A merge must be exact, be what one layer can do, contain a convolution or linear layer, and let neither multiply-
accumulates nor stored numbers grow; of all splits of a chain the one with the fewest multiply-accumulates wins, then
with the fewest weights, then with the fewest nodes. Decided on geometries: no weight is touched, but where a
border asks for the value of a shift. Multiply-accumulates depend on the size of the map, which a graph does not say: a
merge must pay on the smallest map that the region can take and on a large one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from nbcompile.core.affine.cost_law import Expense, TwoSizes, one_layer
from nbcompile.core.affine.evaluate import Element, Outlines
from nbcompile.core.affine.lifter import Lifter
from nbcompile.core.affine.primitive import Primitive
from nbcompile.core.affine.regions import Chain, Join, nodes_of, primitives
from nbcompile.core.affine.to_layer import why_no_one_layer
from nbcompile.core.algebra import Geometry, NotExact

LARGE_MAP = 224
"""Size per axis of the large map; of larger ones where the smallest is large already, four times that."""


@dataclass(frozen=True, eq=False)
class Merge:
    """Consecutive elements of a chain that become one layer.

    Attributes:
        elements: first to last.
        axes: number of spatial axes.
        channels: that the first takes.
    """

    elements: tuple[Element, ...]
    axes: int
    channels: int


@dataclass(frozen=True)
class Refusal:
    """Elements that could have become one layer, and why they do not."""

    elements: tuple[Element, ...]
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


class Planner:
    """Plans the regions of one graph."""

    def __init__(self, lifter: Lifter) -> None:
        self._lifter = lifter

    def plan(self, chain: Chain) -> Plan:
        """The cheapest way to compute ``chain``."""
        if not any(p.layer for p in primitives(chain)):
            return Plan(refusals=[Refusal(chain.elements, "no convolution or linear layer is among them")])
        if len(chain.axes) != 1:
            return Plan(refusals=[Refusal(chain.elements, "what dimension their channels are cannot be told")])
        (axes,) = chain.axes
        channels = self._channels(chain)
        if channels is None:
            return Plan(refusals=[Refusal(chain.elements, f"how many channels '{chain.base.name}' has cannot be told")])
        search = _Search(axes, self._lifter)
        try:
            return search.chain(chain.elements, channels, search.sizes_for(chain.elements, channels))
        except NotExact as reason:
            return Plan(refusals=[Refusal(chain.elements, str(reason))])

    def _channels(self, chain: Chain) -> int | None:
        """Channels of the value a chain starts at: what its first layer takes, if nothing before could stretch it."""
        found, certain = _first_inputs(chain.elements)
        if found is not None and certain:
            return found
        shape = self._lifter.shapes.of(chain.base)
        axes = next(iter(chain.axes))
        seen = None if shape is None or len(shape) <= axes else shape[-axes - 1]
        return seen if found in (None, seen) else None


def _first_inputs(elements: Sequence[Element]) -> tuple[int | None, bool]:
    """The channels that the first layer or norm takes, and whether the base is sure to have as many."""
    certain = True
    for element in elements:
        if isinstance(element, Primitive):
            if element.inputs is not None:
                return element.inputs, certain
            if element.cuts:
                return None, False
            certain = certain and not element.outer
        else:
            found = [_first_inputs(branch.elements) for branch in element.branches]
            known = [one for one in found if one[0] is not None]
            if known:
                return max(known, key=lambda one: one[1])[0], certain and any(sure for _, sure in known)
            certain = certain and not any(p.outer or p.cuts for p in primitives((element,)))
    return None, False


class _Search:
    """The cheapest split of chains that have one number of spatial axes."""

    def __init__(self, axes: int, lifter: Lifter) -> None:
        self._axes = axes
        self._constants = lifter.constants
        self._outlines = Outlines(axes, lifter)

    def chain(self, elements: tuple[Element, ...], channels: int, sizes: TwoSizes) -> Plan:
        """The best plan for ``elements`` on maps of these sizes."""
        starts = list(self._states(elements, channels, sizes))
        as_it_is = [self._expense(e, c, s) for e, (c, s) in zip(elements, starts, strict=False)]
        refusals: list[Refusal] = []
        options: dict[int, list[tuple[int, Plan]]] = {end: [] for end in range(len(elements) + 1)}
        for i, (element, (width, size)) in enumerate(zip(elements, starts, strict=False)):
            options[i + 1].append((i, self._kept(element, as_it_is[i], width, size)))
            for j, geometry in self._merged(elements, i, width, refusals):
                part = elements[i : j + 1]
                before = sum(as_it_is[i : j + 1], Expense())
                if reason := self._why_not(part, geometry, before, size):
                    refusals.append(Refusal(part, reason))
                else:
                    merge = Merge(part, self._axes, width)
                    options[j + 1].append((i, Plan(one_layer(geometry, size), [merge])))
        best = [Plan()]
        for end in range(1, len(elements) + 1):
            latest_first = sorted(options[end], key=lambda option: -option[0])  # a norm joins the layer before it
            best.append(min((best[i] + plan for i, plan in latest_first), key=lambda plan: plan.expense))
        return replace(best[-1], refusals=best[-1].refusals + refusals)

    def sizes_for(self, elements: tuple[Element, ...], channels: int) -> TwoSizes:
        """A large map, and the smallest that every layer of ``elements`` can take."""
        low, high = 0, 1
        while not self._fits(elements, channels, high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._fits(elements, channels, middle) else (middle, high)
        return (max(LARGE_MAP, 4 * high),) * self._axes, (high,) * self._axes

    def _fits(self, elements: tuple[Element, ...], channels: int, side: int) -> bool:
        try:
            list(self._states(elements, channels, ((side,) * self._axes,)))
        except _TooSmall:
            return False
        return True

    def _states(self, elements: tuple[Element, ...], channels: int, sizes: TwoSizes) -> Iterator[tuple[int, TwoSizes]]:
        """Channels and sizes before every element, and after the last."""
        yield channels, sizes
        for element in elements:
            channels, sizes = self._after(element, channels, sizes)
            yield channels, sizes

    def _after(self, element: Element, channels: int, sizes: TwoSizes) -> tuple[int, TwoSizes]:
        if isinstance(element, Primitive):
            geometry = self._outlines.of(element, channels)
            if geometry.inputs != channels:
                raise NotExact(f"'{element.name}' takes {geometry.inputs} channels and gets {channels}")
            after = tuple(geometry.sizes(size) for size in sizes)
            if any(side < 1 for size in after for side in size):
                raise _TooSmall
            return geometry.outputs, after
        ends = [list(self._states(branch.elements, channels, sizes))[-1] for branch in element.branches]
        return (ends[0][0] if element.dim is None else sum(width for width, _ in ends)), ends[0][1]

    def _expense(self, element: Element, channels: int, sizes: TwoSizes) -> Expense:
        """What an element costs as it is."""
        if isinstance(element, Primitive):
            nodes = 1 + len(element.parts) + self._constants.steps(element.node)
            if not element.layer:
                return Expense(nodes=nodes, vectors=element.constants)
            layer = one_layer(self._outlines.of(element, channels), sizes)
            return Expense(layer.macs, element.constants - layer.vectors, nodes, layer.vectors)
        total = Expense(nodes=len(element.nodes))
        for branch in element.branches:
            states = self._states(branch.elements, channels, sizes)
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
            return apart
        return min(apart, self._regrouped(element, plans, channels, sizes), key=lambda plan: plan.expense)

    def _regrouped(self, join: Join, plans: list[Plan], channels: int, sizes: TwoSizes) -> Plan:
        """Branches become one layer two by two, until no two can."""
        terms = zip(join.branches, join.factors, plans, strict=True)
        groups = [(replace(join, branches=(branch,), factors=(factor,)), plan) for branch, factor, plan in terms]
        while (found := self._pair(groups, channels, sizes)) is not None:
            i, j, both = found
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
            if merged is not None and merged.expense < (plan + other).expense + Expense(nodes=1):
                return i, j, (both, merged)
        return None

    def _one_layer(self, join: Join, channels: int, sizes: TwoSizes) -> Plan | None:
        """A plan that merges some branches of a sum, if that may be."""
        try:
            geometry = self._outlines.of(join, channels)
        except NotExact:
            return None
        if self._why_not((join,), geometry, self._expense(join, channels, sizes), sizes):
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

    def _why_not(self, part: tuple[Element, ...], geometry: Geometry, before: Expense, sizes: TwoSizes) -> str | None:
        """Why a part that is one map does not become one layer; empty where there is nothing to merge."""
        if not any(p.layer for p in primitives(part)):
            return "no convolution or linear layer is among them"
        if before.nodes == 1:
            return "it is one layer already"
        nodes = set(nodes_of(part))
        stays = sum(p.constants for p in primitives(part) if not self._constants.readers(p.node) <= nodes)
        return why_no_one_layer(geometry) or one_layer(geometry, sizes).grows(
            replace(before, vectors=before.vectors - stays)
        )


class _TooSmall(Exception):  # noqa: N818 - a verdict
    """A map of this size is smaller than a kernel."""
