"""Ordinary PyTorch code is computed rightly or refused by the line: the table of ``tests/habits``, row by row.

Networks are compared in float64, on calls one after the other, so that what a network keeps from call to call shows.
"""

import copy
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

import nbcompile
from nbcompile.core.blocks import sites
from nbcompile.core.cost import cost
from nbcompile.core.errors import CheckpointError, NBCompileError
from nbcompile.core.example import Inputs, change_tensors
from nbcompile.core.layers import CONVOLUTIONS
from nbcompile.core.numerics import relative_error
from nbcompile.core.tracing.capture import opaque
from nbcompile.testing import scramble_
from tests.habits.rows import FILES, HABITS
from tests.habits.still_open import OPEN
from tests.habits.table import Habit

LIMIT = 1e-10

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


def rows(check: str, fast: int = 1) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Of the table; those that are known not to pass ``check`` are marked with what was found.

    One in ``fast`` is for the fast suite, the others are slow.
    """
    marked = {name: [pytest.mark.xfail(reason=reason, strict=True)] for name, reason in OPEN[check].items()}
    marks = [[*marked.get(h.name, []), *([pytest.mark.slow] if n % fast else [])] for n, h in enumerate(HABITS)]
    return pytest.mark.parametrize(
        "row", [pytest.param(h, id=h.name, marks=m) for h, m in zip(HABITS, marks, strict=True)]
    )


def call(model: nn.Module, inputs: Inputs, **later: Any) -> Any:
    """With a copy of ``inputs``, and always the same random numbers."""
    torch.manual_seed(1)
    with torch.no_grad():
        return model(*change_tensors(Tensor.clone, inputs), **later)


def assert_same(actual: Any, expected: Any) -> None:
    """The same values in the same structure, whose classes are the same."""
    assert kinds(actual) == kinds(expected)
    error = relative_error(tensors(actual), tensors(expected))
    assert error <= LIMIT


def kinds(value: Any) -> Any:
    """The structure of an output without its tensors' values."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, dict):
        return type(value), [(key, kinds(one)) for key, one in value.items()]
    if isinstance(value, tuple | list):
        return type(value), [kinds(one) for one in value]
    return (type(value), kinds(vars(value))) if hasattr(value, "__dict__") else value


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if hasattr(value, "__dict__") and not isinstance(value, dict):
        value = vars(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def assert_computes(actual: nn.Module, expected: nn.Module, row: Habit, *, later: bool = False) -> None:
    """On every call of the row; at another size, and with later keywords, it may refuse."""
    actual, expected = fresh(actual), fresh(expected)
    for inputs in row.calls():
        assert_same(call(actual, inputs), call(expected, inputs))
    for keywords in row.later if later else ():
        with refusing():
            assert_same(call(actual, row.example(), **keywords), call(expected, row.example(), **keywords))
    resized = row.resized()
    if resized is None:
        return
    try:
        wanted = call(expected, resized)
    except (RuntimeError, AssertionError):  # the network itself cannot
        return
    with refusing(allowed=not row.sized):
        assert_same(call(actual, resized), wanted)


def attempt(action: Callable[[], Any]) -> tuple[Any, NBCompileError | None]:
    """What it returns, or the error."""
    try:
        return action(), None
    except NBCompileError as error:
        return None, error


def fresh(model: nn.Module) -> nn.Module:
    """A copy, which keeps what it keeps for itself; what holds a lock, or a hook that knows it, has none."""
    return model if hasattr(model, "lock") or hasattr(model, "seen") else copy.deepcopy(model)


@contextmanager
def refusing(allowed: bool = True) -> Iterator[None]:
    """Inside, a sentence is as good as the right answer, where it is allowed."""
    try:
        yield
    except NBCompileError:
        assert allowed


def assert_names_line(error: NBCompileError, row: Habit) -> None:
    """The sentence names a line of the code of the row's own classes, or says that it has no such code."""
    if not inspect.isclass(row.make):
        assert "must be a torch.nn.Module as its own code makes it" in str(error)
        return
    classes = {type(m) for m in row.build().modules()}
    own = [thing for thing in (row.make, *classes) if inspect.getmodule(thing).__file__ in FILES]  # type: ignore[union-attr]
    lines = {(inspect.getfile(c), n) for c in own for n in range(*span(c))}
    named = {(file, int(line)) for file, line in re.findall(r"([^\s'\"(]+\.py):(\d+)", str(error))}
    assert named & lines, f"no line of {row.name} is named: {error}"


def span(thing: Any) -> tuple[int, int]:
    """First line of a class or function, and the first behind it."""
    source, first = inspect.getsourcelines(thing)
    return first, first + len(source)


@contextmanager
def unchanged(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Whatever happens inside, ``model``, everything its modules hold, and ``inputs`` are the same after."""

    def now() -> dict[str, Any]:
        return dict(picture([[vars(module) for module in model.modules()], inputs], ""))

    kept = [dict(vars(module)) for module in model.modules()]  # so that no identity is given away
    before = now()
    yield
    after = now()
    assert [place for place in before | after if before.get(place) != after.get(place)] == []
    del kept


def picture(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Place and look of everything in ``value``: tensors by identity and content, other things by identity."""
    if isinstance(value, Tensor):
        yield place, (id(value), value.shape, value.dtype, value.requires_grad, value.detach().numpy().tobytes())
    elif isinstance(value, dict):
        yield place, (type(value), list(map(str, value)))
        for key, one in value.items():
            yield from picture(one, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        yield place, (type(value), len(value))
        for i, one in enumerate(value):
            yield from picture(one, f"{place}[{i}]")
    else:
        yield place, value if isinstance(value, int | float | str | None) else id(value)


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in model.modules())


@rows("fuse", fast=2)
def test_fuse_is_right_or_refuses_by_the_line(row: Habit) -> None:
    model, inputs = row.build(), row.example()
    with unchanged(model, inputs):
        tiny, error = attempt(lambda: nbcompile.fuse(model, example_input=inputs))
    assert row.must in (("safe", "refused") if error else ("whole", "piece", "safe")), error
    if error:
        return assert_names_line(error, row)
    assert_computes(tiny, row.build(), row, later=True)
    if row.must == "whole":
        assert isinstance(tiny, fx.GraphModule)
        assert opaque(tiny) == {}
        assert norms(tiny) <= row.norms
        assert row.layers is None or len(cost(tiny, inputs).layers) == row.layers


@rows("expand", fast=10)
def test_expand_contracts_to_what_it_was(row: Habit) -> None:
    """All layers, slopes of 1; at ratio 1 and 2 in turn."""
    model, inputs = row.build(), row.example()
    with unchanged(model, inputs):
        ratio = 1 + HABITS.index(row) % 2
        giant, error = attempt(lambda: nbcompile.expand(model, inputs, where="all", ratio=ratio))
    if error:
        assert row.must != "whole" or not row.sites, error
        return assert_names_line(error, row) if row.sites else None
    assert len(sites(giant)) >= row.sites
    linear_(giant)
    with unchanged(giant, inputs):
        tiny = nbcompile.fuse(giant)
    taken = row.build()
    assert type(tiny) is type(taken)
    assert_computes(tiny, giant, row)
    taken.load_state_dict(tiny.state_dict())
    assert_computes(taken, giant, row)
    if row.must == "whole":
        assert_computes(nbcompile.fuse(giant, "all"), giant, row)
    preserving = nbcompile.expand(model, inputs, where="all", ratio=1, preserve=True)
    preserving.eval()  # one row's returns nothing
    assert_computes(preserving, row.build(), row)


@pytest.mark.slow
@rows("name")
def test_a_named_layer_contracts_or_is_refused(row: Habit) -> None:
    """The first of the network, whatever it is."""
    model, inputs = row.build(), row.example()
    names = [name for name, m in model.named_modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear))]
    with unchanged(model, inputs):
        giant, _ = attempt(lambda: nbcompile.expand(model, inputs, where=names[:1], ratio=1))
    if giant is not None:
        linear_(giant)
        assert_computes(nbcompile.fuse(giant), giant, row)


