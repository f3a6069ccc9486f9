"""An order of execution in which the least memory is needed at once."""

import heapq
from dataclasses import replace

from nbcompile.exporters.to_tflite.memory.draft import Draft

STATES = 20_000
"""Sets of operators, done before all others, that are looked at; a chain of n operators has n."""


def reordered(draft: Draft) -> Draft:
    """``draft`` in an order that needs the least memory; as it is, where no other needs less, or there are too many.

    The most memory of an order is the most of its steps, so that the best way to each set of operators that are done is
    a part of the best order: a search for the path whose highest point is lowest.
    """
    steps = range(len(draft.steps))
    writer = {n: i for i in steps for n in draft.steps[i].outputs}
    needs = [{writer[n] for n in draft.steps[i].inputs if n in writer} for i in steps]
    sizes = {n: b.nbytes for n, b in draft.lifetimes().items()}
    uses = {n: {i for i in steps if n in draft.steps[i].inputs} for n in sizes}
    ends = set(draft.file.outputs)
    held = sum(sizes[n] for n in sizes if n not in writer)
    queue: list[tuple[int, int, tuple[int, ...], frozenset[int], int]] = [(0, 0, (), frozenset(), held)]
    seen: set[frozenset[int]] = set()
    while queue:
        peak, _, path, done, held = heapq.heappop(queue)
        if done in seen:
            continue
        seen.add(done)
        if len(path) == len(steps):
            return draft if list(path) == list(steps) else _in_order(draft, path)
        if len(seen) > STATES:
            return draft
        for i in steps:
            if i not in done and needs[i] <= done:
                inputs = set(draft.activations(draft.steps[i].inputs))
                during = held + sum(sizes[n] for n in draft.activations(draft.steps[i].outputs))
                after = done | {i}
                freed = {n for n in inputs if uses[n] <= after and n not in ends}
                left = during - sum(sizes[n] for n in freed)
                heapq.heappush(queue, (max(peak, during), -len(after), (*path, i), after, left))
    return draft


def _in_order(draft: Draft, path: tuple[int, ...]) -> Draft:
    return replace(draft, steps=[draft.steps[i] for i in path])
