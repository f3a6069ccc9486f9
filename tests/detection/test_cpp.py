"""The C++ decoder finds what the Python one does, in maps of int8 as in float; no warning, no allocation."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

import nbcompile
from nbcompile.core.errors import ExportError
from nbcompile.core.example import Origin, TensorSpec, remember
from nbcompile.detection.cpp import OutputMap, boxes_header
from nbcompile.detection.decode import BoxCoding, decode
from nbcompile.detection.network import Detector
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.run.interpreters import run_file
from nbcompile.testing import scramble_
from tests.boxes import Tower

FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-O1", "-fsanitize=undefined,address")
CODING = BoxCoding(
    ('a "quoted\\ one', "b", "ü??/"), (((0.1, 0.2), (0.2, 0.1), (0.3, 0.3)), ((0.5, 0.4), (0.6, 0.6), (0.9, 0.8)))
)
GRIDS = ((7, 5), (3, 2))
SCALES, ZERO_POINTS = (0.0713, 0.0591), (3, -20)
PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include "my-net_boxes.h"
int main(int, char** words) {
  static my_net_output_0_t map_0[MY_NET_OUTPUT_0_ELEMENTS];
  static my_net_output_1_t map_1[MY_NET_OUTPUT_1_ELEMENTS];
  if (fread(map_0, sizeof(map_0), 1, stdin) != 1 || fread(map_1, sizeof(map_1), 1, stdin) != 1) return 1;
  static my_net_boxes::Box boxes[400];
  const int count = my_net_boxes::Decode(map_0, map_1, boxes, atoi(words[1]));
  printf("%s\\n", my_net_boxes::kNames[2]);
  for (int i = 0; i < count; ++i) {
    const my_net_boxes::Box& b = boxes[i];
    printf("%.9g %.9g %.9g %.9g %.9g %d\\n", static_cast<double>(b.left), static_cast<double>(b.top),
           static_cast<double>(b.right), static_cast<double>(b.bottom), static_cast<double>(b.score), b.kind);
  }
}
"""


def ports(order: tuple[int, int], quantized: bool) -> str:
    """What ``STEM.h`` says of the outputs, as far as it is used."""
    lines = ["#pragma once", "#include <stdint.h>"]
    for port, which in enumerate(order):
        lines.append(f"typedef {'int8_t' if quantized else 'float'} my_net_output_{port}_t;")
        lines.append(f"#define MY_NET_OUTPUT_{port}_ELEMENTS {GRIDS[which][0] * GRIDS[which][1] * 24}")
        lines.append(f"#define MY_NET_OUTPUT_{port}_SCALE {SCALES[which]}f")
        lines.append(f"#define MY_NET_OUTPUT_{port}_ZERO_POINT ({ZERO_POINTS[which]})")
    return "\n".join(lines) + "\n"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize(("order", "quantized"), [((0, 1), True), ((1, 0), False)])
def test_it_finds_what_python_finds(tmp_path: Path, order: tuple[int, int], quantized: bool) -> None:
    outputs = [OutputMap((*GRIDS[which], 24), quantized) for which in order]
    (tmp_path / "my-net.h").write_text(ports(order, quantized))
    (tmp_path / "my-net_boxes.h").write_text(boxes_header(CODING, outputs, "my-net", "my_net", "my-net"))
    (tmp_path / "program.cc").write_text(PROGRAM)
    subprocess.run(["g++", *FLAGS, "program.cc", "-o", "program"], cwd=tmp_path, check=True)
    generator = torch.Generator().manual_seed(0)
    for room in (400, 400, 7, 0):
        maps: list[Tensor] = []
        raw: list[bytes] = []
        for (rows, columns), scale, zero_point in zip(GRIDS, SCALES, ZERO_POINTS, strict=True):
            stored = (torch.randn(rows, columns, 24, generator=generator) * 40 - 10).round().clamp(-128, 127)
            numbers = scale * (stored - zero_point)
            maps.append(numbers.permute(2, 0, 1)[None])
            raw.append((stored.to(torch.int8) if quantized else numbers).numpy().tobytes())
        sent = b"".join(raw[which] for which in order)
        done = subprocess.run([tmp_path / "program", str(room)], input=sent, capture_output=True, check=True)
        name, *lines = done.stdout.decode().splitlines()
        found = torch.tensor([[float(x) for x in line.split()] for line in lines]).reshape(-1, 6)
        (expected,) = decode(maps, CODING, candidates=room, kept=room)
        assert name == "ü??/"
        assert len(found) == len(expected.boxes)
        assert len(found) > 20 or room < 8
        torch.testing.assert_close(found[:, :4], expected.boxes, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[:, 4], expected.scores, rtol=1e-5, atol=1e-6)
        assert found[:, 5].tolist() == expected.classes.tolist()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_it_reads_the_outputs_of_an_exported_file(tmp_path: Path) -> None:
    """Beside a real file for a microcontroller, on what that file gives in its interpreter."""
    images = torch.randn(24, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = scramble_(Detector(Tower(), 3, width=16)).eval()
    with torch.no_grad():
        for head in (model.head_fine, model.head_coarse):
            head.weight.normal_(0, 0.3)
            head.bias.zero_()
    remember(model, Origin((TensorSpec((1, 3, 64, 96)),), None, {"boxes": CODING.to_json()}))
    result = nbcompile.export(model, tmp_path / "my-net.tflite", images[:1], calibration=images, target="mcu")
    header = tmp_path / "my-net_boxes.h"
    assert header in result.companions
    assert "boxes" not in (tmp_path / "my-net.h").read_text().split("#ifndef")[0]
    (tmp_path / "program.cc").write_text(PROGRAM)
    subprocess.run(["g++", *FLAGS, "program.cc", "-o", "program"], cwd=tmp_path, check=True)
    content = (tmp_path / "my-net.tflite").read_bytes()
    outputs = run_file(content, [(images[3:4].movedim(1, -1).contiguous().numpy(),)])[0]
    file = read_file(content)
    stored = [file.tensors[index].quantized(x) for index, x in zip(file.outputs, outputs, strict=True)]
    sent = b"".join(x.astype("int8").tobytes() for x in stored)
    done = subprocess.run([tmp_path / "program", "400"], input=sent, capture_output=True, check=True)
    found = torch.tensor([[float(x) for x in line.split()] for line in done.stdout.decode().splitlines()[1:]])
    (expected,) = decode([torch.from_numpy(x).movedim(-1, 1) for x in outputs], CODING, kept=400)
    assert len(found) == len(expected.boxes) > 10
    torch.testing.assert_close(found[:, :4], expected.boxes, rtol=1e-4, atol=1e-5)
    assert found[:, 5].tolist() == expected.classes.tolist()


def test_other_outputs_are_refused() -> None:
    with pytest.raises(ExportError, match=r"^x_boxes.h: the file's outputs are not 2 maps of 24 channels$"):
        boxes_header(CODING, [OutputMap((1, 1, 24), True)], "x", "x", "x")
