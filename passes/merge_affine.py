"""Merge affine regions into single layers: chains of layers, norms, factors and paddings, and sums of such branches.

    y = norm(conv(x)) + norm2(conv2(x)) + x     =>     y = conv'(x)
    y = norm(permute(linear(x)))                =>     y = permute(linear'(x))

Keeps: the function in eval mode, names of other nodes, device, dtype. The merged layer has the qualified name of the
costliest layer in it, computed in float64 and rounded once. Leaves alone: what would differ at a border, what would
cost more, values that are read elsewhere, layers that share their weights.

Source: the algebra of :mod:`nbcompile.core.algebra`; the cost law of :mod:`nbcompile.core.affine.search`.
"""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import fx

from nbcompile.core.affine.chains import Chain, Join, Sum, nodes_of, primitives
from nbcompile.core.affine.evaluate import evaluate
from nbcompile.core.affine.lifter import Lifter
from nbcompile.core.affine.permuted import across_permutations
from nbcompile.core.affine.plan import Merge, Plan, Refusal, Regrouping, halves_a_sum
from nbcompile.core.affine.planner import Planner
from nbcompile.core.affine.primitive import Primitive
from nbcompile.core.affine.regions import Regions
from nbcompile.core.affine.to_layer import to_layer, why_rounding_loses
from nbcompile.core.example import Inputs
from nbcompile.core.graph.nodes import asks_metadata, downstream
from nbcompile.core.graph.operators import SPLITS, called
from nbcompile.core.graph.replace import FreeNames, drop_unread
from nbcompile.core.graph.shapes import Shapes
from nbcompile.passes.base import Pass, PassResult, Skip, require_norms_in_eval_mode

Term = tuple[fx.Node, float]
"""Of a sum, and its factor."""


@dataclass(frozen=True)
class MergeAffine(Pass):
    """Merges affine regions into single layers.

    Attributes:
        inputs: of the model; only for questions that the graph alone does not answer.
    """

    name: ClassVar[str] = "merge-affine"

    inputs: Inputs | None = None

    def requires(self, gm: fx.GraphModule) -> None:
        """Norms in eval mode."""
        require_norms_in_eval_mode(gm, self.name)

    def call(self, gm: fx.GraphModule) -> PassResult:
        """Merge what can be merged."""
        return _Rewrite(gm, self.inputs).run()


