"""``inspect`` of a file examines its graph without numbers: what it tells is what a run of the network tells."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nbcompile
from nbcompile.cli.run.inspect import run_inspect
from nbcompile.core import record


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(6, 5, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Attention(nn.Module):
    """Tied weights, a parameter of its own, a norm and a constant that forward makes."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(1, 7, 6))
        self.norm = nn.LayerNorm(6)
        self.mix = nn.MultiheadAttention(6, 2, batch_first=True)
        self.up, self.down = nn.Linear(6, 6), nn.Linear(6, 6)
        self.down.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x + self.place)
        y = x + self.mix(y, y, y, need_weights=False)[0]
        return self.down(torch.relu(self.up(y))) * torch.full((1,), 0.5)


NETWORKS = {
    "dscnn": (lambda: nbcompile.zoo.dscnn(), (2, 1, 8, 8)),
    "recurrent": (Recurrent, (2, 4, 6)),
    "attention": (Attention, (2, 7, 6)),
}


def inspected(path: Path) -> dict[str, Any]:
    return run_inspect(str(path), model=None, key=None, input_shape=None)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.slow
def test_a_file_costs_what_its_network_does(name: str, tmp_path: Path) -> None:
    make, shape = NETWORKS[name]
    model, x = make().eval(), torch.randn(shape)
    nbcompile.save(model, tmp_path / "plain.pt", x)
    found, wanted = inspected(tmp_path / "plain.pt"), nbcompile.cost(model, x).to_json()
    for layer in (*found["layers"], *wanted["layers"]):
        layer["kind"] = layer["kind"] if layer["name"] else "itself"  # a graph stands in for the class
    assert [x for x in found["layers"] if x["params"]] == [x for x in wanted["layers"] if x["params"]]
    assert found["cost"] == {key: wanted[key] for key in found["cost"]}
    if name == "dscnn":
        assert found["candidates"]["names"]
        giant = nbcompile.expand(model, x)
        nbcompile.save(giant, tmp_path / "giant.pt")
        of_giant = nbcompile.cost(giant, x).to_json()
        assert inspected(tmp_path / "giant.pt")["cost"] == {key: of_giant[key] for key in found["cost"]}


def test_a_layer_that_takes_minutes_is_told_of_at_once(tmp_path: Path) -> None:
    """33 G multiplications, in a kernel as large as the image: torch has no fast code for it."""
    nbcompile.save(nn.Sequential(nn.Conv2d(1, 1, 1)), tmp_path / "small.pt", torch.zeros(1, 1, 2, 2))
    content = torch.load(tmp_path / "small.pt")
    payload = record.decode_record(content["nbcompile_record"], "r")
    payload["model"]["inputs"] = [[[1, 1, 600, 600], "float32"]]
    (module,) = payload["model"]["modules"].values()
    module["arguments"] |= {"kernel_size": {"tuple": [600, 600]}, "padding": {"tuple": [150, 150]}}
    content["state_dict"]["0.weight"] = torch.zeros(1, 1, 600, 600)
    content["nbcompile_record"] = record.encode_record(payload)
    torch.save(content, tmp_path / "large.pt")
    assert inspected(tmp_path / "large.pt")["cost"]["macs"] == 301**2 * 600**2


def test_a_pipe_or_a_folder_is_not_read(run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "folder.onnx").mkdir()
    pipe = "cannot be read: it is no file, but a device, a pipe or a socket; copy what it gives into a file"
    for words in (["inspect", "pipe.onnx"], ["verify", "pipe.onnx", "--against", "nbcompile:dscnn"]):
        done = run(*words)
        assert (done.code, done.err) == (2, f"nbcompile: error: pipe.onnx {pipe}\n")
    done = run("inspect", "folder.onnx")
    assert (done.code, done.err) == (2, "nbcompile: error: folder.onnx is a folder, not a file\n")
