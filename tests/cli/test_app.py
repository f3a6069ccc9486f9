"""The commands as a user types them: real files, real runtimes, bad input."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import nbcompile
from nbcompile.cli.options import give
from nbcompile.core.blocks import sites
from nbcompile.results.numbers import exact
from nbcompile.testing import scramble_
from tests.cli.conftest import linear_giant

NETWORKS = {"mobilenetv2_tiny": 144, "mobilenetv2_50": 160, "mobilenetv2_100": 160, "mcunet": 176}
WRONG = "nbcompile:mobilenetv2_35"
DSCNN = "nbcompile:dscnn"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), NETWORKS.items())
def test_ci_gate_on_the_papers_networks(run, tmp_path: Path, name: str, size: int) -> None:
    linear_giant(tmp_path / "trained.pt", getattr(nbcompile.zoo, name)(), size)
    assert run("fuse", "trained.pt", "-o", "tiny.onnx", "-o", "tiny.pt").code == 0
    for file in ("tiny.onnx", "tiny.pt"):
        good = run("verify", file, "--against", f"nbcompile:{name}")
        assert good.code == 0, good.err
        assert "FAIL" not in good.out
        bad = run("verify", file, "--against", WRONG)
        assert bad.code == 1
        assert "in the candidate" in bad.err
        assert "'features." in bad.err
    numbers = run("verify", "tiny.onnx", "--against", "trained.pt")
    assert numbers.code == 0, numbers.err
    assert "numbers: largest relative error" in numbers.out


def test_story_from_model_to_onnx(run, tmp_path: Path) -> None:
    assert run("expand", DSCNN, "-o", "giant.pt", "--where", "first:2", "--ratio", 3, "--preserve").code == 0
    found = json.loads(run("inspect", "giant.pt", "--json", "-").out)
    assert [site["ratio"] for site in found["sites"]] == [3, 3]
    assert [site["slope"] for site in found["sites"]] == [0.0, 0.0]
    giant = nbcompile.load("giant.pt")
    nbcompile.PLT(giant, steps=1).step()
    torch.save({"epoch": 3, "model": giant.state_dict()}, "trained.pt")
    result = run(
        "fuse", "trained.pt", "-o", "tiny.onnx", "-o", "tiny.safetensors", "--verify-each", "--json", "out.json"
    )
    assert result.code == 0, result.err
    written = json.loads(Path("out.json").read_text())
    assert written["tiny"]["macs"] == nbcompile.cost(nbcompile.zoo.dscnn(), torch.zeros(1, 1, 8, 8)).macs
    assert all(check["passed"] for check in written["checks"])
    nbcompile.zoo.dscnn().load_state_dict(nbcompile.load("tiny.safetensors", model=nbcompile.zoo.dscnn()).state_dict())


@pytest.mark.slow
def test_story_in_width(run, tmp_path: Path) -> None:
    model = scramble_(nbcompile.zoo.dscnn()).eval()
    torch.save(model.state_dict(), "tiny.pt")
    made = run(
        "widen", DSCNN, "-o", "giant.pt", "--weights", "tiny.pt", "--factors", "1,2", "--json", "made.json", "--explain"
    )
    assert made.code == 0, made.err
    assert "classifier.weight keeps its 10 channels: the network's output has it" in made.out
    found = json.loads(run("inspect", "giant.pt", "--json", "-").out)
    assert found["groups"] == json.loads(Path("made.json").read_text())["groups"]
    assert {tuple(g["factors"]) for g in found["groups"]} == {(1.0,), (1.0, 2.0), (1.0, 1.6, 2.2, 2.8)}
    own, widest = (found[key]["macs"] for key in ("cost", "giant_cost"))
    assert own == nbcompile.cost(model, torch.zeros(1, 1, 8, 8)).macs < widest
    assert found["candidates"] is None
    result = run("fuse", "giant.pt", "-o", "fused.onnx", "-o", "fused.pt", "--report", "r.html", "--json", "out.json")
    assert result.code == 0, result.err
    written = json.loads(Path("out.json").read_text())
    assert written["giant"]["macs"] == widest
    assert written["tiny"]["macs"] == own
    assert written["groups"] == found["groups"]
    page = " ".join(re.sub(r"<[^>]+>", " ", Path("r.html").read_text()).split())
    assert "features. block0. expand. conv. weight one block 24 67 – " in page
    assert "classifier. weight several 10 10 the network" in page
    assert run("verify", "fused.onnx", "--against", DSCNN).code == 0
    numbers = run("verify", "fused.onnx", "--against", "giant.pt")
    assert "numbers: largest relative error" in numbers.out
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(nbcompile.fuse(nbcompile.load("giant.pt"))(x), model(x), rtol=0, atol=0)


def test_expand_trained_weights(run, tmp_path: Path) -> None:
    model = scramble_(nbcompile.zoo.dscnn()).eval()
    torch.save(model.state_dict(), "tiny.pt")
    dropped = run("expand", DSCNN, "-o", "giant.pt", "--weights", "tiny.pt")
    assert dropped.code == 0
    assert (
        "the trained weights of 3 expanded layers are discarded (the first: 'features.block0.expand.conv')"
        in dropped.err
    )
    kept = run("expand", DSCNN, "-o", "giant.pt", "--weights", "tiny.pt", "--preserve")
    assert "discarded" not in kept.err
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(nbcompile.load("giant.pt")(x), model(x), rtol=0, atol=0)


def test_fuse_a_model_says_it_is_untrained(run) -> None:
    result = run("fuse", DSCNN, "-o", "plain.onnx", "--report", "report.html")
    assert result.code == 0
    assert f"'{DSCNN}' is built without weights: this exports an untrained network" in result.err
    assert "<html" in Path("report.html").read_text()


@pytest.mark.slow
def test_fuse_for_one_batch_size(run) -> None:
    result = run("fuse", DSCNN, "-o", "three.onnx", "-o", "plain.pt", "--batch", 3)
    assert result.code == 0, result.err
    assert [tuple(x.shape) for x in onnxruntime.InferenceSession("three.onnx").get_inputs()] == [(3, 1, 8, 8)]


@pytest.mark.slow
def test_slope_below_one(run, tmp_path: Path) -> None:
    giant = nbcompile.expand(nbcompile.zoo.dscnn(), torch.randn(1, 1, 8, 8))
    plt = nbcompile.PLT(giant, steps=1000, start=10)
    for _ in range(260):
        plt.step()
    nbcompile.save(giant, tmp_path / "trained.pt")
    Path("tiny.onnx").write_text("old bytes")
    refused = run("fuse", "trained.pt", "-o", "tiny.onnx")
    assert refused.code == 1
    assert "'features.block0.expand.conv' has slope 0.25, not 1.0" in refused.err
    assert "750 optimiser steps remain" in refused.err
    assert "--force" in refused.err
    assert "Traceback" not in refused.err
    assert Path("tiny.onnx").read_text() == "old bytes"
    forced = run("fuse", "trained.pt", "-o", "tiny.onnx", "--force")
    assert forced.code == 0
    assert "the output changed by a relative error of" in forced.err
    assert "FAIL numbers: largest relative error" in forced.out
    numbers = json.loads(run("fuse", "trained.pt", "-o", "tiny.onnx", "--force", "--json", "-").out)["checks"][-1]
    assert numbers["name"] == "numbers"
    assert not numbers["passed"]
    assert numbers["value"] > numbers["limit"]


@pytest.mark.slow
def test_force_hides_no_failure_of_a_linear_giant(run, trained: Path) -> None:
    content = torch.load(trained, weights_only=True)
    content["state_dict"]["classifier.weight"].fill_(3e38)
    torch.save(content, "overflows.pt")
    assert run("fuse", "trained.pt", "-o", "tiny.pt", "--force").code == 0
    refused = run("fuse", "overflows.pt", "-o", "other.pt", "--force")
    assert refused.code == 1
    assert "numbers differ: the reference itself gives NaN or Inf on 4 of 4 inputs" in refused.err
    assert not Path("other.pt").exists()


@pytest.mark.slow
def test_an_original_that_cannot_take_the_files_input(run, trained: Path) -> None:
    assert run("fuse", trained, "-o", "tiny.onnx").code == 0
    other = run("verify", "tiny.onnx", "--against", "nbcompile:mcunet")
    assert other.code == 1, other.err
    assert "layers differ: 'features." in other.err
    assert "FAIL input sizes: nbcompile:mcunet does not run on 1x1x8x8, the input of tiny.onnx" in other.out
    Path("colours.py").write_text("import nbcompile\ndef make(): return nbcompile.zoo.dscnn(in_channels=3)\n")
    factory = run("verify", "tiny.onnx", "--against", "colours:make")
    assert factory.code == 1, factory.err
    assert "input sizes differ: colours:make does not run on 1x1x8x8" in factory.err
    wrong = run("verify", "tiny.onnx", "--against", DSCNN, "--input", "1x3x8x8")
    assert wrong.code == 1
    assert "does not run on the example input: RuntimeError: Given groups=1" in wrong.err


@pytest.mark.parametrize(
    "words",
    [
        ("expand", DSCNN, "-o", "g.pt"),
        ("train", DSCNN, "-o", "t.pt", "--data", "digits"),
        ("fuse", "trained.pt", "-o", "t.onnx"),
        ("verify", "trained.pt", "--against", DSCNN),
        ("inspect", "trained.pt"),
    ],
)
def test_json_that_cannot_be_written_is_refused_first(run, trained: Path, words: tuple[str, ...]) -> None:
    result = run(*words, "--json", "nope/x.json")
    assert result.code == 2
    assert "cannot write nope/x.json: the folder" in result.err
    assert [path.name for path in Path().iterdir()] == ["trained.pt"]


def test_json_has_no_infinities(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = {"agreements": ({"sqnr": float("inf")},), "path": tmp_path}
    wanted = {"agreements": [{"sqnr": None}], "path": str(tmp_path)}
    give(found, Path("-"), None)
    assert json.loads(capsys.readouterr().out) == wanted
    give(found, tmp_path / "x.json", lambda *_: None)
    assert json.loads((tmp_path / "x.json").read_text()) == wanted


def test_expand_can_prove_itself(run) -> None:
    assert run("expand", DSCNN, "-o", "giant.pt", "--preserve", "--verify-each").code == 0


def test_a_file_is_no_folder(run) -> None:
    Path("timm").mkdir()
    assert "'timm' is no MODEL" in run("inspect", "timm").err
    assert "missing.CKPT cannot be read" in run("inspect", "missing.CKPT").err


@pytest.mark.slow
def test_train_a_factory(run) -> None:
    Path("mine.py").write_text(
        "import nbcompile\ndef make(): return nbcompile.zoo.dscnn(num_classes=10, in_channels=1)\n"
    )
    words = ("--data", "digits", "--method", "vanilla", "--epochs", 1, "--batch-size", 256, "--accelerator", "cpu")
    assert "'mine:make' needs --input" in run("train", "mine:make", "-o", "trained.pt", *words).err
    assert run("train", "mine:make", "-o", "trained.pt", "--input", "1x1x8x8", *words).code == 0
    torch.save(nbcompile.load("trained.pt").state_dict(), "bare.pt")
    known = run("train", "bare.pt", "-o", "again.pt", "--model", DSCNN, *words)
    assert known.code == 0, known.err
    assert "dropout" not in known.err


@pytest.mark.slow
def test_lagging_ema_is_recognised(run, trained: Path) -> None:
    content = torch.load(trained, weights_only=True)
    average = {key: value.clone() for key, value in content["state_dict"].items()}
    for key in average:
        if key.endswith(".slope"):
            average[key].fill_(0.93)
    torch.save({"state_dict": content["state_dict"], "state_dict_ema": average}, trained)
    refused = run("fuse", trained, "-o", "tiny.onnx")
    assert refused.code == 1
    assert "'state_dict_ema' was taken (--key chooses)" in refused.err
    assert "lagging average (EMA)" in refused.err
    assert "also=[ema.module]" in refused.err
    assert run("fuse", trained, "-o", "tiny.pt", "--key", "state_dict").code == 0


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("fuse", "nope.pt", "-o", "x.onnx"), 2, "nope.pt cannot be read: No such file or directory"),
        (("fuse", "trained.pt", "-o", "nope/x.onnx"), 2, "nope does not exist"),
        (
            ("fuse", "trained.pt", "-o", "x.foo"),
            2,
            "the extension '.foo' is unknown; known are .onnx, .tflite, .pt, .safetensors",
        ),
        (("fuse", "nbcompile:dscnn", "-o", "x.tflite"), 2, "quantize='int8' needs a calibration set, some 100 images"),
        (("fuse", "trained.pt", "-o", "x.tflite"), 2, "quantize='int8' needs a calibration set, some 100 images"),
        (("fuse", "trained.pt", "-o", "x.tflite", "--calibration", "none"), 2, "none"),
        (("fuse", "trained.pt", "-o", "x.tflite", "--target", "pi"), 2, "target='pi' is not known; known are raspb"),
        (("fuse", "trained.pt", "-o", "x.onnx", "--sram", "192K"), 2, "--sram goes with a .tflite output"),
        (("fuse", "trained.pt", "-o", "x.pt", "--batch", "1"), 2, "--batch goes with a .onnx output, and there"),
        (("fuse", "trained.pt", "-o", "x.onnx", "--batch", "0"), 2, "batch=0 is no batch size: give 1 or more"),
        (("fuse", "trained.pt", "-o", "x.onnx", "--key", "ema"), 2, "has no weights at 'ema'; it has them at"),
        (("fuse", DSCNN, "-o", "x.onnx", "--key", "ema"), 2, "--model and --key go with a file"),
        (("fuse", "empty.pt", "-o", "x.onnx"), 2, "empty.pt is empty"),
        (("fuse", "state.pt", "-o", "x.onnx"), 2, "describe no model"),
        (("fuse", "nan.pt", "-o", "x.onnx"), 1, "holds NaN or Inf"),
        (("fuse", "whole.pt", "-o", "x.onnx"), 2, "holds an object of class"),
        (("expand", DSCNN, "-o", "g.pt", "--where", "head.*"), 2, "candidates: features.block0.expand.conv"),
        (("expand", DSCNN, "-o", "g.pt", "--ratio", "0"), 2, "ratio=0 must be a whole number from 1 to 64"),
        (("expand", DSCNN, "-o", "g.pt", "--block", "wide"), 2, "block='wide' is unknown; one of inverted-residual"),
        (("expand", "nbcompile:dscn", "-o", "g.pt"), 2, "dscnn"),
        (("widen", "nowhere:make", "-o", "g.pt", "--factors", "2,3"), 2, "1 must be among factors"),
        (
            ("widen", "nowhere:make", "-o", "g.pt", "--inner", "1,x"),
            2,
            "with commas, such as 1,1.8,2.6, not '1,x'",
        ),
        (
            ("widen", "nowhere:make", "-o", "g.pt", "--inner", "1,1e9"),
            2,
            "must be numbers from 1 to 64, not 1, 1e+09",
        ),
        (("widen", "nowhere:make", "-o", "g.onnx"), 2, "name the file .pt, not 'g.onnx'"),
        (("widen", DSCNN, "-o", "g.pt", "--key", "x"), 2, "--key of widen goes with --weights"),
        (("widen", DSCNN, "-o", "g.pt", "--factors", "1", "--inner", "1"), 1, "no factor makes a group of channels"),
        (("expand", "nowhere:make", "-o", "giant.onnx"), 2, "name the file .pt, not 'giant.onnx' (.pth, .ckpt, .bin"),
        (("train", "nowhere:make", "-o", "t.xyz", "--data", "digits"), 2, "name the file .pt, not 't.xyz'"),
        (("expand", DSCNN, "-o", "g.pt", "--verify-each"), 2, "--verify-each of expand needs --preserve"),
        (("train", DSCNN, "-o", "t.pt", "--data", "digits", "--model", DSCNN), 2, "--model and --key go with a file"),
        (("expand", "nowhere:make", "-o", "g.pt", "--input", "1x3x8x8"), 2, "nowhere"),
        (("verify", "nope.onnx", "--against", DSCNN), 2, "nope.onnx cannot be read"),
        (("verify", "trained.pt", "--against", DSCNN), 1, "still has 3 expansion blocks"),
        (("verify", "state.pt", "--against", WRONG), 1, "'features.stem.conv.weight' is (8, 1, 3, 3) in the candidate"),
        (("inspect", "text.onnx"), 2, "text.onnx"),
        (("inspect", "nope.tflite"), 2, "nope.tflite cannot be read: No such file"),
        (("fuse", DSCNN, "-o", "t.onnx", "--calibration", "x"), 2, "or with --quantize int8 of .onnx"),
        (("fuse", DSCNN, "-o", "t.onnx", "--quantize", "int8"), 2, "quantize='int8' needs a calibration set"),
        (("fuse", DSCNN, "-o", "t.onnx", "--quantize", "dynamic"), 2, "quantize='dynamic' is not of .onnx files"),
        (
            ("fuse", DSCNN, "-o", "t.onnx", "--quantize", "int8", "--board", "pico"),
            2,
            "--board goes with a .tflite output",
        ),
        (
            ("fuse", DSCNN, "-o", "t.onnx", "--quantize", "int8", "--calibration", "x", "--dense-per-tensor"),
            2,
            "--dense-per-tensor goes with a .tflite output, and there is none",
        ),
        (
            ("fuse", DSCNN, "-o", "t.onnx", "--per-tensor"),
            2,
            "--per-tensor goes with a .tflite output, or with --quant",
        ),
        (("fuse", DSCNN, "-o", "t.onnx", "--layers"), 2, "--layers goes with a .tflite output, and there is none"),
        (("fuse", DSCNN, "-o", "t.onnx", "--memory-plan"), 2, "--memory-plan goes with a .tflite output, and there"),
        (("verify", "trained.pt", "--against", DSCNN, "--steps", "1"), 2, "--steps goes with a CANDIDATE that is"),
        (("verify", "x.tflite", "--against", DSCNN), 2, "x.tflite cannot be read: there is no such file"),
    ],
)
def test_bad_input(run, trained: Path, words: tuple[str, ...], code: int, sentence: str) -> None:
    Path("empty.pt").touch()
    Path("text.onnx").write_text("this is no model")
    torch.save(nbcompile.zoo.dscnn().state_dict(), "state.pt")
    torch.save(nbcompile.zoo.dscnn(), "whole.pt")
    content = torch.load(trained, weights_only=True)["state_dict"]
    torch.save({**content, "features.block0.expand.conv.last.weight": torch.full((24, 48, 1, 1), torch.nan)}, "nan.pt")
    before = {path.name for path in Path().iterdir()}
    result = run(*words)
    assert result.code == code, result.err
    assert sentence in result.err
    assert result.err.strip().count("nbcompile: error: ") == 1
    assert "Traceback" not in result.err
    assert {path.name for path in Path().iterdir()} == before, "something was left behind"


def test_wrong_usage_exits_two(run) -> None:
    result = run("fuse", "trained.pt")
    assert result.code == 2
    assert "--output" in result.err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, nbcompile.cli.app\n"
        "sys.argv = ['nbcompile', '--help']\n"
        "try: nbcompile.cli.app.run_cli()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'tensorflow', 'numpy', 'lightning'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "write deploy files" in done.stdout


@pytest.mark.slow
def test_module_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nbcompile", "fuse", "nope.pt", "-o", "x.onnx"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("nbcompile: error: nope.pt cannot be read")


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.5, 1.5, 2.5, 3.5, 4.5, 5.5])
def test_kill_leaves_old_bytes_or_new(trained: Path, after: float) -> None:
    target = trained.parent / "tiny.onnx"
    target.write_text("old bytes")
    process = subprocess.Popen(
        [sys.executable, "-m", "nbcompile", "fuse", str(trained), "-o", str(target)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if target.read_bytes() != b"old bytes":
        assert nbcompile.verify(nbcompile.load(trained), target).passed


def test_a_fused_file_has_no_site_left(run, trained: Path) -> None:
    assert run("fuse", trained, "-o", "tiny.pt").code == 0
    assert not sites(nbcompile.load("tiny.pt", model=nbcompile.zoo.dscnn()))


def test_fuse_for_a_microcontroller(run, tmp_path: Path) -> None:
    """From a MODEL to a microcontroller's files; the report, the tables and the JSON say the same."""
    np.savez(tmp_path / "images.npz", np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32))
    words = ("fuse", DSCNN, "-o", "tiny.tflite", "-o", "tiny.pt", "--calibration", "images.npz", "--target", "mcu")
    few, project = ("--equalize", "never", "--correct-bias", "never"), ("--project", "zephyr")
    done = run(*words, *few, *project, "--sram", "64K", "--layers", "--report", "r.html", "--json", "found.json")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "found.json").read_text())
    device = found["files"][0]["device"]
    assert [row["name"] for row in device["interpreters"]][2] == "TFLite Micro"
    assert device["arena_total"] <= device["arena_budget"] == 65536
    for shown in (
        "TFLite Micro",
        f"{exact(device['arena_total'])} of {exact(65536)}",
        "classifier",
        "written: tiny.tflite",
    ):
        assert shown in done.out
    assert "Memory map" in (tmp_path / "r.html").read_text()
    made = {str(path.relative_to(tmp_path / "tiny_zephyr")) for path in (tmp_path / "tiny_zephyr").rglob("*.*")}
    sources = {f"src/tiny{ending}" for ending in (".cc", ".h", "_ops.h", "_check.h", "_main.cc")}
    assert made == {"CMakeLists.txt", "README.md", "prj.conf", *sources}
    again = run(*words, *few, *project)
    assert (again.code, "cannot write the folder tiny_zephyr: it is there" in again.err) == (2, True)
    refused = run(*words, *few, "--sram", "2K", "-o", "other.tflite")
    assert refused.code == 1
    assert "B more than the 2,048 B of SRAM. It is the least of " in refused.err
    assert not (tmp_path / "other.tflite").exists()


def test_preprocessing_is_json(run) -> None:
    for text, sentence in (("{", "--preprocessing is no JSON"), ("[1]", "--preprocessing must be a JSON object")):
        refused = run("fuse", DSCNN, "-o", "x.tflite", "--calibration", "x", "--preprocessing", text)
        assert refused.code == 2
        assert sentence in refused.err
