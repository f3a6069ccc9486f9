"""What is read is a file, and stays the same one while it is read."""

import os
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

import nbcompile
from nbcompile.core.errors import CheckpointError, ExportError, UsageError
from nbcompile.core.files import atomic, check_target
from nbcompile.core.input_files import of_one_state
from nbcompile.exporters import FORMATS

PIPE = "cannot be read: it is no file, but a device, a pipe or a socket; copy what it gives into a file"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("suffix", [".onnx", ".tflite", ".pt", ".safetensors"])
def test_a_pipe_or_a_device_is_not_waited_for(folder: Path, suffix: str) -> None:
    os.mkfifo(f"pipe{suffix}")
    Path(f"zero{suffix}").symlink_to("/dev/zero")
    form = FORMATS.get(suffix)
    for name in (f"pipe{suffix}", f"zero{suffix}"):
        read = form.read_layers if form and form.graph else partial(nbcompile.load, model=nn.Linear(1, 1))
        with pytest.raises(CheckpointError, match=f"^{name} {PIPE}$"):
            read(name)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the folders of Linux")
def test_no_output_goes_where_files_cannot_be(folder: Path) -> None:
    """These were tried for ever."""
    with pytest.raises(UsageError, match=r"^cannot write /proc/t.pt: no file can be created in /proc \(No locks avail"):
        check_target("/proc/t.pt")
    reader, writer = os.pipe()
    with pytest.raises(UsageError, match="it is no file, but a device, a pipe or a socket; name a file"):
        check_target(f"/proc/self/fd/{writer}")  # what /dev/stdout is in a pipeline
    with pytest.raises(UsageError, match="it is no file"), atomic(f"/proc/self/fd/{writer}"):
        pytest.fail("a block without a file must not run")
    os.close(reader)
    os.close(writer)


def test_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UsageError, match=r"^cannot write t.pt: No such file or directory \(the current folder\)$"):
        check_target("t.pt")


@pytest.mark.parametrize("writes", [Path.write_text, lambda path, text: os.replace(path.with_name("other"), path)])
def test_what_was_found_in_two_files_is_not_told(folder: Path, writes: Callable[[Path, str], object]) -> None:
    path = folder / "a.pt"
    for name in ("a.pt", "other"):
        (folder / name).write_text("one state")

    @of_one_state
    def read(source: Path, change: bool, fail: bool = False) -> str:
        found = source.read_text()
        if change:
            writes(source, "another one")
        if fail:
            raise ExportError("half of it is missing")
        return found

    assert read(path, False) == "one state"
    with pytest.raises(ExportError, match="half"):
        read(source=path, change=False, fail=True)
    sentence = f"^{path} was written while it was read: wait for its writer, then try again$"
    with pytest.raises(CheckpointError, match=sentence) as raised:
        read(path, True, fail=True)
    assert isinstance(raised.value.__cause__, ExportError)
    (folder / "other").write_text("one more")
    with pytest.raises(CheckpointError, match=sentence):
        read(source=path, change=True)


@pytest.mark.slow
def test_verify_and_load_look_at_one_state(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is replaced behind the first look would be judged by the layers of one, the numbers of the other."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.randn(1, 3, 8, 8)
    nbcompile.export(network, "a.onnx", x)
    nbcompile.export(network, "b.onnx", x)
    nbcompile.save(network, "a.pt", x)
    assert nbcompile.verify(network, "a.onnx", x).passed
    layers = FORMATS[".onnx"].read_layers

    def replaced(form: object, path: Path) -> object:
        found = layers(path)
        os.replace("b.onnx", path)
        return found

    monkeypatch.setattr(type(FORMATS[".onnx"]), "read_layers", replaced)
    with pytest.raises(CheckpointError, match=r"^a\.onnx was written while it was read"):
        nbcompile.verify(network, "a.onnx", x)
    read = torch.load

    def touched(path: Path, **options: object) -> object:
        found = read(path, **options)
        Path("a.pt").touch()
        return found

    monkeypatch.setattr(torch, "load", touched)
    with pytest.raises(CheckpointError, match=r"^a\.pt was written while it was read"):
        nbcompile.load("a.pt", model=network)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt", ".safetensors"])
def test_a_file_that_is_changed_behind_its_check_gets_no_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Its last byte, which no reader may look at."""
    check = {".onnx": "nbcompile.exporters.to_onnx.export.judge", ".pt": "nbcompile.exporters.to_state_dict._compare"}
    where = check.get(suffix, check[".pt"])
    module, _, name = where.rpartition(".")
    before = getattr(import_module(module), name)

    def checked(*given: object, **options: object) -> object:
        found = before(*given, **options)
        (temporary,) = folder.glob(f".*{suffix}")
        with temporary.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))
        return found

    Path(f"a{suffix}").write_bytes(b"old bytes")
    monkeypatch.setattr(where, checked)
    with pytest.raises(
        ExportError, match=rf"^a\{suffix} is not what this run wrote: another one wrote it meanwhile; run"
    ):
        nbcompile.export(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), f"a{suffix}", torch.randn(1, 3, 8, 8))
    assert Path(f"a{suffix}").read_bytes() == b"old bytes"
    assert [path.name for path in folder.iterdir()] == [f"a{suffix}"]
