"""``benchmarks/int8_hunt.py``: its judge finds what it is for."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbcompile.exporters.to_tflite import build

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def hunt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module("int8_hunt")
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.mark.slow
def test_a_scale_that_is_wrong_is_coarse(hunt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network 70 flips the result of a max pool, which is not rescaled there."""
    (good,) = hunt.judge(70, ["raspberrypi"])
    assert (good.verdict, good.sentence) == ("within", "")
    monkeypatch.setattr(build, "with_shared_scales", lambda model, ranges: (model, ranges))
    (bad,) = hunt.judge(70, ["raspberrypi"])
    assert bad.verdict == "coarse"
    assert "below what 8 bits can give, in xnnpack" in bad.sentence
