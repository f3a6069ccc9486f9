"""What affine regions are made of: chains of affine nodes, and sums and concatenations of chains over one value.

A region is a tree: a :class:`Chain` of primitives and of :class:`Join` s, whose branches are chains again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import fx

from nbcompile.core.affine.primitive import ANY_AXES, Primitive


@dataclass(frozen=True, eq=False)
class Join:
    """Parallel branches over one value.

    Attributes:
        node: gives the sum or the concatenation.
        branches: without elements where a branch is the value itself.
        dim: along which they are concatenated; None for a sum.
        nodes: all nodes that join, ``node`` among them.
        factors: of the branches of a sum.
    """

    node: fx.Node
    branches: tuple["Chain", ...]
    dim: int | None
    nodes: tuple[fx.Node, ...]
    factors: tuple[float, ...]

    @property
    def axes(self) -> frozenset[int]:
        """The numbers of spatial axes that all branches fit."""
        return frozenset.intersection(ANY_AXES, *(branch.axes for branch in self.branches))


@dataclass(frozen=True, eq=False)
class Chain:
    """Affine maps, one after the other.

    Attributes:
        base: the value that the first is applied to.
        elements: first to last.
    """

    base: fx.Node
    elements: tuple["Primitive | Join", ...] = ()

    @property
    def axes(self) -> frozenset[int]:
        """The numbers of spatial axes that all elements fit."""
        return frozenset.intersection(ANY_AXES, *(element.axes for element in self.elements))

    def then(self, element: "Primitive | Join") -> "Chain":
        """The chain, longer by one."""
        return replace(self, elements=(*self.elements, element))


def primitives(chain: Chain | tuple[Primitive | Join, ...]) -> Iterator[Primitive]:
    """The primitives of a chain or of some of its elements, in the order of reading."""
    for element in chain.elements if isinstance(chain, Chain) else chain:
        if isinstance(element, Primitive):
            yield element
        else:
            for branch in element.branches:
                yield from primitives(branch)


def joins(chain: Chain) -> Iterator[Join]:
    """The joins of a chain and of their branches, outer ones before those in them."""
    for element in chain.elements:
        if isinstance(element, Join):
            yield element
            for branch in element.branches:
                yield from joins(branch)


def nodes_of(elements: tuple[Primitive | Join, ...]) -> Iterator[fx.Node]:
    """All nodes of some elements."""
    for element in elements:
        if isinstance(element, Primitive):
            yield from (*element.parts, element.node)
        else:
            for branch in element.branches:
                yield from nodes_of(branch.elements)
            yield from element.nodes


@dataclass(frozen=True)
class Sum:
    """A sum of which only some terms can be joined.

    Attributes:
        node: gives it.
        nodes: all nodes that add, ``node`` among them.
        terms: chains; those without elements are values as they are.
    """

    node: fx.Node
    nodes: tuple[fx.Node, ...]
    terms: tuple[Chain, ...]


def flattened(join: Join) -> Join:
    """A sum one of whose branches is nothing but a sum, as one sum."""
    if join.dim is not None:
        return join
    branches: list[Chain] = []
    factors: list[float] = []
    nodes: list[fx.Node] = []
    for branch, factor in zip(join.branches, join.factors, strict=True):
        inner = branch.elements[0] if len(branch.elements) == 1 else None
        if isinstance(inner, Join) and inner.dim is None:
            branches += inner.branches
            factors += [factor * one for one in inner.factors]
            nodes += inner.nodes
        else:
            branches.append(branch)
            factors.append(factor)
    return replace(join, branches=tuple(branches), factors=tuple(factors), nodes=(*nodes, *join.nodes))


def first_nodes(join: Join) -> set[fx.Node]:
    """The nodes of a join that read the value it starts at."""
    firsts: set[fx.Node] = set()
    for branch in join.branches:
        first = branch.elements[0] if branch.elements else None
        if first is None:
            firsts.update(join.nodes)
        elif isinstance(first, Primitive):
            firsts.update((first.node, *first.parts))
        else:
            firsts |= first_nodes(first)
    return firsts
