"""Which networks the benchmarks over many are about, and what they are called with."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from _common import ROOT
from _detectors import DETECTORS, detector
from _transformers import NETWORKS, drawn, shape_of, transformer
from torch import Tensor, nn

from nbcompile.core.errors import NBCompileError
from nbcompile.core.example import Inputs, change_tensors
from nbcompile.models import build

SMALLEST = ROOT / "benchmarks" / "results" / "timm_smallest.json"
PIXELS = 320
"""Of the side of a detector's input."""
MADE_HERE = ("transformers", "yolo")
"""Groups that no MODEL string builds; they are captured with an example, as their users would."""


@dataclass(frozen=True)
class Subject:
    """A network: its group, and the MODEL string that builds it."""

    group: str
    name: str
    spec: str


def add_choice(made: argparse.ArgumentParser, seconds: float) -> None:
    """The options that say which networks a script measures, and how long each may take.

    Args:
        made: the script's parser.
        seconds: by default.
    """
    made.add_argument("--only", nargs="+", default=["*"], help="globs on GROUP/NAME")
    made.add_argument("--models", nargs="+", help="MODEL strings of torchvision or timm, instead of the whole list")
    made.add_argument("--resume", action="store_true", help="keep what an earlier, broken run has measured")
    made.add_argument("--retry", action="store_true", help="with --resume: measure the failures again")
    made.add_argument("--seconds", type=float, default=seconds, help="limit for one network")
    made.add_argument("--gigabytes", type=float, default=14, help="limit for one network")


def subjects() -> Iterator[Subject]:
    """In the order of the table; those that are made here come last."""
    models = torchvision.models
    for name in models.list_models(module=models):
        yield subject(f"torchvision:{name}")
    for family, name in smallest_of_timm().items():
        yield replace(subject(f"timm:{name}"), name=family)
    for name in models.list_models(module=models.segmentation) + models.list_models(module=models.detection):
        yield subject(f"torchvision:{name}")
    for name in NETWORKS:
        yield subject(f"transformers:{name}")
    for name in DETECTORS:
        yield subject(f"yolo:{name}")


def subject(spec: str) -> Subject:
    """The network of a MODEL string; a detector gets a small size, unless it has one size, and keeps all boxes."""
    home, _, name = spec.partition(":")
    models = torchvision.models
    if home == "torchvision" and name in models.list_models(module=models.segmentation):
        return Subject("segmentation", name, spec)
    if home == "torchvision" and name in models.list_models(module=models.detection):
        options = "box_score_thresh=0.0" if "rcnn" in name else "score_thresh=0.0"
        size = "" if "ssd" in name else f"&min_size={PIXELS}&max_size={PIXELS}"
        return Subject("detection", name, f"{spec}?{options}{size}")
    return Subject(home, name, spec)


def smallest_of_timm() -> dict[str, str]:
    """The smallest network of every timm family (module), by parameters; counted once for every version of timm."""
    kept = json.loads(SMALLEST.read_text()) if SMALLEST.is_file() else {}
    if kept.get("timm") != timm.__version__:
        found = {}
        for family in timm.list_modules():
            sizes = {name: parameters(name) for name in timm.list_models(module=family)}
            if sizes:
                found[family] = min(sizes, key=sizes.__getitem__)
        kept = {"timm": timm.__version__, "smallest": found}
        SMALLEST.write_text(json.dumps(kept, indent=1) + "\n")
    smallest: dict[str, str] = kept["smallest"]
    return smallest


def parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name).parameters())


def earlier(partial: Path, retry: bool) -> dict[tuple[str, str], dict[str, Any]]:
    rows = [json.loads(line) for line in partial.read_text().splitlines()] if partial.is_file() else []
    return {(row["group"], row["model"]): row for row in rows if not (retry and row["failures"])}


def network(one: Subject, size: int | None) -> tuple[nn.Module, tuple[int, ...]]:
    """In eval mode, and the shape of its input; with ``size`` as its own option, or as the shape if it has none."""
    if one.group == "transformers":
        return transformer(one.name), shape_of(one.name)
    if one.group == "yolo":
        return detector(one.name), (1, 3, 64, 96)
    if one.group == "detection":
        return build(one.spec).model.eval(), (1, 3, PIXELS, PIXELS)
    if size is None:
        built = build(one.spec)
    else:
        option = "img_size" if one.group == "timm" else "image_size"
        try:
            built = build(f"{one.spec}?{option}={size}")
        except NBCompileError:
            built = build(one.spec, f"1x3x{size}x{size}")
    return built.model.eval(), built.inputs[0].shape


def called_with(one: Subject, batch: int, shape: tuple[int, ...]) -> Inputs:
    """So many samples as the network takes them: a detector takes a list."""
    if one.group == "transformers":
        return (drawn(one.name, batch),)
    x = torch.randn(batch, *shape[1:])
    return (list(x.unbind()),) if one.group == "detection" else (x,)


def doubled(inputs: Inputs) -> Inputs:
    """In float64, but for words."""
    return change_tensors(lambda x: x.double() if x.is_floating_point() else x, inputs)


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items() if isinstance(value, Tensor)}
