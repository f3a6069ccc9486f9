"""The arena on a Cortex-M, as it is computed: against what was measured on an emulated one, and by hand."""

import json
from pathlib import Path

import pytest

from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.run.arena import measure_arena
from nbcompile.exporters.to_tflite.run.on_device import cmsis_nn_scratch, less_on_32_bits, on_device, stated_arena
from tests.exporters.to_tflite.small_tflite import tiny

MEASURED = json.loads((Path(__file__).parents[4] / "benchmarks/results/on_device.json").read_text())["results"]


def test_scratch_memory_is_that_of_the_kernels() -> None:
    """Two columns of 27 values, padded to 28, of 16 bits; for Helium four of 32 bytes, and the sums of 5 rows."""
    file = read_file(tiny())
    assert [(one.nbytes, one.first, one.last) for one in cmsis_nn_scratch(file, helium=False)] == [(112, 0, 0)]
    assert [(one.nbytes, one.first) for one in cmsis_nn_scratch(file, helium=True)] == [(128, 0), (20, 2)]


def test_what_is_stated_is_enough_here_and_there() -> None:
    content = tiny()
    arena = measure_arena(content)
    assert arena.needed is not None
    for helium in (False, True):
        one, stated = on_device(content, arena, helium=helium), stated_arena(content, arena, helium=helium)
        assert one is not None
        assert stated >= arena.needed
        assert one.tail == (arena.tail or 0) - less_on_32_bits(read_file(content))
        assert stated > one.total
        assert one.head >= arena.head


@pytest.mark.parametrize(("network", "way"), [(n, w) for n, ways in MEASURED.items() for w in ways])
def test_computed_arenas_are_those_that_were_measured(network: str, way: str) -> None:
    """The arena of the emulated Cortex-M7 within 0.5 %, on every file."""
    row = MEASURED[network][way]
    assert row["computed"]["arena"] == pytest.approx(row["m7"]["arena"], rel=0.005)
    assert row["computed"]["head"] == row["m7"]["head"]
    assert row["stated"] >= row["m7"]["arena"]
