"""A method is one file and one row: from ``--method`` and its help to the written file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import nbcompile
from nbcompile import UsageError
from nbcompile.training import TrainConfig, train
from nbcompile.training.methods import METHODS, MethodRow, taught

FILE = '''
"""Mean squared error in the place of cross entropy."""

import torch.nn.functional as F

from nbcompile.training.methods.base import Method


class Squared(Method):
    def prepare(self, model):
        return model

    def phase(self, epoch):
        return "squared"

    def loss(self, model, batch):
        logits = model(batch.images)
        return F.mse_loss(logits, F.one_hot(batch.labels, logits.shape[1]).float()), logits
'''
ROW = MethodRow(name="squared", help="squared errors", classes=("squared_method:Squared",))
OPTIONS = ("--data", "digits", "--epochs", "1", "--batch-size", "256", "--accelerator", "cpu")


@pytest.fixture
def typed(tmp_path: Path) -> "Typed":
    """The command line of a house with one file and one row more."""
    (tmp_path / "squared_method.py").write_text(FILE)
    (tmp_path / "more.py").write_text(
        "from nbcompile.training.methods import METHODS, MethodRow\n"
        f"METHODS['squared'] = {ROW!r}\n"
        "from nbcompile.__main__ import main\nmain()\n"
    )
    return Typed(tmp_path)


class Typed:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "more.py", "train", *words]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command_line_knows_it(typed: Typed) -> None:
    help = typed("--help").stdout
    assert "squared" in help
    assert "netbooster" in help
    refused = typed("nbcompile:dscnn", *OPTIONS, "-o", "t.pt", "--method", "magic")
    assert "netbooster+netaug, squared" in " ".join(refused.stderr.split())
    done = typed("nbcompile:dscnn", *OPTIONS, "-o", "t.pt", "--method", "squared", "--json", "t.json")
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.endswith("recommends at this cost: vanilla for 1 epoch (squared: not measured yet)")
    found = json.loads((typed.folder / "t.json").read_text())
    assert (found["method"], found["history"][0]["phase"]) == ("squared", "squared")
    assert found["cost"]["total"] == found["cost"]["plain_epoch"] > 0
    trained = nbcompile.load(typed.folder / "t.pt")
    nbcompile.zoo.dscnn(num_classes=10, in_channels=1).load_state_dict(trained.state_dict())


@pytest.mark.slow
def test_the_table_is_read_without_torch() -> None:
    script = (
        "import sys, nbcompile.training as t, nbcompile.training.methods as m\n"
        "m.method_help(), t.TrainConfig()\n"
        "assert 'torch' not in sys.modules\n"
        "assert sorted(t.__all__) == dir(t)\n"
        "assert [callable(getattr(t, name)) for name in ('train', 'Epoch')] == [True, True]\n"
        "t.nothing"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "AttributeError: module 'nbcompile.training' has no attribute 'nothing'"


def test_python_knows_it_from_its_row_on(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    options = {"epochs": 1, "batch_size": 256, "accelerator": "cpu", "method": "squared"}
    with pytest.raises(UsageError, match=r"^method must be one of vanilla, .*, netbooster\+netaug, not 'squar"):
        TrainConfig(**options)  # type: ignore[arg-type]
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "squared_method.py").write_text(FILE)
    monkeypatch.setitem(METHODS, "squared", ROW)
    monkeypatch.setitem(METHODS, "squared+kd", taught(ROW, "squared+kd", "not measured yet"))
    config = TrainConfig(**options)  # type: ignore[arg-type]
    plain = train(net, config, tmp_path / "a.pt")
    assert plain.history[0].phase == "squared"
    assert plain.history[0].loss < 1.0
    both = TrainConfig(**options | {"method": "squared+kd", "teacher": "its own", "kd_weight": 0.0})  # type: ignore[arg-type]
    assert train(net, both, tmp_path / "b.pt", teacher=net).history[0].loss == plain.history[0].loss
    with pytest.raises(
        UsageError, match=r"^method 'squared' has no teacher: choose kd or .* or netbooster\+mimic or .*squared\+kd$"
    ):
        TrainConfig(**options | {"teacher": "its own"})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^method must be one of .*, squared, squared\+kd, not 'magic'$"):
        TrainConfig(method="magic")
