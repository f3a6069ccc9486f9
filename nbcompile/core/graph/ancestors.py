"""Which values of a graph others depend on: one walk for all questions."""

from torch import fx


class Ancestors:
    """The nodes that each node depends on, asked for shapes or values.

    Args:
        graph: as it is now; who changes it makes another.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._place = {node: i for i, node in enumerate(graph.nodes)}
        self._before: list[int] = []  # bit i: node i is an ancestor
        for node in graph.nodes:
            before = 0
            for source in node.all_input_nodes:
                place = self._place[source]
                before |= self._before[place] | 1 << place
            self._before.append(before)

    def reach(self, early: fx.Node, late: fx.Node) -> bool:
        """Whether ``late`` depends on ``early``; not on itself."""
        return bool(self._before[self._place[late]] >> self._place[early] & 1)
