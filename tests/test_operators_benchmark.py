"""``benchmarks/operators.py``: it has networks of nearly all operators, and sees what it is for."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import nbcompile
from tests.benchmark_scripts import imported_script


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script as a module; what it imports from its folder is forgotten after."""
    with imported_script("operators", monkeypatch) as script:
        yield script


def test_verdicts(operators: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(operator: Any, *args: Any, form: str = "tflite", **kwargs: Any) -> tuple[str, str]:
        found: tuple[str, str] = operators.verdict(operators.OneOperator(operator, args, kwargs), X, form)
        return found

    assert said(torch.sinh) == ("right", "")
    assert said(torch.split, 2, form="onnx") == ("right", "")
    kind, text = said(torch.cumprod, dim=0)
    assert (kind, "aten.cumprod" in text) == ("refused", True)
    assert said(torch.matmul, torch.ones(7)) == ("does not run", "")
    monkeypatch.setattr(nbcompile, "export", lambda *_, **__: {}["key"])
    assert said(torch.log1p) == ("traceback", "KeyError: 'key'")


X = torch.rand(1, 5, 3)


def test_a_process_that_dies_is_one_operators(operators: Any) -> None:
    chosen = [
        ("fine", operators.OneOperator(torch.abs, (), {}), X),
        ("dies", operators.OneOperator(lambda _: os._exit(3), (), {}), X),
    ]
    (right, dead) = operators.verdicts(chosen, "onnx")
    assert right == ("right", "")
    assert dead[0] == "traceback"
    assert "the process died with exit code" in dead[1]
    found = operators.summary(["fine", "dies"], [right, dead])
    assert (found["right"], found["refused"], found["traceback"]) == (1, 0, 1)
    assert found["said"]["traceback"].keys() == {"dies"}


@pytest.mark.slow
def test_nearly_all_operators_are_there(operators: Any) -> None:
    names = [name for name, _, _ in operators.networks()]
    assert len(names) == len(set(names)) > 500
    assert {"log1p", "nn.functional.conv2d", "softmax"} <= set(names)
