"""Commands as a user types them, in this process."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import nbcompile
from nbcompile.cli import app as cli
from nbcompile.testing import scramble_


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Type a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def typed(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["nbcompile", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.run_cli()
        out, err = capsys.readouterr()
        code = stop.value.code
        return Result(code if isinstance(code, int) else 0, out, err)

    return typed


def linear_giant(path: Path, model: nn.Module, size: int, channels: int = 3, **options) -> nn.Module:
    giant = nbcompile.expand(model, torch.randn(1, channels, size, size), **options)
    scramble_(giant)
    nbcompile.PLT(giant, steps=1).step()
    nbcompile.save(giant, path)
    return giant


@pytest.fixture(scope="session")
def trained_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once a process; tests get a copy."""
    torch.default_generator.manual_seed(0)
    path = tmp_path_factory.mktemp("trained") / "trained.pt"
    linear_giant(path, nbcompile.zoo.dscnn(), 8, channels=1)
    return path


@pytest.fixture
def trained(trained_file: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(trained_file, tmp_path))
