"""What would run for hours is refused before it runs, by its shapes alone."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nbcompile.core.errors import CheckpointError
from nbcompile.core.example import TensorSpec
from nbcompile.core.serialization import bounds
from nbcompile.core.serialization.bounds import check_bounds
from nbcompile.core.serialization.work import work_of


class Counted(TorchDispatchMode):
    """The work of all that is done inside."""

    def __init__(self) -> None:
        super().__init__()
        self.work: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.work[name] = self.work.get(name, 0) + work_of(func, args, out)
        return out


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


@pytest.mark.parametrize(
    ("run", "name", "work"),
    [
        (lambda: torch.conv2d(meta(2, 3, 9, 9), meta(4, 3, 5, 5)), "convolution", 2 * 25 * 4 * 3 * 25),
        (lambda: meta(3, 5) @ meta(5, 7), "mm", 3 * 5 * 7),
        (lambda: torch.nn.functional.max_pool2d(meta(1, 2, 9, 9), 5, 1), "max_pool2d_with_indices", 2 * 25 * 25),
        (lambda: torch.nn.functional.avg_pool2d(meta(1, 2, 9, 9), (5, 3), 1), "avg_pool2d", 2 * 35 * 15),
        (lambda: torch.nn.functional.avg_pool3d(meta(1, 1, 4, 4, 4), 3), "avg_pool3d", 27),
        (lambda: torch.cdist(meta(40, 3), meta(50, 3), p=1.0), "_cdist_forward", 40 * 50 * 3),
        (lambda: torch.bilinear(meta(6, 3), meta(6, 4), meta(5, 3, 4)), "_trilinear", 6 * 5 * (3 * 4 + 4)),
        (lambda: torch.conv_tbc(meta(9, 2, 3), meta(5, 3, 4), meta(4)), "conv_tbc", 5 * 2 * 4 * 5 * 3),
        (lambda: torch.linalg.svdvals(meta(10, 8)), "_linalg_svd", None),
        (lambda: torch.linalg.inv(meta(10, 10)), "linalg_inv_ex", None),
        (lambda: torch.relu(meta(4, 5)), "relu", 40),
        (lambda: torch.cat([meta(4, 5), meta(4, 5)]), "cat", 80),
    ],
)
def test_operators(run: Callable[[], object], name: str, work: int | None) -> None:
    with torch.no_grad(), Counted() as counted:
        run()
    if work is None:
        assert counted.work[name] >= 30 * 10 * 80
    else:
        assert counted.work[name] == work


def proof(*steps: tuple[Any, ...]) -> str | None:
    """What the proof says of a graph whose every step reads the one before it, in the place of ``"it"``."""
    graph = fx.Graph()
    value: Any = graph.placeholder("x")
    for function, *args in steps:
        value = graph.call_function(function, tuple(value if isinstance(a, str) else a for a in args))
    graph.output(value)
    try:
        check_bounds(fx.GraphModule(nn.Module(), graph), (TensorSpec((1, 1, 8, 8)),))
    except CheckpointError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "steps",
    [
        [(torch.ones, 8000, 8000), (torch.linalg.svd, "it")],
        [(torch.ones, 1, 1, 3000, 3000), (torch.max_pool2d, "it", 1500, 1)],
        [(torch.ones, 2**14, 2**14), (torch.matmul, "it", "it")],
        [(torch.ones, 2**14, 2**13), (torch.cdist, "it", "it", 1.0)],
        [(torch.ones, 1, 4000, 4000), (torch.matrix_power, "it", 2**40)],
    ],
)
def test_work_without_end(steps: list[tuple[Any, ...]]) -> None:
    message = proof(*steps)
    assert message is not None
    assert message.startswith("the file asks for ")
    assert message.endswith(" at most 1,099,511,627,776 are run, and no small network needs them")


def test_the_work_of_a_network_is_let_through() -> None:
    """MobileNetV2 at 224 pixels takes 3e8; what is refused takes minutes."""
    assert proof((torch.ones, 2**12, 2**12), (torch.matmul, "it", "it")) is None
    assert bounds.MAX_WORK > 1000 * 3e8


def test_lists_that_are_handed_on_and_on() -> None:
    long = [(operator.mul, [1], 2**15)]
    assert proof(*long, (operator.add, "it", [1])) is None
    assert proof(*long, *[(operator.add, "it", [1])] * 40) == "the graph hands on over 2,097,152 items in lists"


def test_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_SECONDS", -1.0)
    assert proof((torch.relu, "it")) == "it takes longer than -1 s to prove what the file describes"
