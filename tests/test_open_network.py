"""What a command is given may be a file or a MODEL; what is wrong with it is said of the one that was meant."""

from pathlib import Path

import pytest
import torch

import nbcompile
from nbcompile.core.errors import CheckpointError, UsageError
from nbcompile.open_network import is_file, open_network


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["no.tflite", "no.onnx", "no.safetensors", "no.pt", "no.PTH", "folder/no.ckpt"])
def test_a_missing_file_is_called_one(here: Path, name: str) -> None:
    assert is_file(name)
    with pytest.raises(CheckpointError, match=f"^{name} cannot be read: No such file or directory$"):
        open_network(name, model=None, key=None, input_shape=None)


@pytest.mark.parametrize("name", ["no.foo", "folder/no", "nbcompile.zoo.dscnn"])
def test_what_may_be_meant_as_either_is_told_both(here: Path, name: str) -> None:
    assert is_file(name)
    sentence = f"^{name} cannot be read: there is no such file; if a MODEL is meant, write torchvision:NAME, .*factory"
    with pytest.raises(CheckpointError, match=sentence):
        open_network(name, model=None, key=None, input_shape=None)


@pytest.mark.parametrize("name", ["no", "dscnn", "timm", "timm:resnet18?drop_rate=0.5", "folder", "nbcompile:a/b"])
def test_what_is_meant_as_a_model(here: Path, name: str) -> None:
    (here / "folder").mkdir()
    assert not is_file(name)


@pytest.mark.parametrize("name", ["tiny.tflite", "tiny.ONNX"])
def test_a_deploy_file_is_no_network(here: Path, name: str) -> None:
    (here / name).touch()
    sentence = (
        rf"^{name} is a deploy file, of which no network can be made: give the trained file or the MODEL that it was "
        r"written from \(nbcompile inspect shows its layers\)$"
    )
    with pytest.raises(UsageError, match=sentence):
        open_network(name, model=None, key=None, input_shape=None)


@pytest.mark.parametrize("name", ["trained", "trained.best", "trained.pt"])
def test_a_file_of_whatever_name_is_opened(here: Path, name: str) -> None:
    giant = nbcompile.expand(nbcompile.zoo.dscnn(), torch.zeros(1, 1, 8, 8))
    nbcompile.save(giant, "giant.pt")
    Path("giant.pt").rename(name)
    opened = open_network(name, model=None, key=None, input_shape=None)
    assert torch.equal(opened.state_dict()["classifier.weight"], giant.state_dict()["classifier.weight"])