class _Rewrite:
    """One run over one graph."""

    def __init__(self, gm: fx.GraphModule, inputs: Inputs | None) -> None:
        self.gm = gm
        self.inputs = inputs
        self.became: dict[fx.Node, fx.Node] = {}
        self.gone: set[fx.Node] = set()
        self.idle: set[fx.Node] = set()
        self.names = FreeNames(gm)
        self.rewritten: list[str] = []
        self.how: list[str] = []
        self.refusals: list[Refusal] = []
        self._look()
        if self._across_permutations():
            self._look()
        self.regions = Regions(self.lifter)

    def _look(self) -> None:
        """Know the graph as it is now."""
        self.lifter = Lifter(self.gm, Shapes(self.gm, self.inputs))
        self.planner = Planner(self.lifter)
        self.order = {node: i for i, node in enumerate(self.gm.graph.nodes)}

    def _across_permutations(self) -> bool:
        """Let linear layers take in what is behind the permutation of their output; whether there was any."""
        merges = [merge for chain in across_permutations(self.lifter) for merge in self._planned(chain).merges]
        for merge in merges:
            layer, *behind = cast(tuple[Primitive, ...], merge.elements)
            node = self._layer(merge)
            if node is None:
                continue
            for one in behind:
                self._replace(one.node, self._laid_out(one), (one.node,))
            self._replace(layer.node, node, (layer.node,))
        return bool(merges)

    def _laid_out(self, one: Primitive) -> fx.Node:
        """What ``one`` is applied to, in memory that can be viewed as that of its result could, if somebody does."""
        value = self._now(one.source)
        if all(reader.target != "view" for reader in downstream([one.node])):
            return value
        with self.gm.graph.inserting_after(value):
            return self.gm.graph.call_method("contiguous", (value,))

    def run(self) -> PassResult:
        for total in self.regions.sums.values():
            self._sum(total)
        for chain in self.regions.chains.values():
            if self.gone.isdisjoint(nodes_of(chain.elements)):
                plan = self._planned(chain)
                if halves_a_sum(chain, plan):
                    continue
                for merge in plan.merges:
                    self._merge(merge)
                for regrouping in plan.regroupings:
                    self._write(regrouping.join.node, regrouping.join.nodes, self._regrouped(regrouping))
        if self.rewritten:
            drop_unread(self.gm, lambda n: n in self.lifter.constants or n in self.gone or called(n) in SPLITS)
        return PassResult(self.gm, tuple(self.rewritten), self._skips(), tuple(self.how))

    def _planned(self, chain: Chain) -> Plan:
        plan = self.planner.plan(chain)
        self.refusals += plan.refusals
        return plan

    def _sum(self, total: Sum) -> None:
        """A sum of which some terms become one layer is written anew, if some do."""
        plans = [(term, self._planned(term)) for term in total.terms]
        if any(halves_a_sum(term, plan) for term, plan in plans):
            return
        if any(_joins(plan, total.node) for _, plan in plans):
            terms = [one for term, plan in plans for one in self._terms(term, plan, total.node)]
            self._write(total.node, total.nodes, terms)

    def _terms(self, term: Chain, plan: Plan, total: fx.Node) -> list[Term]:
        """Carry out ``plan``; what gives the terms of the sum ``total`` that ``term`` stands for."""
        made = {merge.elements[-1]: self._merge(merge, total) for merge in plan.merges}
        last = term.elements[-1] if term.elements else None
        regroupings = {one.join: one for one in plan.regroupings}
        for inner in plan.regroupings:
            if inner.join is not last:
                self._write(inner.join.node, inner.join.nodes, self._regrouped(inner))
        if not isinstance(last, Join) or last.node is not total:
            return [self._value(term)]
        if last in regroupings:
            return self._regrouped(regroupings[last])
        whole = made.get(last)
        return [self._value(branch) for branch in last.branches] if whole is None else [(whole, 1)]

    def _regrouped(self, regrouping: Regrouping) -> list[Term]:
        """Merge what is to be merged; what gives the terms of the sum by now."""
        join = regrouping.join
        left = dict(zip(join.branches, join.factors, strict=True))
        terms: list[Term] = []
        for merge in regrouping.merges:
            layer = self._merge(merge, join.node)
            if layer is not None:
                terms.append((layer, 1))
                for branch in cast(Join, merge.elements[0]).branches:
                    del left[branch]
        return terms + [(self._value(branch)[0], factor) for branch, factor in left.items()]

    def _value(self, chain: Chain) -> Term:
        return self._now(chain.elements[-1].node if chain.elements else chain.base), 1

    def _write(self, total: fx.Node, nodes: tuple[fx.Node, ...], terms: list[Term]) -> None:
        """Let ``total`` be the sum of ``terms``; one of them has no factor."""
        (value, _), *others = sorted(terms, key=lambda term: term[1] != 1)
        with self.gm.graph.inserting_before(total):
            for other, factor in others:
                function = operator.add if factor == 1 else operator.sub if factor == -1 else torch.add
                options: dict[str, Any] = {"alpha": factor} if function is torch.add else {}
                value = self.gm.graph.call_function(function, (value, other), options)
        self._replace(total, value, nodes)

    def _merge(self, merge: Merge, spared: fx.Node | None = None) -> fx.Node | None:
        """Put one layer in the place of ``merge``; what gives its value is replaced, unless it is ``spared``."""
        node = self._layer(merge)
        if node is None:
            return None
        nodes = list(dict.fromkeys(nodes_of(merge.elements)))
        for inner in nodes:
            for user in list(inner.users):
                if inner is not _end(merge) and asks_metadata(user):
                    user.replace_input_with(inner, node)
        if _end(merge) is not spared:
            self._replace(_end(merge), node, nodes)
        else:
            self._let_go(nodes)
        return node

    def _layer(self, merge: Merge) -> fx.Node | None:
        """A call of the one layer of ``merge``, before what it stands for; None where it would lose too much."""
        layers = [p for p in primitives(merge.elements) if p.layer]
        costliest = max(layers, key=lambda p: p.constants)
        like = costliest.build(None, merge.axes, costliest.inputs or 0).weight
        with torch.no_grad():
            whole = evaluate(merge.elements, merge.axes, merge.channels, like)
            layer = to_layer(whole, like)
        if lost := why_rounding_loses(whole, layer):
            self.refusals.append(Refusal(merge.elements, lost))
            return None
        name = self._name(costliest)
        source = self._now(_source(merge.elements[0]))
        first = min(nodes_of(merge.elements), key=lambda n: self.order[n])
        self.gm.set_submodule(name, layer)
        with self.gm.graph.inserting_before(first):
            node = self.gm.graph.call_module(name, (source,))
        self.rewritten.append(name)
        self.how.append(f"{name} <- {' + '.join(_names(merge.elements))}")
        return node

    def _replace(self, old: fx.Node, new: fx.Node, nodes: Iterable[fx.Node]) -> None:
        old.replace_all_uses_with(new)
        self.became[old] = new
        self._let_go(nodes)
        for node in sorted(self.idle, key=lambda n: -self.order[n]):
            if not node.users:
                self.gm.graph.erase_node(node)
                self.idle.discard(node)

    def _let_go(self, nodes: Iterable[fx.Node]) -> None:
        """``nodes`` are part of a merge; they idle until nobody reads them."""
        new = set(nodes) - self.gone
        self.gone |= new
        self.idle |= new

    def _now(self, node: fx.Node) -> fx.Node:
        """What gives the value of ``node`` by now."""
        while node in self.became:
            node = self.became[node]
        return node

    def _name(self, layer: Primitive) -> str:
        """The layer's own name; one that is free where its weight was computed by other code."""
        return layer.name if layer.node.op == "call_module" else self.names.like(layer.name)

    def _skips(self) -> tuple[Skip, ...]:
        reasons: dict[str, str] = {}
        for node, reason in self.regions.refused.items():
            reasons.setdefault(_name(node), reason)
        refusals = (refusal for refusal in self.refusals if refusal.elements)  # a branch may be the value itself
        every = {element for refusal in self.refusals for element in refusal.elements}
        merged = {element for element in every if self.gone.issuperset(nodes_of((element,)))}
        for refusal in sorted(refusals, key=lambda r: (len(r.elements) == 1, len(r.elements))):
            first, *more = refusal.elements
            alone = not more and isinstance(first, Primitive) and first.layer
            if not alone and not merged.issuperset(refusal.elements):
                last = refusal.elements[-1]
                name = last.name if isinstance(last, Primitive) else last.node.name
                reasons.setdefault(name, self._reason(refusal))
        return tuple(Skip(name, reason) for name, reason in reasons.items())

    def _reason(self, refusal: Refusal) -> str:
        """Of a norm or factor that is alone, what cuts it off from its neighbours."""
        first = refusal.elements[0]
        if len(refusal.elements) > 1 or isinstance(first, Join):
            return refusal.reason
        source = first.source
        writer = self.lifter.aliasing.changed.get(source)
        if writer is not None:
            return f"'{_name(source)}' is changed in place by '{_name(writer)}' and read again"
        if source in self.regions.refused:
            return f"'{_name(source)}' before it is left alone"
        if source not in self.regions.lifted:
            return f"its input '{source.name}' is no convolution or linear layer"
        if len(source.users) == 1:
            return f"whether its channels are those that '{_name(source)}' gives cannot be told"
        return f"'{_name(source)}' has {len(source.users)} readers"


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _names(elements: Iterable[Primitive | Join]) -> list[str]:
    return list(dict.fromkeys(p.name for p in primitives(tuple(elements))))


def _source(element: Primitive | Join) -> fx.Node:
    return element.source if isinstance(element, Primitive) else element.branches[0].base


def _joins(plan: Plan, total: fx.Node) -> bool:
    """Whether something merges in the very sum ``total``."""
    ends = [merge.elements[-1] for merge in plan.merges if isinstance(merge.elements[-1], Join)]
    return any(join.node is total for join in (*ends, *(one.join for one in plan.regroupings)))


def _end(merge: Merge) -> fx.Node:
    return merge.elements[-1].node
