"""A format is one row: what the row names is all that the house needs to write, read, run and compare its files."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import nbcompile
from nbcompile import exporters
from nbcompile.cli import app as cli
from nbcompile.core.errors import ExportError, UsageError, VerificationError
from nbcompile.testing import scramble_
from tests.exporters.toy_format import HERE, TOY, network

X = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _one_more_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(exporters.FORMATS, ".toy", TOY)


def damage(path: Path) -> None:
    content = json.loads(path.read_text())
    content["chain"][-1]["bias"][0] += 0.1
    path.write_text(json.dumps(content))


def test_it_is_written_in_deploy_form_and_compared(tmp_path: Path) -> None:
    model, path = scramble_(network()).eval(), tmp_path / "x.toy"
    result = nbcompile.export(model, path, X, indent=1)
    assert result.error <= result.tolerance == 1e-5
    assert [layer.name for layer in exporters.format_of(path).read_layers(path)] == ["0", "4"]  # the norm is merged
    checked = nbcompile.verify(model, path, X)
    checked.raise_on_failure()
    assert [check.name for check in checked.checks] == ["layers", "MACs", "params", "numbers"]
    damage(path)
    with pytest.raises(VerificationError, match="numbers differ: largest relative error"):
        nbcompile.verify(model, path, X).raise_on_failure()


def test_its_options_are_those_of_its_writer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'opset' is not an option of \.toy files; they have indent"):
        nbcompile.export(network(), tmp_path / "x.toy", X, opset=18)


def test_what_it_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.toy"
    path.write_text("old")
    with pytest.raises(ExportError, match=r"a \.toy file cannot hold '0' \(Tanh\)"):
        nbcompile.export(nn.Sequential(nn.Tanh()), path, X)
    assert path.read_text() == "old"


def test_the_commands_know_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nbcompile", *words])
        with pytest.raises(SystemExit) as stop:
            cli.run_cli()
        return (int(stop.value.code or 0), *capsys.readouterr())

    monkeypatch.chdir(tmp_path)
    nbcompile.save(scramble_(network()).eval(), "trained.pt", X)
    assert run("fuse", "trained.pt", "-o", "x.toy", "--json", "out.json")[0] == 0
    (written,) = json.loads(Path("out.json").read_text())["files"]
    assert (written["format"], written["path"]) == ("toy", "x.toy")
    assert run("verify", "x.toy", "--against", f"{HERE}:network")[0] == 0
    code, out, _ = run("verify", "x.toy", "--against", "trained.pt")
    assert code == 0
    assert "numbers: largest relative error" in out
    assert json.loads(run("inspect", "x.toy", "--json", "-")[1])["cost"]["macs"] == 6 * 5 + 5 * 3
    damage(Path("x.toy"))
    assert run("verify", "x.toy", "--against", "trained.pt")[0] == 1
    code, _, err = run("fuse", "trained.pt", "-o", "x.toy", "--calibration", "images")
    assert code == 2
    assert "--calibration goes with a .tflite output, and there is none" in err


def test_what_a_row_does_not_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(exporters.FORMATS, ".toy", exporters.Format(".toy", graph=True, writer=TOY.writer))
    path = tmp_path / "x.toy"
    nbcompile.export(network().eval(), path, X)
    with pytest.raises(UsageError, match=r"verify: .*x\.toy is no \.onnx file; load it first \(nbcompile\.load\)"):
        nbcompile.verify(network(), path, X)
    with pytest.raises(UsageError, match=r"running \.toy files cannot be done: their row of FORMATS names no runner"):
        exporters.format_of(path).outputs(path, [])


def test_everything_that_a_row_names_is_there() -> None:
    for row in exporters.FORMATS.values():
        named = (row.writer, row.layers, row.input_sizes, row.runner, row.batch, row.pipeline)
        assert all(callable(exporters.imported(where)) for where in named if where is not None)
    assert [row.suffix for row in exporters.FORMATS.values() if row.comparable] == [".onnx", ".toy"]


@dataclass
class Scores:
    logits: Tensor


class GivesScores(nn.Module):
    def forward(self, x: Tensor) -> Scores:
        return Scores(x.relu())


@pytest.mark.parametrize("name", ["it.onnx", "it.tflite"])
def test_an_output_that_torch_does_not_know(name: str, tmp_path: Path) -> None:
    options = {"quantize": "float32"} if name.endswith("tflite") else {}
    sentence = r"its output is of <class '.*Scores'>, which it does not know; return a tensor, a tuple, .*dataclass\)$"
    with pytest.raises(ExportError, match=sentence):
        nbcompile.export(GivesScores(), tmp_path / name, torch.randn(2, 3, 7, 5), **options)
    assert not list(tmp_path.iterdir())
