"""``benchmarks/int8_hunt.py``: its judge finds what it is for."""

from collections.abc import Iterator
from typing import Any

import pytest

from nbcompile.exporters.to_tflite import build
from tests.benchmark_scripts import imported_script


@pytest.fixture
def hunt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with imported_script("int8_hunt", monkeypatch) as script:
        yield script


@pytest.mark.slow
def test_a_scale_that_is_wrong_is_coarse(hunt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network 70 flips the result of a max pool, which is not rescaled there."""
    (good,) = hunt.judge(70, ["raspberrypi"])
    assert (good.verdict, good.sentence) == ("within", "")
    monkeypatch.setattr(build, "with_shared_scales", lambda model, ranges: (model, ranges))
    (bad,) = hunt.judge(70, ["raspberrypi"])
    assert bad.verdict == "coarse"
    assert "below what 8 bits can give, in xnnpack" in bad.sentence
