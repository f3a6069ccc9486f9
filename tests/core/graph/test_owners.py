"""What is found in one walk, compared with a walk for every question, on random graphs."""

import random
from functools import cache

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from nbcompile.core.graph.ancestors import Ancestors
from nbcompile.core.graph.nodes import aliases, downstream, norm_of
from nbcompile.core.graph.owners import Owners
from nbcompile.core.graph.replace import FreeNames, keep_what_is_read, put, put_all


def random_graph(seed: int) -> fx.GraphModule:
    """Layers and norms, some of them twins, tied or under two names; values, weights and sizes are read at random."""
    draw = random.Random(seed)
    root = nn.Module()
    for group in ("a", "b"):
        holder = nn.Module()
        for i in range(draw.randint(2, 6)):
            holder.add_module(f"m{i}", nn.Conv2d(3, 3, 1) if draw.random() < 0.5 else nn.BatchNorm2d(3))
        root.add_module(group, holder)
    named = [(name, m) for name, m in root.named_modules() if not [*m.children()]]
    for _ in range(draw.randint(0, 2)):
        root.add_module(f"alias{draw.randint(0, 1)}", draw.choice(named)[1])
        (_, one), (_, other) = draw.choice(named), draw.choice(named)
        if type(one) is type(other):
            one.weight = other.weight
        if isinstance(one, nn.BatchNorm2d) and isinstance(other, nn.BatchNorm2d) and draw.random() < 0.5:
            one.running_mean = other.running_mean
    names = [name for name, m in root.named_modules(remove_duplicate=False) if not [*m.children()]]
    graph = fx.Graph()
    values = [graph.placeholder("x")]
    for _ in range(draw.randint(4, 14)):
        x, name = draw.choice(values), draw.choice(names)
        key = draw.choice(["weight", *(["running_mean"] if hasattr(root.get_submodule(name), "running_mean") else [])])
        match draw.randint(0, 4):
            case 0:
                values.append(graph.call_function(torch.add, (x, draw.choice(values))))
            case 1:
                values.append(graph.call_function(torch.mul, (x, graph.get_attr(f"{name}.{key}"))))
            case 2 if key == "running_mean":
                read = (graph.get_attr(f"{name}.{key}"), graph.get_attr(f"{name}.running_var"))
                values.append(graph.call_function(F.batch_norm, (x, *read)))
            case _:
                values.append(graph.call_module(name, (x,)))
    graph.output(values[-1])
    return fx.GraphModule(root, graph)


@cache
def graphs() -> list[fx.GraphModule]:
    return [random_graph(seed) for seed in range(60)]


def tied(gm: fx.GraphModule, layer: nn.Module) -> str | None:
    own, names = {id(p) for p in layer.parameters(recurse=False)}, aliases(gm, layer)
    for key, parameter in gm.named_parameters(remove_duplicate=False):
        if id(parameter) in own and key.rpartition(".")[0] not in names:
            return key
    return None


def test_owners_say_what_walks_say() -> None:
    seen = {True: 0, False: 0}
    for gm in graphs():
        owners = Owners(gm)
        for module in gm.modules():
            assert owners.tied_to(module) == tied(gm, module)
            reads = [str(n.target).rpartition(".")[0] for n in gm.graph.find_nodes(op="get_attr")]
            assert owners.read_directly(module) == any(name in reads for name in aliases(gm, module))
            seen[owners.read_directly(module)] += 1
            seen[owners.tied_to(module) is not None] += 1
        for key, buffer in gm.named_buffers(remove_duplicate=False):
            norms = [n for n in gm.graph.nodes if (norm := norm_of(gm, n)) and norm.running_mean == key]
            assert owners.means.get(key, []) == norms
            tensors = dict(gm.named_buffers(remove_duplicate=False))
            read = [n for n in gm.graph.find_nodes(op="get_attr") if tensors.get(str(n.target)) is buffer]
            assert owners.reads.get(id(buffer), []) == read
    assert min(seen.values()) > 50


def test_ancestors_are_what_is_up_the_graph() -> None:
    for gm in graphs():
        ancestors = Ancestors(gm.graph)
        for late in gm.graph.nodes:
            up = set(downstream([late], up=True))
            assert {early for early in gm.graph.nodes if ancestors.reach(early, late)} == up


def test_all_are_put_as_one_by_one() -> None:
    for seed in range(20):
        one, all_ = random_graph(seed), random_graph(seed)
        layers = [list(dict.fromkeys(m for m in gm.modules() if isinstance(m, nn.Conv2d))) for gm in (one, all_)]
        for layer in layers[0]:
            put(one, layer, nn.Identity())
        put_all(all_, {layer: nn.Identity() for layer in layers[1]})
        shapes = [[(n, type(m)) for n, m in gm.named_modules(remove_duplicate=False)][1:] for gm in (one, all_)]
        assert shapes[0] == shapes[1]


def test_what_is_read_is_kept() -> None:
    for gm in (random_graph(seed) for seed in range(20)):
        read = {str(n.target) for n in gm.graph.nodes if n.op == "get_attr"}
        called = {str(n.target) for n in gm.graph.find_nodes(op="call_module")}
        keep_what_is_read(gm)
        gm.graph.lint()
        left = {name for name, m in gm.named_modules(remove_duplicate=False) if name and not [*m.children()]}
        assert left == called | {target.rpartition(".")[0] for target in read}


@pytest.mark.parametrize("taken", [[], ["w"], ["w", "w.merged"]])
def test_a_free_name_is_free_and_then_taken(taken: list[str]) -> None:
    names = FreeNames(nn.Module())
    assert [names.like("w") for _ in taken] == taken
    assert names.like("w") == ["w", "w.merged", "w.merged_"][len(taken)]
