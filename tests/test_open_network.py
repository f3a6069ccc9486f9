"""What a command is given may be a file or a MODEL; what is wrong with it is said of the one that was meant."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import nbcompile
from nbcompile.cli.run.verify import run_verify
from nbcompile.core.errors import CheckpointError, UsageError
from nbcompile.core.example import origin_of
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


class Words(nn.Module):
    """Of whole numbers, and of a vector beside them."""

    def __init__(self, vector: bool) -> None:
        super().__init__()
        self.rows, self.head, self.vector = nn.Embedding(20, 8), nn.Linear(13 if vector else 8, 3), vector

    def forward(self, words: Tensor, *more: Tensor) -> Tensor:
        y: Tensor = self.head(torch.cat([self.rows(words).mean(1), *more], 1))
        return y


@pytest.mark.parametrize("vector", [False, True])
def test_sizes_leave_the_dtypes_that_are_known(here: Path, vector: bool) -> None:
    """A file of whole numbers says the sizes of its inputs, as the user may."""
    inputs = (torch.zeros(1, 9, dtype=torch.int64), *([torch.zeros(1, 5)] if vector else []))
    nbcompile.save(Words(vector).eval(), "words.pt", inputs)
    opened = open_network("words.pt", model=None, key=None, input_shape="1x7,1x5" if vector else "1x7")
    origin = origin_of(opened)
    assert origin is not None
    assert [(one.shape, one.dtype) for one in origin.inputs] == [
        ((1, 7), torch.int64), *([((1, 5), torch.float32)] if vector else []),
    ]  # fmt: skip
    nbcompile.export(opened, "words.onnx")
    found = run_verify("words.onnx", "words.pt", model=None, key=None, input_shape=None, options={})
    assert found.passed
