"""Files for devices in the report: tables, the memory map bar by bar, and what is said about them."""

import json
import math
import re
from dataclasses import asdict, replace

import pytest

from nbcompile.report.data import Page
from nbcompile.report.html import render_page
from nbcompile.report.layout import PAGE_WIDTH
from nbcompile.report.memory_map import draw_memory
from nbcompile.report.summary import summary
from nbcompile.results.device import (
    Device,
    Interpreter,
    QuantizedRow,
    TensorRow,
    busiest,
    first_out_of_band,
    verdict,
)
from tests.report.report_page import HOSTILE, ParsedPage

MINIMAL = Page(title="a title", created="2026-01-02T03:04:05", command="nbcompile fuse trained.pt -o tiny.tflite")
TENSORS = (
    TensorRow(name="x", first=-1, last=0, offset=82_944, bytes=62_208),
    TensorRow(name="net/a;b", layer="features.0", first=0, last=1, offset=0, bytes=82_944),
    TensorRow(name="net/c", layer="features.1", first=1, last=2, offset=100_000, bytes=41_472),
    TensorRow(name="net/d", layer="head", first=2, last=3, offset=0, bytes=10),
)
LAYERS = (
    QuantizedRow(
        name="features.0", kind="conv 3×3 /2 3→16", low=-1.5, high=6.0, scale=0.0294, zero_point=-77,
        sqnr=40.13, expected=35.0, in_band=True, weight_bytes=1_432,
    ),
    QuantizedRow(name="features.1", sqnr=12.0, expected=30.0, in_band=False),
    QuantizedRow(name="head", sqnr=11.0, in_band=False),
)  # fmt: skip
DEVICE = Device(
    file="tiny.tflite",
    target="mcu",
    scheme="int8",
    bytes=1_891_472,
    flash_budget=2_097_152,
    arena_head=145_152,
    arena_tail=20_000,
    arena_total=165_152,
    arena_budget=160_000,
    peak_layer="features.0",
    macs_logical=1_000,
    macs_executed=1_090,
    interpreters=(
        Interpreter(
            name="LiteRT, XNNPACK",
            sqnr=38.47,
            max_lsb=3,
            mean_lsb=0.3123,
            top1=0.9922,
            error=0.44,
            lowest=35.2,
            samples=15,
        ),
        Interpreter(name="TFLite Micro", sqnr=math.inf, max_lsb=0.0, mean_lsb=math.nan),
    ),
    layers=LAYERS,
    tensors=TENSORS,
    notes=("Input: int8, channels last.",),
)


def page_of(*devices: Device) -> ParsedPage:
    return ParsedPage(render_page(replace(MINIMAL, devices=devices)))


def bars(svg: str) -> list[tuple[float, ...]]:
    """x, y, width and height of each tensor's rectangle."""
    pattern = r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"'
    return [tuple(map(float, found)) for found in re.findall(pattern, svg)]


# ---- the page


def test_tables_are_filled() -> None:
    page = page_of(DEVICE)
    assert page.row("devices", "file, in flash") == ["file, in flash", "1,891,472", "2,097,152", "fits, 205,680 B free"]
    assert page.row("devices", "arena: activations (head)")[1:] == ["145,152", "", ""]
    assert page.row("devices", "arena: what stays (tail)")[1:] == ["20,000", "", ""]
    assert page.row("devices", "arena: total")[1:] == ["165,152", "160,000", "5,152 B too many"]
    assert "to plan and align" not in page.text
    more = page_of(replace(DEVICE, arena_total=166_152))
    assert more.row("devices", "arena: to plan and align")[1:] == ["1,000", "", ""]
    assert page.row("devices", "LiteRT, XNNPACK")[1:] == ["38.5 ± 0.4 dB", "35.2 dB", "15", "3", "0.3123", "99.22 %"]
    assert page.row("devices", "TFLite Micro")[1:] == ["∞ dB", "–", "–", "0", "–", "–"]
    assert page.row("devices", "net/a;b")[1:] == ["features.0", "0–1", "0", "82,944"]
    assert page.row("devices", "x")[1:] == ["–", "start–0", "82,944", "62,208"]
    said = " ".join(page.text.split())
    assert "tiny.tflite for mcu, int8" in said
    assert "The activations need the most at features.0." in said
    assert "executes 1,090 MACs, 1.09 × the 1,000 of its layers." in said
    assert "Input: int8, channels last." in said
    assert ("a", "href", "#devices") in page.attributes


