"""Plans the regions of a graph: what must be known of a chain before the search for its cheapest split can begin."""

from collections.abc import Sequence

from nbcompile.core.affine.chains import Chain, primitives
from nbcompile.core.affine.evaluate import Element
from nbcompile.core.affine.lifter import Lifter
from nbcompile.core.affine.plan import Plan, Refusal
from nbcompile.core.affine.primitive import Primitive
from nbcompile.core.affine.search import Search
from nbcompile.core.algebra import NotExact


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
        search = Search(axes, self._lifter)
        try:
            return search.chain(chain.elements, channels, search.walk.sizes_for(chain.elements, channels))
        except NotExact as reason:
            return Plan(refusals=[Refusal(chain.elements, str(reason))])

    def _channels(self, chain: Chain) -> int | None:
        """Channels of the value a chain starts at: what its first layer takes, if nothing before could stretch it."""
        taken, certain = _first_inputs(chain.elements)
        if taken is not None and certain:
            return taken  # without an example input, too: most chains start with a layer
        shape = self._lifter.shapes.of(chain.base)
        axes = next(iter(chain.axes))
        seen = None if shape is None or len(shape) <= axes else shape[-axes - 1]
        return seen if taken in (None, seen) else None


def _first_inputs(elements: Sequence[Element]) -> tuple[int | None, bool]:
    """The channels that the first layer or norm takes, and whether the base is sure to have as many."""
    certain = True
    for element in elements:
        if isinstance(element, Primitive):
            if element.inputs is not None:
                return element.inputs, certain
            if element.cuts:
                return None, False
            certain = certain and not element.outer  # x * gamma makes C channels of one: the base may have one
        else:
            branches = [_first_inputs(branch.elements) for branch in element.branches]
            known = [one for one in branches if one[0] is not None]
            if known:  # all branches read the base, so one that is sure answers for the others
                return max(known, key=lambda one: one[1])[0], certain and any(sure for _, sure in known)
            certain = certain and not any(p.outer or p.cuts for p in primitives((element,)))
    return None, False
