"""The generated C++ on the real thing; what needs a checkout of tflite-micro finds it in NBCOMPILE_TFLITE_MICRO."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from nbcompile.deploy.on_device import run_on_device
from nbcompile.exporters.to_tflite.device import proving
from nbcompile.exporters.to_tflite.device.checkout import DOWNLOADED, find_checkout
from nbcompile.exporters.to_tflite.run.interpreters import run_file
from nbcompile.exporters.to_tflite.targets.micro_sources import sources
from tests.exporters.to_tflite.small_tflite import tiny

LIBRARY = "gen/linux_x86_64_default_gcc/lib/libtensorflow-microlite.a"


def stand_in(folder: Path, *, parts: bool = True, library: bytes | None = b"") -> Path:
    """A folder that looks like a checkout to whoever only looks."""
    micro = folder / "tensorflow/lite/micro"
    micro.mkdir(parents=True)
    (micro / "micro_interpreter.h").touch()
    for part, inside in DOWNLOADED.items() if parts else ():
        path = micro / "tools/make/downloads" / part / inside
        path.parent.mkdir(parents=True)
        path.touch()
    if library is not None:
        (folder / LIBRARY).parent.mkdir(parents=True)
        (folder / LIBRARY).write_bytes(library)
    return folder


def written(folder: Path, content: bytes) -> Path:
    for name, text in sources(content, "tiny", 20_000).items():
        (folder / name).write_text(text)
    (folder / "tiny.tflite").write_bytes(content)
    return folder / "tiny.tflite"


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert run_on_device([str(word) for word in words]) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_the_library_says_which_kernels_it_has(tmp_path: Path) -> None:
    plain = find_checkout(stand_in(tmp_path / "plain", library=b"arm_convolve_s8"), {})
    assert (plain.library, plain.kernels) == ((tmp_path / "plain" / LIBRARY).resolve(), "reference")
    other = tmp_path / "other.a"
    other.write_bytes(b"..arm_convolve_wrapper_s8..")
    assert find_checkout(plain.root, {}, other).kernels == "CMSIS-NN"


def test_bad_input_gets_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, none = tmp_path / "tiny.tflite", tmp_path / "none"
    (tmp_path / "bare").mkdir()
    bare, whole = stand_in(tmp_path / "bare", parts=False), stand_in(tmp_path / "whole")
    assert "is no checkout of tflite-micro: it has no tensorflow/lite/micro/micro_interpreter.h; clone" in said(
        capsys, file, "--tflite-micro", none
    )
    assert "flatbuffers is not in" in said(capsys, file, "--tflite-micro", bare)
    assert "or say where it is with --ruy" in said(capsys, file, "--tflite-micro", whole, "--ruy", none)
    unbuilt = stand_in(tmp_path / "unbuilt", library=None)
    assert "has 0 libraries, not one: build tflite-micro's target microlite for the machine, or choose" in said(
        capsys, file, "--tflite-micro", unbuilt
    )
    assert "is no file; it should be tflite-micro's library" in said(
        capsys, file, "--tflite-micro", unbuilt, "--library", none
    )
    assert "there is no machine 'm9'" in said(capsys, file, "--tflite-micro", whole, "--machine", "m9")
    assert "is no file; it should be the .tflite" in said(capsys, file, "--tflite-micro", whole)
    assert "--samples must be 1 or more" in said(capsys, file, "--tflite-micro", whole, "--samples", 0)


def test_sources_must_be_those_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = tiny()
    file, whole = written(tmp_path, content), stand_in(tmp_path / "whole")
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "tiny.cc does not hold the bytes of" in said(capsys, file, "--tflite-micro", whole)
    (tmp_path / "tiny.cc").unlink()
    (tmp_path / "tiny_ops.h").unlink()
    assert "tiny.cc, tiny_ops.h should lie beside" in said(capsys, file, "--tflite-micro", whole)


@pytest.mark.slow
@pytest.mark.parametrize(("machine", "where"), [("host", "linux_*"), ("m7", "*cortex-m7*"), ("m55", "*cortex-m55*")])
def test_the_sources_compute_what_the_package_computes(
    machine: str, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the checkout that NBCOMPILE_TFLITE_MICRO names, with the machine's library in its folder ``gen``."""
    root = Path(os.environ.get("NBCOMPILE_TFLITE_MICRO", tmp_path / "none"))
    library = next(root.glob(f"gen/{where}/lib/libtensorflow-microlite.a"), None)
    if library is None:
        pytest.skip("NBCOMPILE_TFLITE_MICRO names no checkout with a library for this machine")
    words = [written(tmp_path, tiny()), "--tflite-micro", root, "--library", library, "--json", "--machine", machine]
    code = run_on_device([str(word) for word in (*words, "--samples", 3)])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    proof = json.loads(out)
    assert (proof["samples"], proof["differing"]) == (3, 0)
    assert any("check: passed" in line for line in proof["skeleton"])
    assert bool(proof["instructions"]) == (machine != "host")
    assert 0 <= proof["arena"] - proof["head"] - proof["tail"] < 16  # they are aligned

    def shifted(*args: object, **options: object) -> list[tuple[np.ndarray, ...]]:
        return [tuple(y ^ 1 for y in sample) for sample in run_file(*args, **options)]  # type: ignore[arg-type]

    monkeypatch.setattr(proving, "run_file", shifted)
    assert run_on_device([str(word) for word in words]) == 1
    wrong = json.loads(capsys.readouterr().out)
    assert (wrong["differing"], wrong["largest"]) == (2 * 5, 1)
