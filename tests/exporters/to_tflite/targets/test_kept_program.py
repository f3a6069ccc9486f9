"""``STEM_main.cc`` of another network: replaced, or kept and said so."""

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nbcompile.exporters.to_tflite.export import write_tflite
from nbcompile.exporters.to_tflite.file.options import Recipe
from nbcompile.exporters.to_tflite.result import TfliteResult
from nbcompile.exporters.to_tflite.targets.check_vector import check_vector
from nbcompile.exporters.to_tflite.targets.kept_program import why_kept
from nbcompile.exporters.to_tflite.targets.micro_sources import sources
from tests.exporters.to_tflite.small_tflite import converted, tiny
from tests.exporters.to_tflite.targets.test_micro_sources import FLAGS, needs_compiler, write

ONE = "input 0 of int8 1 x 17 x 13 x 3, output 0 of int8 1 x 5"
TWO = "input 0 of int8 1 x 4, input 1 of int8 1 x 4, output 0 of int8 1 x 4"
KEPT = "tiny_main.cc was there and is kept as it is: delete it to get a new one"
OTHER = (
    f"tiny_main.cc was changed and is kept, but no longer fits: it is for {ONE}, and the network now has {TWO}; move "
    f"it away to get a new one, and put your changes into that"
)


@pytest.fixture(scope="module")
def one() -> str:
    return sources(tiny(), "tiny", 5000)["tiny_main.cc"]


@pytest.fixture(scope="module")
def two() -> dict[str, str]:
    return sources(converted(lambda x, y: x * y, (1, 4), (1, 4)), "tiny", 5000)


def mine(text: str) -> str:
    """As a user changes it."""
    return text.replace("return 0;\n}\n", "return Sensor(index);\n}\n", 1)


def test_what_the_program_is_for(one: str, two: dict[str, str]) -> None:
    assert one.splitlines()[2] == f"// It is for {ONE}."
    assert two["tiny_main.cc"].splitlines()[2] == f"// It is for {TWO}."
    assert re.fullmatch(r"// SHA-256 of the lines above, as nbcompile wrote them: \w{64}", one.splitlines()[-1])
    image = check_vector(tiny(), pixels=np.linspace([-1.0] * 3, [1.0] * 3, 256, axis=1))
    text = sources(tiny(), "tiny", 5000, vector=image)["tiny_main.cc"]
    assert f"// It is for {ONE.replace('3,', '3 from the bytes of an image,')}.\n" in text


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (None, ""),
        (lambda text: text, ""),
        (lambda text: text.replace("\n", "\r\n"), ""),
        (mine, OTHER),
        (lambda text: mine(text).replace("\n", "\r\n"), OTHER),
        (lambda text: text + "// mine\n", OTHER),
        (lambda text: mine("\n".join(text.splitlines()[3:])), KEPT),
        (lambda text: "\n".join(text.splitlines()[:-1]).replace(ONE, TWO), KEPT),
        (lambda text: "mine", KEPT),
        (lambda text: b"\xff\xfe", KEPT),
    ],
    ids=[
        "none", "untouched", "untouched, with other line ends", "changed", "changed, with other line ends", "longer",
        "changed, of an older nbcompile", "of the same inputs", "another program", "no text",
    ],
)  # fmt: skip
def test_only_what_was_changed_is_kept(there: Any, said: str, one: str, two: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "tiny_main.cc"
    if there is not None:
        held = there(one)
        path.write_bytes(held if isinstance(held, bytes) else held.encode())
    assert why_kept(path, two["tiny_main.cc"]) == said


class Sum(nn.Module):
    """Of as many inputs as it is called with."""

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return torch.relu(x + others[0]) if others else torch.relu(x)


def test_another_network_at_the_same_path(tmp_path: Path) -> None:
    def exported(count: int) -> TfliteResult:
        inputs = tuple(torch.randn(1, 4) for _ in range(count))
        return write_tflite(Sum(), inputs, tmp_path / "tiny.tflite", recipe=Recipe("float32"), micro=True)

    program = tmp_path / "tiny_main.cc"
    exported(1)
    assert "input_1" not in program.read_text()
    result = exported(2)
    assert "tiny_check_fill_1(input_1)" in program.read_text()
    assert program in result.companions
    assert not any("tiny_main.cc" in note for note in result.notes)
    program.write_text(mine(program.read_text()))
    result = exported(1)
    assert "Sensor(index)" in program.read_text()
    assert program not in result.companions
    (note,) = (note for note in result.notes if "tiny_main.cc" in note)
    assert "for input 0 of float32 1 x 4, input 1 of float32 1 x 4, output 0 of float32 1 x 4, and the" in note
    assert KEPT in exported(2).notes


@needs_compiler
def test_a_program_for_fewer_inputs_does_not_compile(one: str, two: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path, {**two, "tiny_main.cc": one})
    done = subprocess.run(["g++", *FLAGS, "-c", "tiny_main.cc"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "this program is for another network: move it away, and export again to get one that fits" in done.stderr
