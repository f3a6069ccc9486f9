"""What a file would allocate is bounded to the element: the last that is let through, and the first that is not."""

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from nbcompile.core.errors import CheckpointError
from nbcompile.core.example import TensorSpec
from nbcompile.core.serialization import bounds
from nbcompile.core.serialization.bounds import MAX_ELEMENTS, MAX_INTEGER, MAX_ITEMS, bounded, check_bounds, leaves

GIB = 2**30


def refused(build: Callable[[], object], most: int = bounds.MAX_TENSORS_OF_A_MODULE) -> str | None:
    try:
        with bounded(most):
            build()
    except CheckpointError as error:
        return str(error)
    return None


def tensors_no_network_has(count: str, shape: str, most: str = "2,000") -> str:
    return (
        f"the file asks for tensors that no small network has (the last of {count} has shape {shape}): "
        f"at most 268,435,456 elements each, 32 GiB and {most} tensors in all are made"
    )


def test_one_tensor() -> None:
    assert refused(lambda: torch.empty(MAX_ELEMENTS)) is None
    message = tensors_no_network_has("1", "(268435457,)")
    assert refused(lambda: torch.empty(MAX_ELEMENTS + 1)) == message
    assert refused(lambda: torch.empty(MAX_ELEMENTS + 1, dtype=torch.uint8)) == message
    assert refused(lambda: torch.ones(2).expand(MAX_ELEMENTS, 2)) is not None  # a view counts as what it holds


def test_bytes_in_all() -> None:
    """32 GiB: 16 of 2 GiB; counted by what an element takes."""
    assert refused(lambda: [torch.empty(2**28, dtype=torch.float64) for _ in range(16)]) is None
    message = tensors_no_network_has("17", "(1,)")
    full = lambda: [*[torch.empty(2**28, dtype=torch.float64) for _ in range(16)], torch.empty(1)]  # noqa: E731
    assert refused(full) == message
    assert refused(lambda: [torch.empty(2**28, dtype=torch.float16) for _ in range(64)]) is None
    assert refused(lambda: [torch.empty(2**28, dtype=torch.float16) for _ in range(65)]) is not None


def test_how_many() -> None:
    assert refused(lambda: [torch.empty(1) for _ in range(2_000)]) is None
    assert refused(lambda: [torch.empty(1) for _ in range(2_001)]) == tensors_no_network_has("2,001", "(1,)")
    assert refused(lambda: [torch.empty(1) for _ in range(4)], most=3) == tensors_no_network_has("4", "(1,)", "3")
    assert refused(lambda: torch.empty(6).split(2), most=4) is None
    assert refused(lambda: torch.empty(8).split(2), most=4) is not None  # each piece is one


def test_nothing_is_made() -> None:
    with bounded():
        layer = nn.Conv2d(2**14, 2**14, 1)
        made = [layer.weight, torch.empty(3), torch.zeros(2, device="cpu"), torch.tensor([1.0, 2.0])]
        assert not torch.is_grad_enabled()
    assert {t.device.type for t in made} == {"meta"}
    assert made[0].shape == (2**14, 2**14, 1, 1)
    assert torch.empty(1).device.type == "cpu"
    assert torch.is_grad_enabled()


def graph(forward: Callable[..., Any], names: tuple[str, ...] = ("x",), **modules: nn.Module) -> fx.GraphModule:
    """A graph whose nodes are written one by one: ``forward`` gets the graph and its inputs."""
    g = fx.Graph()
    g.output(forward(g, *[g.placeholder(name) for name in names]))
    root = nn.Module()
    for name, module in modules.items():
        root.add_module(name, module)
    return fx.GraphModule(root, g)


def said(forward: Callable[..., Any], *specs: TensorSpec) -> str | None:
    gm = graph(forward, tuple(f"x{i}" for i in range(len(specs or (X,)))))
    try:
        check_bounds(gm, specs or (X,))
    except CheckpointError as error:
        return str(error)
    return None


X = TensorSpec((2, 3))


