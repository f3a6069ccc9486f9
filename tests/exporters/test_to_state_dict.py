import os
import stat
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from nbcompile.core.errors import ExportError, UsageError
from nbcompile.exporters.to_state_dict import write_safetensors, write_state_dict
from tests.full_disk import full_disk


class Tied(nn.Module):
    """Shared, strided, empty, integer and half tensors: what files of weights meet."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.conv = nn.Conv2d(4, 3, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("bf16", torch.tensor([1.5, -0.0, float("nan")], dtype=torch.bfloat16))
        self.register_buffer("strided", torch.arange(12.0).view(3, 4).t())
        self.register_buffer("scalar", torch.tensor(3))


def read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".pt":
        weights: dict[str, Tensor] = torch.load(path, weights_only=True)
        return weights
    return safetensors.torch.load_file(path)


WRITERS = {".pt": write_state_dict, ".safetensors": write_safetensors}


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_file_has_the_umasks_mode_and_a_full_disk_is_a_sentence(tmp_path: Path, suffix: str) -> None:
    path, model = tmp_path / f"tiny{suffix}", nn.Linear(50, 50)
    before = os.umask(0o027)
    try:
        WRITERS[suffix](model, (), path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    written = path.read_bytes()
    with full_disk(2000), pytest.raises(UsageError, match=rf"^cannot write {path}: File too large; it is as it was$"):
        WRITERS[suffix](nn.Linear(50, 50), (), path)
    assert path.read_bytes() == written
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_original_class_takes_the_file_strictly(tmp_path: Path, suffix: str) -> None:
    model, path = Tied(), tmp_path / f"tiny{suffix}"
    result = WRITERS[suffix](model, (), path)
    assert os.listdir(tmp_path) == [path.name]
    assert (result.path, result.bytes, result.error) == (path, path.stat().st_size, 0.0)
    weights = read(path)
    assert list(weights) == list(model.state_dict()) or suffix == ".safetensors"
    other = Tied()
    other.load_state_dict(weights)
    for key, value in model.state_dict().items():
        assert other.state_dict()[key].dtype == value.dtype
        assert torch.equal(other.state_dict()[key].nan_to_num(5), value.nan_to_num(5)), key


def test_formats_and_versions_are_named(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    plain = write_state_dict(model, (), tmp_path / "a.pt")
    safe = write_safetensors(model, (), tmp_path / "a.safetensors")
    assert (plain.format, set(plain.versions)) == ("state_dict", {"torch"})
    assert (safe.format, set(safe.versions)) == ("safetensors", {"torch", "safetensors"})


def test_the_model_keeps_its_shared_tensors(tmp_path: Path) -> None:
    model = Tied()
    write_safetensors(model, (), tmp_path / "tiny.safetensors")
    assert model.head.weight is model.embed.weight


class Noted(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"note": "not a tensor"}

    def set_extra_state(self, state: Any) -> None:
        pass


@pytest.mark.parametrize("suffix", WRITERS)
def test_an_entry_that_is_no_tensor_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tiny{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(ExportError, match=r"entry '0._extra_state' is of type dict, not a tensor"):
        WRITERS[suffix](nn.Sequential(Noted(2, 2)), (), path)
    assert path.read_bytes() == b"old"


def test_a_file_that_reads_back_wrong_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.pt"
    path.write_bytes(b"old")
    save = torch.save

    def flip_a_sign(weights: dict[str, Tensor], target: Path) -> None:
        save(weights | {"bias": -weights["bias"]}, target)

    def forget(weights: dict[str, Tensor], target: Path) -> None:
        save({"weight": weights["weight"]}, target)

    model = nn.Linear(2, 2)
    nn.init.zeros_(model.bias)
    for planted, reason in [
        (flip_a_sign, "'bias' was not read back as it was written; no file was kept"),
        (forget, "keys that were read back are not those that were written; no file was kept"),
    ]:
        monkeypatch.setattr(torch, "save", planted)
        with pytest.raises(ExportError, match=reason):
            write_state_dict(model, (), path)
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["tiny.pt"]
