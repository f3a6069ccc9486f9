"""A browser opens the report: the page as people see it, light and dark, wide and on a phone."""

import shutil
import subprocess
from pathlib import Path

import pytest
from matplotlib.image import imread

from nbcompile.report.data import Box, CheckRow, Graph, LayerRow, ModelRow, Page, TrainingRun
from nbcompile.report.html import write
from nbcompile.results.device import Device, Interpreter, QuantizedRow, TensorRow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]

REPORT = Page(
    title="seen by a browser",
    created="2026-01-02T03:04:05",
    command="nbcompile fuse trained.pt -o tiny.onnx --report out.html",
    models=(ModelRow(name="original", macs=23_499_152, params=750_280), ModelRow(name="tiny", macs=23_499_152)),
    runs=(
        TrainingRun(
            label="vanilla", history=tuple({"epoch": e, "loss": 1 / e, "val_accuracy": 0.1 * e} for e in range(1, 9))
        ),
    ),
    checks=(CheckRow(name="error", measured=1e-7, limit=1e-6, passed=True),),
    layers=(LayerRow(name="conv", error=1e-7),),
    graphs=(
        Graph(
            title="net",
            nodes=tuple(Box(name=f"features.{i}", label="conv 1×1 16→96", detail="norm · ReLU6") for i in range(40)),
            edges=(*((i, i + 1) for i in range(39)), (3, 6), (6, 9)),
        ),
    ),
    devices=(
        Device(
            file="tiny.tflite",
            target="mcu",
            arena_total=90_000,
            arena_budget=100_000,
            interpreters=(Interpreter(name="TFLite Micro", sqnr=38.5, max_lsb=3, mean_lsb=0.3, top1=0.99),),
            layers=(QuantizedRow(name="features.17.conv.0.0", kind="conv 1×1 16→96", low=-1.0, high=6.0, sqnr=38.5),),
            tensors=tuple(
                TensorRow(
                    name=f"t{i}", layer=f"features.{i}.conv", first=i, last=i + 1, offset=i % 2 * 50_000, bytes=40_000
                )
                for i in range(60)
            ),
        ),
    ),
)


def chromium(page: Path, folder: Path, *options: str) -> str:
    """Runs the browser on ``page`` with every outside host unreachable; returns what it printed."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync",
        "--no-first-run", "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}", *options, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.parametrize("width", [1200, 500])
@pytest.mark.parametrize("dark", [False, True])
def test_page_is_drawn(tmp_path: Path, width: int, dark: bool) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "page.png"
    write(REPORT, page)
    scheme = ("--blink-settings=preferredColorScheme=0",) if dark else ()
    chromium(page, tmp_path, f"--screenshot={picture}", f"--window-size={width},2400", *scheme)
    pixels = imread(picture)[..., :3]
    assert pixels.shape == (2400, width, 3)
    assert bool(pixels[5, 5].mean() < 0.3) is dark
    accents = abs(pixels.max(axis=2) - pixels.min(axis=2)) > 0.3  # links, curves and skipping edges have colour
    assert accents[:800].any()
    assert accents[800:].any()


def test_nothing_sticks_out_of_a_phone(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write(REPORT, page)
    probe = "<script>document.title = document.documentElement.scrollWidth - innerWidth</script></body>"
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    assert "<title>0</title>" in chromium(page, tmp_path, "--dump-dom", "--window-size=500,900")