def whole(g: fx.Graph, x: fx.Node) -> fx.Node:
    return g.call_method("dim", (x,))


def pair(g: fx.Graph) -> fx.Node:
    return g.call_function(operator.getitem, ({"a": [1, 2]}, "a"))


@pytest.mark.parametrize(
    ("forward", "what"),
    [
        (lambda g, x: g.call_function(operator.pow, (2, 32)), None),  # 2 bits, 32 times
        (lambda g, x: g.call_function(operator.pow, (2, 33)), "an integer too large at 'pow_1'"),
        (lambda g, x: g.call_function(operator.pow, (3, 32)), None),
        (lambda g, x: g.call_function(operator.pow, (3, 33)), "an integer too large at 'pow_1'"),
        (lambda g, x: g.call_function(operator.pow, (2, -33)), "an integer too large at 'pow_1'"),
        (lambda g, x: g.call_function(operator.pow, (10, 10**9)), "an integer too large at 'pow_1'"),
        (lambda g, x: g.call_function(operator.ipow, (whole(g, x), 10**9)), "an integer too large at 'ipow'"),
        (lambda g, x: g.call_function(operator.pow, (1.5, 100)), None),
        (lambda g, x: g.call_function(operator.pow, (x, 100)), None),
        (lambda g, x: g.call_function(operator.mul, (2**31, 2**31)), None),
        (lambda g, x: g.call_function(operator.mul, (2**32, 2**31)), "an integer too large at 'mul'"),
        (lambda g, x: g.call_function(operator.sub, (-(2**62), 2**62)), "an integer too large at 'sub'"),
        (lambda g, x: g.call_function(operator.sub, (-(2**62), 2**62 - 1)), None),
        (lambda g, x: g.call_function(operator.mul, ([1, 2], 2**15 - 8)), None),
        (lambda g, x: g.call_function(operator.mul, ([1, 2], 2**15 + 1)), "a list too long at 'mul'"),
        (lambda g, x: g.call_function(operator.mul, (2**15 + 1, (1, 2))), "a list too long at 'mul'"),
        (lambda g, x: g.call_function(operator.imul, (pair(g), 2**15 + 1)), "a list too long at 'imul'"),
        (lambda g, x: g.call_function(operator.mul, (x, 2**40)), None),
        (lambda g, x: g.call_function(operator.mul, ("ab", 2**40)), "text or a device as an operand at 'mul'"),
        (lambda g, x: g.call_function(operator.add, ("ab", "c")), "text or a device as an operand at 'add'"),
        (lambda g, x: g.call_function(operator.eq, (torch.device("cpu"), 1)), "text or a device as an operand at 'eq'"),
        (lambda g, x: g.call_function(math.sqrt, ("4",)), "text or a device as an operand at 'sqrt'"),
        (lambda g, x: g.call_function(operator.getitem, ({"a": 5}, "a")), None),
        (lambda g, x: g.call_function(torch.split, (x, MAX_ITEMS, 1)), None),
        (lambda g, x: g.call_function(torch.split, (x, MAX_ITEMS + 1, 1)), "a tensor in too many pieces at 'split'"),
        (lambda g, x: g.call_method("chunk", (x, MAX_ITEMS + 1)), "a tensor in too many pieces at 'chunk'"),
        (
            lambda g, x: g.call_method("unbind", (g.call_function(torch.ones, (MAX_ITEMS + 1,)),)),
            "a tensor in too many pieces at 'unbind'",
        ),
        (lambda g, x: g.call_method("sum", (g.call_function(torch.ones, (MAX_ITEMS + 1,)),)), None),
    ],
)  # fmt: skip
def test_what_python_itself_would_make(forward: Callable[..., Any], what: str | None) -> None:
    assert said(forward) == (None if what is None else f"the graph would make {what}")