@pytest.mark.slow
@rows("save")
def test_files_need_no_code(row: Habit, tmp_path: Path) -> None:
    """The network's own, and its giant's; what is no graph may ask for its class."""
    model, inputs, file = row.build(), row.example(), tmp_path / "it.pt"
    with unchanged(model, inputs):
        loaded, error = attempt(lambda: nbcompile.save(model, file, inputs) or nbcompile.load(file))
    if error:
        assert row.must != "whole" or not row.file, error
        return assert_asks_for_code(error, row, file)
    assert_computes(loaded, row.build(), row)
    assert_computes(nbcompile.fuse(loaded), row.build(), row)
    if row.sites:
        giant = linear_(nbcompile.expand(model, inputs, where="all", ratio=1))
        nbcompile.save(giant, file)
        again = nbcompile.load(file)
        assert_computes(again, giant, row)
        assert_computes(nbcompile.fuse(again), giant, row)


def assert_asks_for_code(error: NBCompileError, row: Habit, file: Path) -> None:
    """And with the code the file can be read; or the network was refused by the line, and nothing is written."""
    if not isinstance(error, CheckpointError):
        assert not file.exists()
        return assert_names_line(error, row)
    assert "cannot be read without the model's code" in str(error)
    assert_computes(nbcompile.load(file, model=row.build()), row.build(), row)


def linear_(giant: nn.Module) -> nn.Module:
    """Norms scrambled, slopes of 1."""
    scramble_(giant, seed=1)
    for block in sites(giant).values():
        block.slope.fill_(1)
    giant.eval()
    return giant


def test_the_table_is_large_and_its_open_rows_exist() -> None:
    names = {row.name for row in HABITS}
    assert len(names) >= 140
    assert {name for marked in OPEN.values() for name in marked} - names == set()


def test_the_checks_see_what_they_are_for() -> None:
    row = next(row for row in HABITS if row.name == "AsksIsinstance")
    with pytest.raises(AssertionError):
        assert_computes(nn.Sequential(*row.build().children()), row.build(), row)
    with pytest.raises(AssertionError, match="no line of AsksIsinstance is named"):
        assert_names_line(NBCompileError(f"{__file__}:1 in forward: no"), row)
    file, line = inspect.getfile(row.make), span(row.make)[0] + 2
    assert_names_line(NBCompileError(f"Net cannot be captured: {file}:{line} in forward: no"), row)
    model, inputs = row.build(), row.example()
    for change in (
        lambda: setattr(model, "grid", torch.ones(1)),
        lambda: model.a.bn.weight.data.mul_(2),  # type: ignore[union-attr, operator]
        lambda: inputs[0].add_(1),
        lambda: model.a.register_forward_hook(print),  # type: ignore[operator]
    ):
        with pytest.raises(AssertionError), unchanged(model, inputs):
            change()
    assert kinds({"a": 1}) != kinds([("a", 1)])
