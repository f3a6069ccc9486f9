"""Estimates of time: against the instructions that were counted on emulated boards, and by hand."""

import json
import re
from pathlib import Path

import pytest

from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.targets.boards import BOARDS
from nbcompile.exporters.to_tflite.targets.cycles import CORES, estimated, instructions, why_no_latency
from nbcompile.exporters.to_tflite.targets.work import Work, works
from tests.exporters.to_tflite.small_tflite import tiny

COUNTED = json.loads((Path(__file__).parents[4] / "benchmarks/results/on_device.json").read_text())["results"]
MACHINES = {"m0plus": "cortex-m0+", "m7": "cortex-m7", "m55": "cortex-m55"}


def counted(steps: list[str]) -> list[tuple[Work, int, int]]:
    rows = []
    for line in steps:
        found = re.fullmatch(r"(\d+) × (\d+) of (.+?): (.+)", line)
        assert found is not None
        done = {what: int(number) for number, what in (part.split() for part in found[4].split(", "))}
        rows.append((Work(found[3], 0, done), int(found[1]), int(found[2])))
    return rows


@pytest.mark.parametrize(
    ("network", "way", "machine"),
    [(n, w, m) for n, ways in COUNTED.items() for w, row in ways.items() for m in MACHINES if m in row],
)
def test_tables_give_the_instructions_that_were_counted(network: str, way: str, machine: str) -> None:
    """Within 5 % for every network; each kind of kernel of int8 that was met is in the table."""
    table = CORES[MACHINES[machine]].table
    guessed = spent = 0.0
    for work, times, each in counted(COUNTED[network][way][machine]["steps"]):
        if work.kind.endswith("in float32"):
            continue
        one = instructions(work, table)
        assert one is not None, work.kind
        guessed, spent = guessed + times * one, spent + times * each
    assert guessed == pytest.approx(spent, rel=0.05)


def test_the_counted_networks_are_those_of_the_first_measurements() -> None:
    """By others, of trained weights: 30.0 M, 24.0 M, 100.0 M and 380.7 M."""
    before = {"ResNet-8, 32 px": 30.0, "MobileNetV1-0.25, 96 px": 24.0, "MobileNetV2-Tiny, 144 px": 100.0}
    for name, millions in (before | {"MCUNet, 176 px": 380.7}).items():
        assert COUNTED[name]["converted"]["m7"]["instructions"] / 1e6 == pytest.approx(millions, rel=0.02)


def test_work_is_counted_as_by_hand() -> None:
    """A convolution of 3 x 3, stride 2, from 17 x 13 x 3 to 9 x 7 x 4; a mean; a linear layer; a softmax."""
    done = [(work.kind, work.counts) for work in works(read_file(tiny()))]
    assert done[0] == (
        "convolution",
        {"call": 1, "mac": 9 * 7 * 4 * 27, "output": 252, "place": 63, "weight": 4 * 27, "gathered": 63 * 27},
    )
    assert [kind for kind, _ in done] == ["convolution", "MEAN", "FULLY_CONNECTED", "SOFTMAX"]
    assert done[1][1]["input"] == 252
    assert done[2][1] == {"call": 1, "mac": 20, "output": 5, "weight": 20}


def test_a_board_has_the_time_of_its_core_at_its_clock() -> None:
    content = tiny()
    alone, there = estimated(content), estimated(content, BOARDS["stm32f746g-disco"])
    assert alone.milliseconds is None
    assert there.cycles == alone.cycles
    assert there.milliseconds == pytest.approx(there.cycles["cortex-m7"] / 216e3)
    assert there.cycles["cortex-m7"] == sum(layer.cycles["cortex-m7"] for layer in there.layers)
    assert [layer.optimized for layer in there.layers] == [True, False, True, True]


def test_what_the_tables_lack_is_said() -> None:
    board = BOARDS["esp32-s3"]
    found = estimated(tiny(int8=False), board)
    assert found.milliseconds is None
    assert found.unknown[0] == "convolution in float32"
    assert "no latency is estimated for Espressif ESP32-S3" in (why_no_latency(board) or "")
    assert all(why_no_latency(one) is None for one in BOARDS.values() if one is not board)
