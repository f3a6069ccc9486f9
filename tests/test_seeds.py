"""The same network gives the same files and the same verdict, whatever seeds the environment has."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nbcompile
from nbcompile.testing import enliven_

SCRIPT = """
import hashlib, json, sys
from pathlib import Path
import torch
import nbcompile
torch.manual_seed(int(sys.argv[1]))
network, x = nbcompile.load("d.pt"), torch.load("x.pt")
tiny = nbcompile.fuse(network)
found = [nbcompile.verify(network, network).to_json()]
for name, options in (("t.onnx", {}), ("t.safetensors", {}), ("t.tflite", {"calibration": x, "min_sqnr": -99.0})):
    told = nbcompile.export(tiny, name, **options).to_json()
    found.append((hashlib.sha256(Path(name).read_bytes()).hexdigest(), {**told, "seconds": 0}))
print(json.dumps(found, default=str, sort_keys=True))
"""


@pytest.mark.slow
def test_neither_hashes_nor_generators_change_what_is_written(tmp_path: Path) -> None:
    network, x = nbcompile.zoo.dscnn().eval(), torch.randn(24, 1, 8, 8)
    enliven_(network, x, seed=1)
    nbcompile.save(network, tmp_path / "d.pt", x[:1])
    torch.save(x, tmp_path / "x.pt")
    told = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, seed],
            cwd=tmp_path, check=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
        ).stdout
        for seed in ("0", "1", "2")
    ]  # fmt: skip
    assert len(told[0]) > 1000
    assert len({*told}) == 1


def test_generators_do_not_change_a_verdict() -> None:
    torch.manual_seed(0)
    one = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-4
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        found.append(nbcompile.verify(one, other, torch.ones(1, 3, 8, 8)).to_json())
    assert found[0] == found[1] == found[2]
    assert not found[0]["passed"]
