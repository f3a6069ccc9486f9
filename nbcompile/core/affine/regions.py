"""Finds the affine regions of a graph, as long as can be.

Values inside a region are read by nothing outside it, so a region can be replaced as a whole.
"""

from collections import Counter
from typing import Any

from torch import fx

from nbcompile.core.affine.chains import Chain, Join, Sum, first_nodes, flattened, nodes_of
from nbcompile.core.affine.lifter import Lifter
from nbcompile.core.affine.primitive import Primitive
from nbcompile.core.graph.nodes import argument, asks_metadata
from nbcompile.core.graph.operators import ADD, SPLITS, SUB, called, named


class Regions:
    """The regions of one graph.

    Attributes:
        chains: by the node that gives their value; as long as can be.
        sums: by the node that gives the sum.
        refused: nodes that look affine and are not, with the reason.
        lifted: nodes that are affine.
    """

    def __init__(self, lifter: Lifter) -> None:
        self._lifter = lifter
        self.chains: dict[fx.Node, Chain] = {}
        self.sums: dict[fx.Node, Sum] = {}
        self.refused: dict[fx.Node, str] = {}
        self.lifted: set[fx.Node] = set()
        self._asked: set[fx.Node] = set()
        for node in lifter.gm.graph.nodes:
            self._add(node)

    def _add(self, node: fx.Node) -> None:
        lifted = self._lifter.lift(node)
        if isinstance(lifted, str):
            self.refused[node] = lifted
        elif lifted is not None:
            self.lifted.add(node)
            self._append(node, lifted.source, lifted)
        elif called(node) in (ADD, SUB):
            self._sum(node)
        elif called(node) is named("cat"):
            self._concatenation(node)

    def _append(self, node: fx.Node, source: fx.Node, element: Primitive) -> None:
        """Let the chain that gives ``source`` end at ``node``, or start one there."""
        before = self.chains.get(source)
        # Who asks x.shape of a value inside the chain can ask the chain's end, if all between keeps shape and dtype.
        asking = {user for user in source.users if asks_metadata(user)} if element.same else set()
        own = {node, *element.parts, *asking}
        inherits = element.same and source in self._asked
        if before is not None and before.axes & element.axes and self._only(source, before, own, inherits):
            if asking or inherits:
                self._asked.add(node)
            del self.chains[source]
            self.chains[node] = before.then(element)
        else:
            self.chains[node] = Chain(source, (element,))

    def _only(self, source: fx.Node, chain: Chain, own: set[fx.Node], asked: bool = False) -> bool:
        """Whether nothing but ``own`` (and what belongs to the chain's last element) reads ``source``.

        Who asks for its shape alone can ask what the chain ends with instead, as long as that is ``asked`` to keep it.
        """
        if source in self._asked and not asked:
            return False
        # The parts of a split are nodes of their own, which only together read all of it: who reads them counts.
        last = chain.elements[-1]
        parts = set(last.parts) if isinstance(last, Primitive) else set()
        users = {one for user in source.users for one in (user.users if called(user) in SPLITS else (user,))}
        return users <= own | parts and source not in self._lifter.aliasing.changed

    def _sum(self, node: fx.Node) -> None:
        summands = self._terms(node)
        if summands is None or node in self._lifter.aliasing.writers:
            return
        terms, factors, nodes = summands
        if len(set(factors)) > 1 or factors[0] != 1:  # written anew, such a sum would need its factors: all or nothing
            self._whole(node, tuple(terms), None, nodes, tuple(factors))
            return
        joined = self._joined(node, terms, nodes)
        if len(joined) == 1:
            self._take(node, joined[0])
        elif any(isinstance(e, Join) and e.node is node for term in joined for e in term.elements):
            for inner in nodes:
                self.sums.pop(inner, None)
            self.sums[node] = Sum(node, nodes, tuple(joined))

    def _terms(self, node: fx.Node) -> tuple[list[Chain], list[float], tuple[fx.Node, ...]] | None:
        """Terms and their factors, those of plain sums that nothing else reads included; and all nodes that add."""
        operands = [argument(node, 0, "input"), argument(node, 1, "other")]
        alpha = node.kwargs.get("alpha", 1)
        if not isinstance(alpha, (int, float)) or not all(self._varies(n) for n in operands):
            return None
        terms: list[Chain] = []
        factors: list[float] = []
        nodes: list[fx.Node] = []
        twice = operands[0] is operands[1]  # computed once: what computes it is part of neither term
        for operand, factor in zip(operands, (1, -alpha if called(node) is SUB else alpha), strict=True):
            inner = self._plain_sum(operand) if set(operand.users) == {node} and not twice else None
            if twice:
                terms.append(Chain(operand))
                factors.append(factor)
            elif inner is not None:
                terms += inner[0]
                nodes += inner[1]
                factors += [factor] * len(inner[0])
            else:
                terms.append(self._term(operand, node))
                factors.append(factor)
        return terms, factors, (*nodes, node)

    def _varies(self, value: object) -> bool:
        """Whether ``value`` depends on the inputs, and can be read at another place."""
        return (
            isinstance(value, fx.Node)
            and value not in self._lifter.constants
            and value not in self._lifter.aliasing.changed
        )

    def _plain_sum(self, node: fx.Node) -> tuple[list[Chain], tuple[fx.Node, ...]] | None:
        """The terms of ``node`` if it is a sum that is no chain: others may join what it could not."""
        if node in self.chains or called(node) is not ADD or node in self.refused:
            return None
        if node in self._lifter.aliasing.writers:
            return None
        summands = self._terms(node)
        return None if summands is None or set(summands[1]) != {1} else (summands[0], summands[2])

    def _term(self, operand: fx.Node, node: fx.Node) -> Chain:
        chain = self.chains.get(operand)
        return chain if chain is not None and self._only(operand, chain, {node}) else Chain(operand)

    def _joined(self, node: fx.Node, terms: list[Chain], nodes: tuple[fx.Node, ...]) -> list[Chain]:
        """Join the terms that start at one value, until no two do."""
        while True:  # a joined term goes on from the chain before its base, so it may meet another term there
            counts = Counter(term.base for term in terms)
            base = next((base for base, n in counts.items() if n > 1 and self._varies(base)), None)
            if base is None:
                return terms
            branches = tuple(term for term in terms if term.base is base)
            join = flattened(Join(node, branches, None, nodes, (1,) * len(branches)))
            if not join.axes:
                return terms
            terms = [*(term for term in terms if term.base is not base), self._from_base(base, join)]

    def _whole(
        self, node: fx.Node, terms: tuple[Chain, ...], dim: int | None, nodes: tuple[fx.Node, ...], factors: Any
    ) -> None:
        """Join all terms, if they start at one value."""
        join = flattened(Join(node, terms, dim, nodes, factors))
        if len({term.base for term in terms}) == 1 and self._varies(terms[0].base) and join.axes:
            self._take(node, self._from_base(terms[0].base, join))

    def _from_base(self, base: fx.Node, join: Join) -> Chain:
        """The chain that ends with ``join``: the one that gives its base goes on, if nothing else reads that."""
        before = self.chains.get(base)
        if before is not None and self._only(base, before, first_nodes(join)) and before.axes & join.axes:
            return before.then(join)
        return Chain(base, (join,))

    def _take(self, node: fx.Node, chain: Chain) -> None:
        """``node`` ends ``chain``, and what it is made of ends nothing any more."""
        for inner in nodes_of(chain.elements):
            self.chains.pop(inner, None)
            self.sums.pop(inner, None)
        self.chains[node] = chain

    def _concatenation(self, node: fx.Node) -> None:
        operands, dim = argument(node, 0, "tensors"), argument(node, 1, "dim", 0)
        if not isinstance(operands, (list, tuple)) or not isinstance(dim, int) or len(set(operands)) < len(operands):
            return
        if len(operands) > 1 and all(self._varies(n) for n in operands):
            self._whole(node, tuple(self._term(n, node) for n in operands), dim, (node,), ())
