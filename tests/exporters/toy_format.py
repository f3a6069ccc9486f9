"""A format of one file, as a newcomer adds it: a chain of linear layers in JSON, which numpy runs."""

import json
import time
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from nbcompile.core.errors import CheckpointError, ExportError
from nbcompile.core.example import Inputs
from nbcompile.core.files import atomic
from nbcompile.core.numerics import relative_error, tolerance
from nbcompile.exporters import Format
from nbcompile.exporters.base import ExportResult, FileLayer

HERE = "tests.exporters.toy_format"
TOY = Format(
    ".toy",
    graph=True,
    writer=f"{HERE}:write_toy",
    layers=f"{HERE}:toy_layers",
    input_sizes=f"{HERE}:toy_input_sizes",
    runner=f"{HERE}:toy_outputs",
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 3))


def write_toy(
    graph: nn.Module, inputs: Inputs, path: Path, *, reference: nn.Module | None = None, indent: int | None = None
) -> ExportResult:
    started = time.perf_counter()
    assert isinstance(graph, fx.GraphModule)
    content = {"input": list(inputs[0].shape), "chain": [_entry(graph, node) for node in graph.graph.nodes][1:-1]}
    with torch.no_grad():
        expected = (reference or graph)(*inputs)
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent))
        error, limit = relative_error(toy_outputs(temporary, [inputs])[0][0], expected), tolerance(torch.float32)
        if not error <= limit:
            raise ExportError(f"{path}: numpy and PyTorch differ by {error:.2g}; no file was kept")
        size = temporary.stat().st_size
    seconds = time.perf_counter() - started
    return ExportResult(path=path, format="toy", bytes=size, error=error, tolerance=limit, seconds=seconds)


def toy_layers(path: Path) -> tuple[FileLayer, ...]:
    layers = [one for one in _read(path)["chain"] if one is not None]
    macs = [prod(np.shape(one["weight"])) for one in layers]
    return tuple(FileLayer(one["name"], "Linear", n, n + len(one["bias"])) for one, n in zip(layers, macs, strict=True))


def toy_input_sizes(path: Path) -> tuple[tuple[int, ...], ...]:
    return (tuple(_read(path)["input"]),)


def toy_outputs(path: Path, calls: Sequence[Inputs]) -> list[list[Tensor]]:
    chain = _read(path)["chain"]
    outputs = []
    for (x,) in calls:
        y = x.numpy()
        for one in chain:
            y = np.maximum(y, 0) if one is None else y @ np.array(one["weight"], "f4").T + np.array(one["bias"], "f4")
        outputs.append([torch.from_numpy(y)])
    return outputs


def _entry(graph: fx.GraphModule, node: fx.Node) -> dict[str, Any] | None:
    if node.op != "call_module":
        return None
    layer = graph.get_submodule(str(node.target))
    if isinstance(layer, nn.ReLU):
        return None
    if not isinstance(layer, nn.Linear):
        raise ExportError(f"a .toy file cannot hold '{node.target}' ({type(layer).__name__})")
    return {"name": node.target, "weight": layer.weight.tolist(), "bias": layer.bias.tolist()}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
