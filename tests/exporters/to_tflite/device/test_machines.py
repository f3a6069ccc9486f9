"""A small program on every machine: it starts, counts its instructions, writes a file, and its code comes back."""

import shutil
import subprocess
from pathlib import Path

import pytest

from nbcompile.core.errors import ExportError, UsageError
from nbcompile.exporters.to_tflite.device.building import STRICT, Builder
from nbcompile.exporters.to_tflite.device.machines import MACHINES, Machine, machine
from nbcompile.exporters.to_tflite.device.startup import STARTUP, linker_script

FEW, MANY = 3_000_000, 450_000_000
"""Rounds of two instructions; the more are enough that the processor's timer of 24 bits begins anew."""

PROGRAM = """
#include <cstdint>
#include <cstdio>
extern "C" std::uint64_t Ticks();
static std::uint64_t Spent(std::uint32_t left) {
  const std::uint64_t began = Ticks();
  asm volatile("1: subs %0, #1\\n bne 1b" : "+l"(left) : : "cc");
  return Ticks() - began;
}
struct Seven {
  int value = 0;
  Seven() : value(7) {}
  ~Seven() { value = 0; }
};
static Seven seven;
static int cleared[1000];
int main() {
  const unsigned few = static_cast<unsigned>(Spent(1000000)), many = static_cast<unsigned>(Spent(ROUNDS));
  std::FILE* file = std::fopen("out.txt", "wb");
  std::fputs("written", file);
  std::fclose(file);
  std::printf("%u %u", few, many);
  return seven.value + cleared[999];
}
"""


def installed(name: str) -> Machine:
    try:
        return machine(name)
    except UsageError:
        pytest.skip(f"no compiler or emulator for {name}")


def built(found: Machine, folder: Path, rounds: int) -> Path:
    program, start, script = folder / "p.elf", folder / "start.c", folder / "layout.ld"
    assert found.memory is not None
    (folder / "p.cc").write_text(PROGRAM)
    start.write_text(STARTUP)
    script.write_text(linker_script(found.memory))
    objects = Builder(found, folder / "o", []).objects([folder / "p.cc", start], [f"-DROUNDS={rounds}u", *STRICT])
    Builder(found, folder / "o", []).program(
        objects, [], program, ["--specs=rdimon.specs", "-nostartfiles", f"-T{script}"]
    )
    return program


def counted(name: str, folder: Path, rounds: int) -> int:
    """Ticks of ``rounds``, which must be as many times those of a million."""
    found = installed(name)
    command = found.command(str(built(found, folder, rounds)))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL)
    few, many = map(int, done.stdout.split())
    assert done.returncode == 7
    assert (folder / "out.txt").read_text() == "written"
    assert 20_000 < few < 100_000
    assert many == pytest.approx(few * rounds / 1_000_000, rel=1e-4)
    return many


def test_instructions_are_counted(tmp_path: Path) -> None:
    counted("m7", tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, one in MACHINES.items() if one.memory])
def test_instructions_are_counted_on_every_board_and_when_the_timer_begins_anew(name: str, tmp_path: Path) -> None:
    assert counted(name, tmp_path, MANY) > 2**24


def test_a_warning_in_our_sources_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.cc").write_text("int main() { int unused; }\n")
    with pytest.raises(ExportError, match=r"g\+\+ refuses a\.cc: .*unused"):
        Builder(installed("host"), tmp_path / "o", []).objects([tmp_path / "a.cc"], STRICT)


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="there is no machine 'm9' to run on: there are host, m0plus"):
        machine("m9")
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(UsageError, match=r"an emulated Cortex-M7 .* needs arm-none-eabi-g.. and qemu-system-arm, not"):
        machine("m7")