def test_layers_are_listed_and_the_first_out_of_its_band_is_marked() -> None:
    html = render_page(replace(MINIMAL, devices=(DEVICE,)))
    page = ParsedPage(html)
    measured = ["-1.5", "6", "0.0294", "-77", "40.1 dB", "35.0 dB", "in", "1,432"]
    assert page.row("devices", "features.0") == ["features.0", "conv 3×3 /2 3→16", *measured]
    assert page.row("devices", "features.1")[6:9] == ["12.0 dB", "30.0 dB", "first out"]
    assert page.row("devices", "head") == ["head", *["–"] * 5, "11.0 dB", "–", "out", "–"]
    assert re.findall(r'<tr class="first-out"><td class="mono">(.*?)</td>', html) == ["features.1"]
    assert "out of its expected band is features.1 (12.0 dB, expected at least 30.0 dB)" in " ".join(page.text.split())


def test_what_is_not_known_is_a_dash_or_nothing() -> None:
    empty = Device(file="a.tflite", layers=(QuantizedRow(name="conv", sqnr=math.nan, scale=math.nan),))
    page = page_of(empty)
    assert page.row("devices", "conv") == ["conv", *["–"] * 9]
    assert page.tags["svg"] == 0
    assert page.tags["table"] == 1
    for absent in ("None", "nan", "expected band", "Memory map", "Against torch", "MACs", "need the most"):
        assert absent not in page.text
    budgeted = page_of(Device(file="a.tflite", arena_budget=1_000))
    assert budgeted.tables["devices"] == [["memory", "bytes", "budget", "result"], ["arena: total", "–", "1,000", ""]]
    without = page_of(Device(file="a.tflite", bytes=640))
    assert without.tables["devices"] == [["memory", "bytes"], ["file, in flash", "640"]]
    assert page_of(Device(file="a.tflite")).tags["table"] == 0


def test_no_device_no_section() -> None:
    page = ParsedPage(render_page(MINIMAL))
    assert "On the device" not in page.text
    assert ("a", "href", "#devices") not in page.attributes


def test_two_files_share_the_page() -> None:
    page = page_of(DEVICE, replace(DEVICE, file="pi.tflite", target="raspberrypi"))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert "pi.tflite for raspberrypi, int8" in page.text


