"""Two processes over gloo: the same curve as one, and what is left when one of them is killed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

STEPS = 1437 // 64
FUSED = ("linear", "waiting", "netaug", "netdistiller")
EPOCHS = {"replaced": 4, "waiting": 2, "sizes": 2, "int8": 2}


def ran(what: str, folder: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """How the processes ended, and what they wrote: one by itself, then two together."""
    script = Path(__file__).with_name("ddp_train.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, str(script), str(folder), what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=True)
    return done.stdout.splitlines()[-1], {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    [
        "plain",
        "accumulated",
        "linear",
        "replaced",
        "waiting",
        "netaug",
        "netdistiller",
        "stored",
        "branches",
        "mimic",
        "mimic apart",
        "sizes",
        "int8",
    ],
)
def test_two_processes_learn_what_one_learns_with_the_same_batches(tmp_path: Path, what: str) -> None:
    codes, found = ran(what, tmp_path)
    assert codes == "[0, 0, 0]"
    alone, first, second = found["alone"], found["0"], found["1"]
    assert len(first["losses"]) == len(alone["losses"]) == STEPS * EPOCHS.get(what, 1) > 20
    assert first["losses"][:20] == pytest.approx(alone["losses"][:20], abs=1e-5)
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-3)  # rounding grows
    assert second["losses"] == [], "more than one process told what happens"
    assert (first["accuracy"], first["weights"]) == (second["accuracy"], second["weights"])
    assert first["accuracy"] == pytest.approx(alone["accuracy"], abs=1.5 / 360)
    assert first["fused"] == pytest.approx(first["accuracy"], abs=1.5 / 360) if what in FUSED else not first["fused"]


@pytest.mark.slow
def test_one_of_two_processes_is_killed(tmp_path: Path) -> None:
    codes, found = ran("killed", tmp_path)
    assert codes == "[0, 0, -9]"
    checkpoint = tmp_path / "trained-run" / "last.ckpt"
    error = found["0"]["error"]
    assert error.startswith("another process of this run has ended (Connection ")
    assert error.endswith(f" by peer): see what it said, start all anew and resume; {checkpoint} still holds epoch 1")
    state = torch.load(checkpoint, weights_only=True)
    assert state["epoch"] == 1
    assert all(x.isfinite().all() for x in state["model"].values())
    assert not (tmp_path / "trained.pt").exists()
