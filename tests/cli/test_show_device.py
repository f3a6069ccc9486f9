"""A file for a device in the terminal."""

import math
import re
from dataclasses import asdict, replace

from rich.console import Console

from nbcompile.cli.show_device import show_device
from nbcompile.results.device import Device, Interpreter, QuantizedRow

HOSTILE = "[/bold] [red]x"
DEVICE = Device(
    file="tiny.tflite",
    target="mcu",
    scheme="int8",
    bytes=1_891_472,
    flash_budget=1_000_000,
    arena_head=311_040,
    arena_tail=28_416,
    arena_total=339_456,
    peak_layer="features.2.conv.0.0",
    macs_logical=1_000,
    macs_executed=1_090,
    interpreters=(
        Interpreter(
            name="LiteRT, XNNPACK", sqnr=38.47, error=0.44, lowest=35.2, max_lsb=3, mean_lsb=math.nan, top1=0.99
        ),
    ),
    layers=(
        QuantizedRow(name="features.0.0", low=-1.5, high=6.0, scale=0.0294, sqnr=40.1, in_band=True, weight_bytes=432),
        QuantizedRow(name="features.17.conv.0.0", sqnr=12.0, expected=30.0, in_band=False),
        QuantizedRow(name="head", sqnr=11.0, in_band=False),
        QuantizedRow(name="last"),
    ),
    notes=("Input: int8, channels last.",),
)


def shown(device: Device, *, layers: bool = False, width: int = 80) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        show_device(asdict(device), console, layers=layers)
    return capture.get().replace("\u00a0", " ").splitlines()


def test_memory_numbers_and_the_first_layer_out_of_its_band() -> None:
    lines = shown(DEVICE)
    assert lines[:7] == [
        "tiny.tflite, mcu, int8",
        "  flash: 1,891,472 B of 1,000,000 B (891,472 B too many)",
        "  arena: 339,456 B: 311,040 B of activations, 28,416 B that stay",
        "  peak: at features.2.conv.0.0",
        "  MACs: 1,090 executed, 1.09 × the layers'",
        "  first layer out of its expected band: features.17.conv.0.0 (12.0 dB, expected at least 30.0 dB)",
        "  Input: int8, channels last.",
    ]
    (row,) = (line for line in lines if "XNNPACK" in line)
    assert row.split("  ")[0].strip() == "LiteRT, XNNPACK"
    assert row.split()[2:] == ["38.5", "±", "0.4", "dB", "35.2", "dB", "3", "–", "99.00", "%"]
    assert "features.0.0" not in "\n".join(lines)


def test_the_parts_of_the_arena_are_all_of_it() -> None:
    """In a small network the interpreter plans in more memory than it later needs."""
    (line,) = [
        line for line in shown(replace(DEVICE, arena_total=339_456 + 5_000), width=120) if line.startswith("  arena")
    ]
    assert line == "  arena: 344,456 B: 311,040 B of activations, 28,416 B that stay, 5,000 B to plan and align"
    total, *parts = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+) B", line))
    assert total == sum(parts)


def test_layers_are_shown_when_asked_for_and_fit_80_columns() -> None:
    rows = {words[0]: words[1:] for line in shown(DEVICE, layers=True) if (words := line.split())}
    assert rows["features.0.0"] == ["-1.5", "6", "0.0294", "40.1", "dB", "in", "432"]
    assert rows["features.17.conv.0.0"] == ["–", "–", "–", "12.0", "dB", "first", "out", "–"]
    assert rows["head"][-2:] == ["out", "–"]
    assert rows["last"] == ["–"] * 6


def test_what_is_not_known_is_left_out() -> None:
    assert shown(Device(file="tiny.tflite"), layers=True) == ["tiny.tflite"]


def test_names_are_no_markup() -> None:
    hostile = Device(
        file=HOSTILE,
        peak_layer=HOSTILE,
        interpreters=(Interpreter(name=HOSTILE),),
        layers=(QuantizedRow(name=HOSTILE, in_band=False),),
        notes=(HOSTILE,),
    )
    assert "\n".join(shown(hostile, layers=True, width=200)).count(HOSTILE) == 6
