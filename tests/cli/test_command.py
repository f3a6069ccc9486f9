"""What holds for every command: outputs are files of their own, names are shown as they can be, the process is ours."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import nbcompile
from nbcompile.exporters.base import ExportResult

DSCNN = "nbcompile:dscnn"
FACTORIES = r"""
import os, sys
import torch
from torch import nn

print("printed when imported")


class Net(nn.Module):
    def __init__(self, *names):
        super().__init__()
        for number, name in enumerate(names):
            self.add_module(name, nn.Conv2d(2 if number else 1, 2, 1))

    def forward(self, x):
        os.write(1, b"written past Python\n")
        for layer in self._modules.values():
            x = layer(x)
        return x


class Quits(Net):
    def forward(self, x):
        sys.exit(0)


class Fails(Net):
    def forward(self, x):
        raise AssertionError("\x1b[2J\nnbcompile: all checks passed" + "!" * 10**6)


def quits():
    sys.exit()


def hostile():
    return Net("a\x1b[2J", "b[/b]", "c[red]d", "e:smile:", "f\nnbcompile: all checks passed", "g" * 150, "h" * 10**6)
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "factories.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "factories", raising=False)


TAKEN, TWICE = "it is what is read", "another output is the same file"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("fuse", "trained.pt", "-o", "trained.pt"), TAKEN),
        (("fuse", "trained.pt", "-o", "link.pt"), TAKEN),
        (("fuse", "./trained.pt", "-o", "t.onnx", "--report", "hard.pt"), TAKEN),
        (("fuse", "trained.pt", "-o", "t.tflite", "--calibration", "i.npz", "--json", "i.npz"), TAKEN),
        (("expand", DSCNN, "-o", "trained.pt", "--weights", "trained.pt"), TAKEN),
        (("train", "trained.pt", "-o", "trained.pt", "--data", "digits"), TAKEN),
        (("train", DSCNN, "-o", "trained.pt", "--data", "digits", "--teacher", "trained.pt"), TAKEN),
        (("verify", "trained.pt", "--against", DSCNN, "--json", "trained.pt"), TAKEN),
        (("verify", "i.npz", "--against", "trained.pt", "--json", "trained.pt"), TAKEN),
        (("inspect", "trained.pt", "--json", "link.pt"), TAKEN),
        (("report-bug", "trained.pt", "-o", "trained.pt"), TAKEN),
        (("fuse", "trained.pt", "-o", "t.onnx", "--report", "t.onnx"), TWICE),
        (("fuse", "trained.pt", "-o", "t.pt", "-o", "./t.pt"), TWICE),
        (("expand", DSCNN, "-o", "t.pt", "--json", "t.pt"), TWICE),
        (
            ("train", DSCNN, "-o", "r/last.ckpt", "--run-dir", "r", "--data", "digits"),
            "another output is the same file",
        ),
        (("fuse", "trained.pt", "-o", "t.tflite", "-o", "t_float32.tflite", "--calibration", "i.npz"), TWICE),
        (("fuse", "trained.pt", "-o", "t.tflite", "--target", "mcu", "--calibration", "i.npz", "--json", "t.h"), TWICE),
    ],
)
def test_an_output_is_a_file_of_its_own(run, words: tuple[str, ...], sentence: str) -> None:
    Path("trained.pt").write_text("days of training")
    Path("link.pt").symlink_to("trained.pt")
    Path("hard.pt").hardlink_to("trained.pt")
    Path("i.npz").touch()
    Path("r").mkdir()
    result = run(*words)
    assert result.code == 2
    assert f": {sentence}" in result.err
    assert Path("trained.pt").read_text() == "days of training"
    assert sorted(os.listdir()) == ["hard.pt", "i.npz", "link.pt", "r", "trained.pt"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((DSCNN,), "quantize='int8' needs a calibration set"),
        (("trained.pt", "--calibration", "none"), "calibration none is not there: give a folder of images, or an .npz"),
        (("trained.pt", "--calibration", "trained.pt"), "calibration trained.pt is neither: give a folder of images"),
        (("trained.pt", "--calibration", ".", "--min-sqnr", "nan"), "min_sqnr=nan is no limit: give a number of dB"),
        (("trained.pt", "--calibration", ".", "--sram", "lots"), "sram='lots' is not a size"),
        (("trained.pt", "--calibration", ".", "--preprocessing", '{"a": 1}'), "preprocessing: a is not known"),
        (("trained.pt", "--calibration", ".", "--batch", "0"), "batch=0 is no batch size"),
        (("trained.pt", "--calibration", ".", "--input", "3y"), "input '3y' is no shape"),
        (("nope.pt", "--calibration", "."), "nope.pt cannot be read: No such file"),
        (("x" * 300, "--calibration", "."), "is no MODEL"),
        ((DSCNN, "--calibration", ".", "--key", "ema"), "--model and --key go with a file"),
    ],
)
def test_all_is_checked_before_anything_is_loaded(
    run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], sentence: str
) -> None:
    Path("trained.pt").touch()
    for exporter in ("to_onnx", "to_tflite"):  # to import what imports TensorFlow would be another error
        monkeypatch.setitem(sys.modules, f"nbcompile.exporters.{exporter}.export", None)
    result = run("fuse", *words, "-o", "a.onnx", "-o", "a.tflite")
    assert result.code == 2
    assert sentence in result.err
    assert os.listdir() == ["trained.pt"]


