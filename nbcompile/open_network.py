"""The network that a command is given, as a file or as a MODEL."""

from dataclasses import replace
from pathlib import Path

from torch import nn

from nbcompile.checkpoint import TORCH_FILES, load
from nbcompile.core.errors import UsageError
from nbcompile.core.example import Origin, origin_of, remember
from nbcompile.models import build, parse_input


def open_network(source: str, *, model: str | None, key: str | None, input_shape: str | None) -> nn.Module:
    """The network that a command is given: a file (with the MODEL whose weights it holds, if it needs one), or a MODEL.

    Raises:
        UsageError: if the words do not fit.
        CheckpointError: if the file cannot be read.
    """
    if not is_file(source):
        if model is not None or key is not None:
            raise UsageError(f"--model and --key go with a file; '{source}' is a MODEL")
        return build(source, input_shape).model
    network = load(source, model=build(model, input_shape).model if model else None, key=key)
    if input_shape is not None:
        known = origin_of(network)
        spec = parse_input(input_shape)
        remember(network, replace(known, inputs=(spec,)) if known else Origin((spec,)))
    return network


def is_file(source: str) -> bool:
    """Whether ``source`` is meant as a file and not as a MODEL; a missing one is: the complaint is about the file."""
    return Path(source).suffix.lower() in (*TORCH_FILES, ".safetensors", ".onnx") or Path(source).is_file()
