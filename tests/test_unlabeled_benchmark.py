"""What ``benchmarks/unlabeled.py`` compares."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_rows_of_both_sets_beside_their_controls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    table = importlib.import_module("unlabeled")
    args: Any = SimpleNamespace(
        data=f"imagefolder:{tmp_path / 'tiny'}", biased=f"cifar10:{tmp_path / 'cifar.zip'}", images=500, size=32,
        network="residual-91k", giant="residual-731k", adversarial=[0.1, 0.01], seeds=2, runs=tmp_path / "runs",
        accelerator="cpu", epochs=4,
    )  # fmt: skip
    giant = table.run(args, args.giant, {"seed": 100, "train_images": None})
    found = table.cells(args, giant)
    assert [(cell.unlabeled, cell.name) for cell in found] == [
        ("none", "labelled only"),
        ("none", "labelled only, the compute of mimicry"),
        ("none", "the giant's answers, labelled only"),
        *(
            (which, name)
            for which in ("rest", args.biased)
            for name in ("+ mimic", "+ mimic + adversarial 0.1", "+ mimic + adversarial 0.01")
        ),
    ]
    assert len({one.folder for cell in found for one in cell.runs}) == 2 * len(found)
    assert [one.told.seed for one in found[0].runs] == [0, 1]
    plain, longer, mimic = found[0].runs[0], found[1].runs[0], found[-1].runs[0]
    assert plain.told.data == "imagefolder:tiny"
    assert mimic.config.data == args.data
    assert mimic.config.unlabeled == args.biased
    assert (mimic.told.train_images, giant.told.train_images) == (500, None)
    macs, giant_macs = 893_440, 7_300_608  # each image is learnt from with another, and the giant answers on both
    assert longer.told.epochs == -(-4 * (3 * 2 * macs + 2 * giant_macs) // (3 * macs))
