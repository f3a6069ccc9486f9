"""The front door: what it offers, that it is documented, and that opening it costs nothing."""

import inspect
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest

import nbcompile

ERRORS = {
    "NBCompileError": 1,
    "CaptureError": 1,
    "PreconditionError": 1,
    "PostconditionError": 1,
    "ExportError": 1,
    "VerificationError": 1,
    "CheckpointError": 2,
    "UsageError": 2,
}
VERBS = ("expand", "fuse", "verify", "cost", "save", "load", "export")
CLASSES = ("PLT", "Verification", "Cost")
NAMES = [name for name in nbcompile.__all__ if name not in ("__version__", "zoo")]


def test_all_is_what_the_front_documents() -> None:
    """Each name is declared for type checkers, too, from the module that the door opens."""
    source = inspect.getsource(nbcompile)
    assert {*VERBS, *CLASSES, *ERRORS, "zoo", "__version__"} <= set(nbcompile.__all__)
    for name in NAMES:
        assert f"from {nbcompile._HOME[name]} import {name} as {name}" in source
    assert source.count(" as ") == len(NAMES) + 1  # and the zoo


@pytest.mark.parametrize("name", NAMES)
def test_every_name_opens_and_is_documented(name: str) -> None:
    value = getattr(nbcompile, name)
    assert value is getattr(import_module(nbcompile._HOME[name]), name)
    assert value.__module__.startswith("nbcompile.")
    assert inspect.getdoc(value)


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_says_what_it_takes_and_gives(name: str) -> None:
    verb = getattr(nbcompile, name)
    text, signature = inspect.getdoc(verb) or "", inspect.signature(verb)
    for parameter in signature.parameters:
        assert f"\n    {parameter}: " in text or f"\n    *{parameter}: " in text, (
            f"{name}: {parameter} is not described"
        )
    if signature.return_annotation not in (None, "None"):
        assert "Returns:" in text or text.splitlines()[0], f"{name}: nothing is said of what it returns"
    assert all(p.annotation is not p.empty for p in signature.parameters.values())


def test_the_signatures_are_those_promised() -> None:
    def start(value: Any, count: int) -> str:
        shown = [f"{p.name}={p.default!r}" if p.default is not p.empty else p.name for p in parameters(value)]
        return ", ".join(shown[:count])

    def parameters(value: Any) -> list[inspect.Parameter]:
        return list(inspect.signature(value).parameters.values())

    assert start(nbcompile.expand, 6) == (
        "model, example_input=None, where='uniform:0.5', block='inverted-residual', ratio=6, preserve=False"
    )
    assert start(nbcompile.PLT, 4) == "giant, steps, start=0, also=()"
    assert start(nbcompile.fuse, 1) == "model"
    assert start(nbcompile.cost, 2) == "model, example_input=None"
    assert start(nbcompile.save, 2) == "model, path"
    assert start(nbcompile.load, 1) == "path"
    assert start(nbcompile.export, 3) == "model, path, example_input=None"


@pytest.mark.parametrize(("name", "code"), ERRORS.items())
def test_errors_know_their_exit_code(name: str, code: int) -> None:
    error = getattr(nbcompile, name)
    assert issubclass(error, nbcompile.NBCompileError)
    assert error.exit_code == code


def test_dir_and_unknown_names() -> None:
    assert dir(nbcompile) == sorted(nbcompile.__all__)
    assert len(set(nbcompile.__all__)) == len(nbcompile.__all__)
    with pytest.raises(AttributeError, match="module 'nbcompile' has no attribute 'expend'"):
        _ = nbcompile.expend


@pytest.mark.parametrize("statement", ["import nbcompile; dir(nbcompile)", "import nbcompile.__main__"])
def test_importing_loads_nothing_heavy(statement: str) -> None:
    heavy = "'torch', 'numpy', 'onnx', 'onnxruntime', 'tensorflow', 'torchvision', 'timm', 'lightning', 'matplotlib'"
    code = f"import sys; {statement}; print([m for m in ({heavy}) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
