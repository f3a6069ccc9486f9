"""``benchmarks/hunt.py``: its networks are sound and the same each time, and its judge sees what it is for."""

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nbcompile
from nbcompile.core.numerics import relative_error
from tests.benchmark_scripts import BENCHMARKS, imported_script
from tests.slow import one_in


@pytest.fixture
def hunt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script as a module; what it imports from its folder is forgotten after."""
    with torch.no_grad(), imported_script("hunt", monkeypatch) as script:
        yield script


def checks() -> Any:
    return sys.modules["_hunt_checks"]


@pytest.mark.slow
def test_networks_run_at_any_batch_and_are_the_same_each_time(hunt: Any) -> None:
    numbers = range(100)
    networks = [hunt.network(n) for n in numbers]
    assert [hunt.network(n).source for n in numbers] == [one.source for one in networks]
    assert len({one.source for one in networks}) == len(numbers)
    assert sum(checks().runs(one) for one in networks) >= 98
    assert sum(not one.traits for one in networks) >= 60
    for one in networks[:20]:
        first, second = (checks().call(one.build(), one.example()) for _ in range(2))
        assert relative_error(first, second) == 0


def test_every_statement_is_drawn(hunt: Any) -> None:
    drawn = dict.fromkeys(sys.modules["_random_networks"].STATEMENTS, 0)

    def counted(statement: Any) -> Any:
        def write(*args: Any) -> None:
            drawn[statement] += 1
            statement(*args)

        return write

    table = sys.modules["_random_networks"].STATEMENTS
    weights = dict(table)
    table.clear()
    table.update({counted(statement): weight for statement, weight in weights.items()})
    for n in range(200):
        hunt.network(n)
    assert len(drawn) >= 15
    assert min(drawn.values()) >= 20


def broken(kind: str) -> Any:
    """A ``fuse`` that makes a mistake."""

    def fuse(model: nn.Module, *_: Any, **__: Any) -> nn.Module:
        if kind == "traceback":
            raise ZeroDivisionError("no number")
        if kind == "refused":
            raise nbcompile.CaptureError("network_0.py:12 in forward: no")
        if kind == "changed":
            next(model.parameters()).add_(1)
        other = copy.deepcopy(model)
        if kind == "wrong":
            other.register_forward_hook(lambda m, args, y: torch.zeros(1))
        return other

    return fuse


@pytest.mark.parametrize("verdict", one_in(2, ["wrong", "refused", "changed", "traceback"]))
def test_the_judge_sees_a_broken_fuse(hunt: Any, monkeypatch: pytest.MonkeyPatch, verdict: str) -> None:
    monkeypatch.setattr(nbcompile, "fuse", broken(verdict))
    number = next(n for n in range(100) if checks().runs(hunt.network(n)))
    found = hunt.judge(hunt.network(number), ("fuse", "expand", "save"))
    assert found.steps["fuse"][0] == verdict
    results = hunt.summary([found])
    assert results["steps"]["fuse"][verdict] == 1
    assert (str(number) in results["bad"]) == (verdict != "refused" or found.worst() not in hunt.GOOD)


def test_a_trained_giant_that_is_refused_is_wrong(hunt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    number = next(
        n for n in range(100) if hunt.judge(hunt.network(n), ("trained",)).steps.get("trained") == ("right", "")
    )
    monkeypatch.setattr(nbcompile, "fuse", broken("refused"))
    verdict, sentence = hunt.judge(hunt.network(number), ("trained",)).steps["trained"]
    assert verdict == "wrong"
    assert sentence.startswith("a giant that is trained is refused, at 1e-07: network_0.py:12")


def test_a_refusal_names_a_place(hunt: Any) -> None:
    assert hunt.placed("Net cannot be captured: network_3.py:12 in forward: no", 3)
    assert hunt.placed("'part.conv' is in the way", 3)
    assert not hunt.placed("network_4.py:12 in forward: no", 3)
    assert hunt.kind_of("/tmp/x/network_3.py:12: 'm3' has 2 inputs") == hunt.kind_of(
        "/y/network_4.py:1: 'q' has 3 inputs"
    )


def test_one_is_shown_with_its_text(hunt: Any, capsys: pytest.CaptureFixture[str]) -> None:
    hunt.show(2, ("fuse",))
    shown = capsys.readouterr().out
    assert "class Net(nn.Module):" in shown
    assert re.search("^fuse: (right|refused|wrong|changed|traceback)", shown, re.MULTILINE)


@pytest.mark.slow
def test_a_bad_one_is_shrunk_to_what_is_bad_in_it(hunt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fuse(model: nn.Module, **_: Any) -> nn.Module:
        if any(isinstance(module, nn.SiLU) for module in model.modules()):
            raise ZeroDivisionError("SiLU")
        return copy.deepcopy(model)

    monkeypatch.setattr(nbcompile, "fuse", fuse)
    drawn = map(hunt.network, range(100))
    one = next(one for one in drawn if "nn.SiLU" in one.source and checks().runs(one))
    small = hunt.shrunk(one, ("fuse",))
    assert "nn.SiLU" in small.source
    assert len(small.source.splitlines()) <= 14 < len(one.source.splitlines())
    assert hunt.judge(small, ("fuse",)).steps["fuse"][0] == "traceback"


@pytest.mark.slow
def test_the_script_writes_what_it_found(tmp_path: Path) -> None:
    out = tmp_path / "hunt.json"
    command = [sys.executable, BENCHMARKS / "hunt.py", "--count", "3", "--jobs", "1", "--out", out]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    results = json.loads(out.read_text())["results"]
    assert results["networks"] == results["that_run"] == 3
    assert {*results["steps"]} == {"fuse", "expand", "save"}
    verdicts = ("right", "refused", "wrong", "changed", "traceback")
    assert sum(results["steps"]["fuse"][verdict] for verdict in verdicts) == 3