def test_integers_of_a_size() -> None:
    doubled = lambda g, x: g.call_function(operator.add, (2**62, 2**62))  # noqa: E731
    assert said(doubled) == "the graph would make an integer too large at 'add'"
    assert MAX_INTEGER == 2**63
    full = lambda g, x: g.call_function(operator.mul, ([1, 2], 2**15))  # noqa: E731
    assert said(full) == "the graph makes a list of over 65,536 items"  # the list itself is one


@pytest.mark.parametrize(
    ("create", "shape"),
    [
        (lambda g, x: g.call_function(torch.zeros, (2**40,)), "(1099511627776,)"),
        (lambda g, x: g.call_function(torch.ones, (2**20, 2**20), {"device": "cpu"}), "(1048576, 1048576)"),
        (lambda g, x: g.call_function(torch.full, ((2**29,), 1.0)), "(536870912,)"),
        (lambda g, x: g.call_function(torch.arange, (0, 1, 1e-12)), "(1000000000000,)"),
        (lambda g, x: g.call_function(torch.linspace, (0, 1, 2**40)), "(1099511627776,)"),
        (lambda g, x: g.call_function(torch.eye, (2**20,)), "(1048576, 1048576)"),
        (lambda g, x: g.call_function(torch.tril_indices, (2**20, 2**20)), "(2, 549756338176)"),
    ],
)
def test_constants_that_are_made_are_counted(create: Callable[..., Any], shape: str) -> None:
    assert said(create) == tensors_no_network_has("2", shape, "50,000")


def test_only_tensors_are_written_into() -> None:
    assert said(lambda g, x: g.call_function(operator.setitem, (x, (0, slice(1, None)), 2.0))) is None
    into = lambda g, x: g.call_function(operator.setitem, (g.call_method("size", (x,)), 0, x))  # noqa: E731
    assert said(into) == "the graph writes into a Size at 'setitem', and not a tensor"


def test_a_graph_must_take_its_inputs() -> None:
    two = graph(lambda g, x, y: g.call_function(torch.add, (x, y)), ("x", "y"))
    check_bounds(two, (X, X))
    for inputs in ((X,), (X, X, X)):
        with pytest.raises(CheckpointError, match=rf"^the graph takes 2 inputs, but {len(inputs)} are recorded$"):
            check_bounds(two, inputs)
    optional = fx.Graph()
    x = optional.placeholder("x")
    optional.output(optional.call_function(torch.mul, (x, optional.placeholder("factor", default_value=2.0))))
    gm = fx.GraphModule(nn.Module(), optional)
    check_bounds(gm, (X,))
    check_bounds(gm, (X, TensorSpec(())))


