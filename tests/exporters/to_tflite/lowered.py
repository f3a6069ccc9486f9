"""Run a network that was lowered to a float ``.tflite`` file, for tests."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nbcompile.core.numerics import flatten, relative_error
from nbcompile.deploy.deploy_form import deploy
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.ports import FloatModel, Port
from nbcompile.exporters.to_tflite.lower.lowering import float_model
from nbcompile.exporters.to_tflite.run.interpreters import run_file


class Net(nn.Module):
    """Any function of layers and inputs."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.layers, *inputs)


def to_torch(port: Port, y: np.ndarray) -> Tensor:
    """``y`` of the file, in torch layout: what ``port.to_file`` undoes."""
    x = torch.from_numpy(np.asarray(y, order="C"))
    return x.movedim(-1, 1) if port.channels_last else x


def outputs(model: FloatModel, *inputs: Tensor) -> list[Tensor]:
    """What the file gives for one sample, in torch layout."""
    sample = tuple(port.to_file(x) for port, x in zip(model.inputs, inputs, strict=True))
    (found,) = run_file(model.content, [sample])
    return [to_torch(port, y) for port, y in zip(model.outputs, found, strict=True)]


def lowered(network: nn.Module, *inputs: Tensor) -> tuple[FloatModel, float]:
    """The file of the deploy form, and its largest relative error against ``network`` in eval mode."""
    network.eval()
    model = float_model(deploy(network, inputs), inputs)
    return model, relative_error(outputs(model, *inputs), flatten(network(*inputs)))


def operators(model: FloatModel) -> Counter[str]:
    return Counter(op.name for op in read_file(model.content).ops)


def names(model: FloatModel) -> list[str]:
    """Of the tensors that operators write."""
    file = read_file(model.content)
    return [file.tensors[op.outputs[0]].name for op in file.ops]
