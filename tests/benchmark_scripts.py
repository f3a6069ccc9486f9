"""The scripts in ``benchmarks`` as modules."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@contextmanager
def imported_script(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script ``name``; what it imports from its folder is forgotten after."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module(name)
    for one in set(sys.modules) - before:
        if str(getattr(sys.modules[one], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[one]