def test_a_graph_must_run() -> None:
    assert said(lambda g, x: g.call_function(torch.matmul, (x, x))) == (
        "the graph does not run on its recorded inputs: RuntimeError: "
        "a and b must have same reduction dim, but got [2, 3] X [2, 3]."
    )

    class Silent(Exception):  # noqa: N818
        def __str__(self) -> str:
            return "  \n"

    def fails(x: Tensor) -> Tensor:
        raise Silent

    assert said(lambda g, x: g.call_function(fails, (x,))) == (
        "the graph does not run on its recorded inputs: Silent: no message"
    )
    many = lambda g, x: g.call_function(torch.stack, ([x] * 3,))  # noqa: E731
    assert said(many, TensorSpec((MAX_ELEMENTS // 2, 1))) == tensors_no_network_has(
        "2", "(3, 134217728, 1)", "50,000"
    )  # the message is that of the tensor, not of a run that failed


def test_it_runs_in_the_dtype_of_the_weights() -> None:
    """A file that was trained in float16 and described in float32 is no fault; integers stay integers."""
    linear = nn.Linear(3, 2).half().to("meta")
    gm = graph(lambda g, x: g.call_module("it", (x,)), it=linear)
    check_bounds(gm, (TensorSpec((2, 3), torch.float32),))
    table = nn.Embedding(5, 2).double().to("meta")
    looked_up = graph(lambda g, x: g.call_module("it", (x,)), it=table)
    check_bounds(looked_up, (TensorSpec((2, 3), torch.int64),))
    if not torch.__version__.startswith("2.9."):  # which does not look at the dtype of what has no values
        with pytest.raises(CheckpointError, match="does not run on its recorded inputs: RuntimeError"):
            check_bounds(looked_up, (TensorSpec((2, 3), torch.float32),))
    plain = graph(lambda g, x: g.call_function(torch.bitwise_not, (x,)))
    check_bounds(plain, (TensorSpec((2, 3), torch.bool),))


def test_what_trees_hold() -> None:
    assert sorted(leaves({"a": [1, (2, 3)], "b": {"c": [], "d": 4}})) == [1, 2, 3, 4]
    assert list(leaves(7)) == [7]
    assert list(leaves("ab")) == ["ab"]
    assert len(list(leaves([0] * (MAX_ITEMS - 1)))) == MAX_ITEMS - 1
    message = r"^the graph makes a list of over 65,536 items$"
    with pytest.raises(CheckpointError, match=message):
        list(leaves([0] * MAX_ITEMS))
    with pytest.raises(CheckpointError, match=message):
        list(leaves([[[]] * 20_000] * 2))  # every list counts, too
    shared: Any = [0]
    for _ in range(60):
        shared = [shared, shared]
    with pytest.raises(CheckpointError, match=message):
        list(leaves(shared))


def twins(count: int = 5) -> tuple[fx.GraphModule, dict[nn.Module, str]]:
    """A chain in which modules have twins, and what each is a twin of."""
    made = {
        **{f"conv{i}": nn.Conv2d(3, 3, 3, padding=1, device="meta") for i in range(count)},
        **{f"act{i}": nn.ReLU(inplace=i % 2 == 0) for i in range(count)},
        **{f"other{i}": nn.MaxPool2d(3, 1, 1, return_indices=True) for i in range(count)},
    }

    def forward(g: fx.Graph, x: fx.Node) -> fx.Node:
        for i in range(count):
            x = g.call_module(f"act{i}", (g.call_module(f"conv{i}", (x,)),))
            x = g.call_function(operator.getitem, (g.call_module(f"other{i}", (x,)), 0))
            x = g.call_method("transpose", (x, 2, 3)) if i == count // 2 else x
        return x

    gm = graph(forward, **made).eval()
    return gm, {gm.get_submodule(name): str(module) for name, module in made.items()}


def test_the_first_of_twins_is_run_and_the_others_look_like_it() -> None:
    (gm, kinds), looks = twins(), []
    for known in ({}, kinds):
        with bounded(bounds.MAX_TENSORS) as counter:
            runner = bounds._Runner(gm, counter, known)
            runner.garbage_collect_values = False
            runner.run(torch.empty(2, 3, 9, 11, device="meta", memory_format=torch.channels_last))
        tensors = {n.name: x for n, x in runner.env.items() if isinstance(x, Tensor)}
        looks.append(({name: (x.shape, x.stride(), x.dtype) for name, x in tensors.items()}, counter.spent))
    assert looks[0] == looks[1]
    assert len(runner._known) < 10  # of 15 calls


@pytest.mark.parametrize("limit", ["MAX_TENSORS", "MAX_BYTES", "MAX_WORK"])
def test_a_limit_is_met_at_the_same_tensor_with_twins(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gm, kinds = twins()
    x = (TensorSpec((2, 3, 9, 11)),)
    with bounded(bounds.MAX_TENSORS) as counter:
        bounds._Runner(gm, counter, {}).run(torch.empty(2, 3, 9, 11, device="meta"))
    most = counter.spent[["MAX_BYTES", "MAX_TENSORS", "MAX_WORK"].index(limit)]
    for share in (0.2, 0.5, 0.9, 0.99):
        monkeypatch.setattr(bounds, limit, int(share * most))
        said = []
        for known in ({}, kinds):
            with pytest.raises(CheckpointError) as error:
                check_bounds(gm, x, known)
            said.append(str(error.value))
        assert said[0] == said[1]