@pytest.mark.parametrize(("factory", "code"), [("quits", "sys.exit()"), ("Quits", "sys.exit(0)")])
def test_code_that_ends_the_process_is_an_error(run, factories: None, factory: str, code: str) -> None:
    result = run("inspect", f"factories:{factory}", "--input", "1x1x4x4")
    line = FACTORIES[: FACTORIES.index(code)].count("\n") + 1
    assert result.code == 2
    assert f"code of the network, or of its data, ended the process with {code} at line {line} of " in result.err


def test_what_the_users_code_says_is_one_line(run, factories: None) -> None:
    result = run("inspect", "factories:Fails", "--input", "1x1x4x4")
    assert result.code == 2
    assert r"AssertionError: \x1b[2J\nnbcompile: all checks passed!!!" in result.err
    assert result.err.count("\n") == 1
    assert len(result.err) < 2000


def test_names_are_shown_as_they_can_be(run, factories: None) -> None:
    result = run("inspect", "factories:hostile", "--input", "1x1x4x4")
    assert result.code == 0, result.err
    for name in (r"a\x1b[2J", "b[/b]", "c[red]d", "e:smile:", r"f\nnbcompile: all checks passed", "g" * 150):
        assert f" {name} " in result.out
    assert "\x1b" not in result.out
    assert len(result.out) < 20_000


def test_names_of_files_are_no_markup(run) -> None:
    result = run("fuse", DSCNN, "-o", "a[red].pt", "-o", "b[b]:smile:.pt")
    assert result.code == 0, result.err
    assert "written: a[red].pt (" in result.out
    assert "written: b[b]:smile:.pt (" in result.out


def test_json_is_alone(run, factories: None) -> None:
    result = run("inspect", "factories:hostile", "--input", "1x1x4x4", "--json", "-")
    assert [layer["name"] for layer in json.loads(result.out)["layers"]][1] == "b[/b]"
    assert "printed when imported" in result.err


@pytest.mark.slow
def test_json_is_alone_on_the_standard_output_of_a_process(tmp_path: Path) -> None:
    (tmp_path / "factories.py").write_text(
        f"{FACTORIES}\nimport atexit\natexit.register(print, 'printed at the end')\n"
    )
    words = ("inspect", "factories:hostile", "--input", "1x1x4x4", "--json", "-")
    done = subprocess.run(
        [sys.executable, "-m", "nbcompile", *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert [layer["name"] for layer in json.loads(done.stdout)["layers"]][:2] == ["a\x1b[2J", "b[/b]"]
    for said in ("printed when imported", "written past Python", "printed at the end"):
        assert said in done.stderr


def test_of_two_sets_of_weights_a_question(run, tmp_path: Path) -> None:
    one, other = nbcompile.zoo.dscnn(), nbcompile.zoo.dscnn()
    both = {
        f"{name}.{key}": x for name, m in (("teacher", one), ("student", other)) for key, x in m.state_dict().items()
    }
    torch.save(both, "both.pt")
    words = ("fuse", "both.pt", "--model", DSCNN, "-o", "tiny.pt")
    asked = run(*words)
    assert asked.code == 2
    assert "both.pt holds 2 sets of weights that fit, at 'teacher', 'student': say which is meant" in asked.err
    assert run(*words, "--key", "student").code == 0
    for command in (
        ("train", "both.pt", "--model", DSCNN, "--data", "digits"),
        ("expand", DSCNN, "--weights", "both.pt"),
    ):
        asked = run(*command, "-o", "giant.pt")
        assert "say which is meant" in asked.err
        assert "has no weights at 'nope'" in run(*command, "-o", "giant.pt", "--key", "nope").err
    assert run("expand", DSCNN, "-o", "giant.pt", "--key", "x").err.endswith("which weights of that file are meant\n")
    assert run("verify", "both.pt", "--against", DSCNN).code == 2
    assert run("verify", "both.pt", "--against", DSCNN, "--key", "student").code == 0


@pytest.mark.slow
def test_a_file_that_another_run_wrote_meanwhile(run, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Report and JSON would speak of one file, and another would be there."""
    assert run("fuse", trained, "-o", "tiny.safetensors", "--json", "told.json").code == 0
    (told,) = json.loads(Path("told.json").read_text())["files"]
    assert told["sha256"] == hashlib.sha256(Path("tiny.safetensors").read_bytes()).hexdigest()

    def raced(model: nn.Module, path: Path, **options: object) -> ExportResult:
        result = nbcompile.export(model, path, **options)
        path.write_bytes(b"of another run")
        return result

    monkeypatch.setattr("nbcompile.cli.run.fuse.export", raced)
    late = run("fuse", trained, "-o", "tiny.pt", "--json", "late.json")
    sentence = "tiny.pt is not what this run wrote: another one wrote it meanwhile; run one at a time\n"
    assert (late.code, late.err.splitlines(keepends=True)[-1]) == (1, f"nbcompile: error: {sentence}")
    assert not Path("late.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--input", "1x1x4x4", "--input", "1x5"),
            "--input is given twice: give it once; several inputs go into one, as ",
        ),
        (("--json", "a.json", "--json=a.json"), "--json is given twice: give it once\n"),
    ],
)
def test_an_option_of_one_value_is_given_once(run, words: tuple[str, ...], said: str) -> None:
    done = run("inspect", "nbcompile:dscnn", *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"nbcompile: error: {said}")


def test_what_has_several_values_or_none_may_be_repeated(run, tmp_path: Path) -> None:
    one, two = (str(tmp_path / name) for name in ("one.pt", "two.onnx"))
    done = run("fuse", "nbcompile:dscnn", "-o", one, "-o", two, "--verify-each", "--verify-each")
    assert done.code == 0, done.err
    assert Path(one).is_file()
    assert Path(two).is_file()
