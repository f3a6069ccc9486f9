"""`nbcompile report-bug`: what an issue needs, and nothing that is the reporter's own."""

import re
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import nbcompile
from nbcompile.cli.app import app
from nbcompile.cli.run.report_bug import LAYERS_TOLD, run_report_bug

SECRET = 1234.5678
WORD = "open-sesame"
NETS = f"""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, flow=True):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.note, self.flow = "{WORD}", flow
        self.scale = nn.Parameter(torch.tensor({SECRET}))

    def extra_repr(self):
        return self.note

    def forward(self, x):
        x = self.first(x)
        if self.flow and x.sum() > 0:
            x = x * 2
        return x.mean((2, 3)) * self.scale

def broken():
    raise RuntimeError("not today")
"""
LINES = NETS.splitlines()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home folder, and a project in it, in which the command is typed."""
    folder = tmp_path / "somebody" / "project"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    Path("reported_nets.py").write_text(NETS)
    monkeypatch.delitem(sys.modules, "reported_nets", raising=False)
    return folder


def report(source: str | None, **options) -> str:
    return run_report_bug(source, **{"model": None, "key": None, "input_shape": None, "output": None, **options})


def test_without_a_network() -> None:
    text = report(None)
    assert f"nbcompile {nbcompile.__version__}, torch {torch.__version__.partition('+')[0]}" in text
    assert re.search(r"^- python \d+\.\d+\.\d+, ", text, re.MULTILINE)
    assert re.findall(r"^- extra (\w+): (?:installed|lacks [\w, -]+)$", text, re.MULTILINE) == [
        *("onnx", "tflite", "train")
    ]  # fmt: skip
    assert "What fails" not in text


def test_where_a_network_cannot_be_captured(home: Path) -> None:
    text = report("reported_nets:Net", input_shape="1x3x9x9")
    assert "- read: ok\n- run: ok\n- captured: CaptureError: Net cannot be traced into a graph: ./reported_nets" in text
    assert (
        f"    - ./reported_nets.py:{LINES.index('        if self.flow and x.sum() > 0:') + 1} in forward, your code\n"
        in text
    )
    assert "(a bug of nbcompile)" not in text
    assert "Net, inputs (1, 3, 9, 9)\n(itself): Net(scale ())\nfirst: Conv2d(3, 8, kernel_size=(3, 3)" in text
    assert str(SECRET) not in text
    assert WORD not in text
    assert str(home.parent) not in text


def test_a_network_that_works(home: Path) -> None:
    text = report("reported_nets:Net?flow=false", input_shape="1x3x9x9")
    assert "- read: ok\n- run: ok\n- captured: ok\n- fused: ok\n" in text


def test_a_network_that_cannot_be_built(home: Path) -> None:
    text = report("reported_nets:broken", input_shape="1x3x9x9")
    assert "- read: UsageError: building 'reported_nets:broken' failed: RuntimeError: not today\n" in text
    assert f"./reported_nets.py:{len(LINES)} in broken, your code\n" in text
    assert "Outline" not in text


def test_a_file(home: Path) -> None:
    """A giant that is not linear yet; what stands in its file stays there."""
    giant = nbcompile.expand(nbcompile.zoo.dscnn(), torch.zeros(1, 1, 8, 8))
    with torch.no_grad():
        giant.classifier.bias.fill_(SECRET)
    nbcompile.save(giant, "giant.pt")
    content = torch.load("giant.pt", weights_only=True)
    torch.save({**content, "note": WORD}, "giant.pt")
    text = report(str(home / "giant.pt"))
    assert "`./giant.pt`" in text
    assert "- fused: PreconditionError: " in text
    assert "features.block0.expand.conv: Expanded(slope (), ramp (3,))" in text
    for own in (str(SECRET), WORD, str(home.parent)):
        assert own not in text
    assert "- read: CheckpointError: missing.pt cannot be read" in report("missing.pt")


def test_a_bug_is_called_one(home: Path) -> None:
    """What nbcompile did not mean to raise; it does not keep the report from being made."""
    Path("reported_odd.py").write_text(
        "from torch import nn\n"
        "class Odd(nn.Module):\n"
        "    def named_parameters(self, *args, **kwargs): raise ZeroDivisionError('odd')\n"
        "    def forward(self, x): return x\n"
    )
    text = report("reported_odd:Odd", input_shape="1x3x9x9")
    assert re.search(r"^- \w+: ZeroDivisionError \(a bug of nbcompile\): odd$", text, re.MULTILINE)
    assert "- outlined: ZeroDivisionError" in text


def test_a_long_network_is_cut(home: Path) -> None:
    Path("reported_deep.py").write_text(
        "from torch import nn\ndef make(): return nn.Sequential(*[nn.Identity() for _ in range(500)])\n"
    )
    text = report("reported_deep:make", input_shape="1x3x9x9")
    assert text.count(": Identity()") == LAYERS_TOLD
    assert f"… and {500 - LAYERS_TOLD} more" in text


def test_the_command(home: Path) -> None:
    run = CliRunner()
    shown = run.invoke(app, ["report-bug", "reported_nets:Net", "--input", "1x3x9x9"])
    assert shown.exit_code == 0
    written = run.invoke(app, ["report-bug", "reported_nets:Net", "--input", "1x3x9x9", "-o", "bug.md"])
    assert (written.exit_code, written.output) == (0, "")
    assert Path("bug.md").read_text() == shown.output
    assert isinstance(run.invoke(app, ["report-bug", "-o", "nope/bug.md"]).exception, nbcompile.UsageError)


def test_torchs_own_kinds_tell_their_numbers() -> None:
    assert "pool: AdaptiveAvgPool2d(output_size=1)" in report("nbcompile:dscnn")