def test_hostile_text_is_escaped() -> None:
    hostile = Device(
        file=HOSTILE,
        target=HOSTILE,
        scheme=HOSTILE,
        peak_layer=HOSTILE,
        interpreters=(Interpreter(name=HOSTILE),),
        layers=(QuantizedRow(name=HOSTILE, kind=HOSTILE, in_band=False),),
        tensors=(TensorRow(name=HOSTILE, layer="<b>", first=0, last=9, offset=0, bytes=1_000),),
        notes=(HOSTILE,),
    )
    page = page_of(hostile)
    assert page.tags["script"] == page.tags["b"] == 0
    assert page.text.count("<script>alert(") > 8
    assert page.text.count("<b>") > 2
    (label,) = (value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label"))
    assert HOSTILE in label


# ---- the memory map


def test_bars_show_lifetime_against_offset() -> None:
    svg = draw_memory(DEVICE)
    x, a, c, d = bars(svg)
    step = c[0] - a[0]
    assert step > 5
    assert (a[0] - x[0], d[0] - c[0]) == pytest.approx((step, step), abs=0.2)  # x is there before the first op
    assert [bar[2] + 1 for bar in (x, a, c, d)] == pytest.approx(
        [2 * step] * 4, abs=0.2
    )  # last op included, a gap of 1 px
    scale = (a[3] + 1) / 82_944
    assert (x[3] + 1) / 62_208 == pytest.approx(scale, rel=0.01)
    assert x[1] + x[3] + 1 == pytest.approx(a[1], abs=0.2)  # x stands on features.0
    floor = a[1] + a[3] + 1
    assert floor - (c[1] + c[3] + 1) == pytest.approx(100_000 * scale, rel=0.01)
    assert d[3] == 1.0  # ten bytes can still be seen
    assert "<title>features.0: 82,944\u00a0B from byte 0, ops 0–1 (tensor net/a;b)</title>" in svg
    assert "<title>x: 62,208\u00a0B from byte 82,944, ops start–0</title>" in svg


def test_peak_and_what_the_tail_leaves_of_the_budget_are_lines() -> None:
    svg = draw_memory(DEVICE)
    levels = re.findall(r'class="level (\w+)"><path d="M[\d.]+ ([\d.]+)H.*?>([^<]+)</text>.*?>([^<]+)</text>', svg)
    assert [(css, name, size.replace("\u00a0", " ")) for css, _, name, size in levels] == [
        ("peak", "peak", "145,152 B"),
        ("exceeded", "budget − tail", "140,000 B"),
    ]
    peak, budget = (float(y) for _, y, _, _ in levels)
    assert peak < budget  # higher in the picture
    assert peak == pytest.approx(min(bar[1] for bar in bars(svg)), abs=0.6)


@pytest.mark.parametrize(
    ("budget", "drawn"),
    [(None, []), (150_000, ["budget"]), (145_152, ["budget"]), (145_151, ["exceeded"]), (4_000_000, []), (-5, [])],
)
def test_a_budget_far_above_the_peak_does_not_squeeze_the_picture(budget: int | None, drawn: list[str]) -> None:
    svg = draw_memory(replace(DEVICE, arena_budget=budget, arena_tail=None))
    assert re.findall(r'class="level (\w+)"', svg) == ["peak", *drawn]


def test_the_fullest_op_is_marked_and_named() -> None:
    assert busiest(TENSORS) == (0, (TENSORS[1], TENSORS[0]), 0)
    assert re.findall(r'class="bar live"><title>([\w.]+)', draw_memory(DEVICE)) == ["x", "features.0"]
    said = " ".join(page_of(DEVICE).text.replace("\u00a0", " ").split())
    assert "live at op 0: features.0 (82,944 B), x (62,208 B), in all 145,152 B" in said
    assert "no plan for these tensors can need less." in said
    assert "Of the budget, 20,000 B go to what stays in the arena; 140,000 B are left for these tensors." in said


def test_gaps_in_the_plan_are_said() -> None:
    moved = (*TENSORS[1:], replace(TENSORS[0], offset=90_000))
    assert busiest(moved)[2] == 90_000 - 82_944
    said = page_of(replace(DEVICE, tensors=moved)).text.replace("\u00a0", " ")
    assert "this one needs 7,056 B more, lost to gaps." in said


def test_ops_start_at_their_own_column() -> None:
    svg = draw_memory(DEVICE)
    ticks = re.findall(r'<text class="tick" x="([\d.]+)" [^>]*text-anchor="middle">(\d+)<', svg)
    assert [text for _, text in ticks] == ["0", "1", "2", "3"]
    x, _, width, _ = bars(svg)[1]  # features.0, ops 0 to 1
    assert float(ticks[0][0]) == pytest.approx(x + width / 4, abs=0.6)
    unread = TensorRow(name="unread", first=-2, last=-2, offset=0, bytes=1_000)
    assert unread.ops == "start"
    ParsedPage(draw_memory(Device(file="a.tflite", tensors=(unread,))))


@pytest.mark.parametrize("count", [1, 5, 200])
def test_picture_fits_the_page_and_names_the_biggest(count: int) -> None:
    tensors = tuple(
        TensorRow(
            name=f"t{i}", layer=f"stages.{i}.conv", first=i, last=i + 1,
            offset=(i % 2) * 400_000, bytes=400_000 // (i + 1),
        )
        for i in range(count)
    )  # fmt: skip
    page = ParsedPage(svg := draw_memory(Device(file="a.tflite", tensors=tensors)))
    width, height = (float(v) for v in re.findall(r'width="(\d+)" height="(\d+)" viewBox', svg)[0])
    assert width <= PAGE_WIDTH + 0.5
    assert page.tags["rect"] == len(bars(svg)) == count
    for x, y, wide, high in bars(svg):
        assert 0 <= x <= x + wide <= width
        assert 0 <= y <= y + high <= height
    for tensor in tensors[:3]:
        assert f">{tensor.layer}" in svg.replace(f"<title>{tensor.layer}", "")  # written inside its bar
    assert svg.count('class="name"') < 40  # small bars have no name, but a title
    assert svg.count("<title>") == count


def test_names_stay_inside_their_bars() -> None:
    long = TensorRow(name="t", layer="a." * 60 + "end", first=0, last=1, offset=0, bytes=100)
    flat = replace(long, layer="flat", first=2, last=30, offset=0, bytes=1)
    svg = draw_memory(Device(file="a.tflite", tensors=(long, flat)))
    (name,) = re.findall(r'class="name"[^>]*>([^<]+)<', svg)
    assert name.startswith("…")
    assert name.endswith("a.end")
    assert "rotate(-90" in svg
    assert len(name) * 5.8 <= bars(svg)[0][3]


def test_colours_are_the_pages() -> None:
    svg = draw_memory(DEVICE)
    assert not re.search(r"#[0-9a-f]{6}|style=|fill=|stroke=", svg)
    html = render_page(replace(MINIMAL, devices=(DEVICE,)))
    for css in ("rule", "tick", "live", "name", "level", "budget", "exceeded"):
        assert f".memory .{css}" in html


# ---- data


def test_json_is_plain_and_comes_back() -> None:
    found = json.loads(json.dumps(replace(MINIMAL, devices=(DEVICE,)).to_json(), allow_nan=False))["devices"][0]
    lost = replace(DEVICE.interpreters[1], sqnr=None, mean_lsb=None)  # infinity and NaN have no JSON
    assert Device.of(found) == replace(DEVICE, interpreters=(DEVICE.interpreters[0], lost))
    assert Device.of(asdict(DEVICE)).tensors == TENSORS


def test_first_out_of_band() -> None:
    assert first_out_of_band(LAYERS) is LAYERS[1]
    assert first_out_of_band((LAYERS[0], QuantizedRow(name="unknown"))) is None


@pytest.mark.parametrize(
    ("value", "budget", "expected"),
    [
        (5, 5, (True, "fits, 0 B free")),
        (6, 5, (False, "1 B too many")),
        (None, 5, (True, "")),
        (5, None, (True, "")),
        (math.nan, 5, (True, "")),
    ],
)
def test_verdict(value: float | None, budget: float | None, expected: tuple[bool, str]) -> None:
    fits, words = verdict(value, budget)
    assert (fits, words.replace("\u00a0", " ")) == expected


def test_summary_says_what_a_device_needs() -> None:
    said = [line.replace("\u00a0", " ") for line in summary(replace(MINIMAL, devices=(DEVICE,)))]
    assert said == [
        "tiny.tflite gives torch's outputs with an SQNR of 38.5 ± 0.4 dB in LiteRT, XNNPACK, the worst of its "
        "interpreters.",
        "tiny.tflite needs 1,891,472 B of flash (fits, 205,680 B free) and 165,152 B of arena (5,152 B too many).",
        "features.1 is the first layer of tiny.tflite with a larger error than expected.",
    ]
    assert summary(replace(MINIMAL, devices=(Device(file="a.tflite"),))) == ()
