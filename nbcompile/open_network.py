"""The network that a command is given, as a file or as a MODEL."""

import os
from dataclasses import replace
from pathlib import Path

from torch import nn

from nbcompile.checkpoint import TORCH_FILES, load
from nbcompile.core.errors import CheckpointError, UsageError
from nbcompile.core.example import Origin, TensorSpec, origin_of, remember
from nbcompile.exporters import FORMATS
from nbcompile.models import build, parse_inputs
from nbcompile.spec_strings import GRAMMAR, HOMES, is_pretrained, parse, without_weights


def open_network(source: str, *, model: str | None, key: str | None, input_shape: str | None) -> nn.Module:
    """The network that a command is given: a file (with the MODEL whose weights it holds, if it needs one), or a MODEL.

    Raises:
        UsageError: if the words do not fit.
        CheckpointError: if the file cannot be read.
    """
    check_words(source, model=model, key=key, input_shape=input_shape)
    if not is_file(source):
        return build(source, input_shape).model
    network = load(source, model=build(without_weights(model), input_shape).model if model else None, key=key)
    if input_shape is not None:
        known = origin_of(network)
        specs = parse_inputs(input_shape)
        if known and [type(had) for had in known.inputs] == [TensorSpec] * len(specs):  # sizes are all that was said
            specs = tuple(replace(had, shape=one.shape) for had, one in zip(known.inputs, specs, strict=True))
        remember(network, replace(known, inputs=specs) if known else Origin(specs))
    return network


def check_words(source: str, *, model: str | None, key: str | None, input_shape: str | None) -> None:
    """Find out before anything is read or built whether the words of `open_network` fit.

    Raises:
        UsageError: if they do not.
        CheckpointError: if there is no such file.
    """
    if input_shape is not None:
        parse_inputs(input_shape)
    if is_file(source):
        _check_file(Path(source))
    elif model is not None or key is not None:
        raise UsageError(f"--model and --key go with a file; '{source}' is a MODEL")
    else:
        parse(source)
    if model is not None:
        parse(model)


def is_file(source: str) -> bool:
    """Whether ``source`` is meant as a file and not as a MODEL; a missing one is: the complaint is about the file."""
    path = Path(source)
    named = ":" not in source and (path.suffix != "" or len(path.parts) > 1)  # each MODEL has a colon
    return named or path.suffix.lower() in (*TORCH_FILES, *FORMATS) or os.path.isfile(path)


def why_untrained(source: str, network: nn.Module) -> str:
    """Why the network of ``source`` has learned nothing, as far as can be told; empty where it may have learned.

    A factory may read weights of its own: what tells is whether its batch normalizations have ever seen data.
    """
    if is_file(source) or is_pretrained(source):
        return ""
    if parse(source)[0] in HOMES:
        return "is built without weights"
    norms = [
        m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]
    means = [norm.get_buffer("running_mean") for norm in norms]
    fresh = means and not any(mean.is_meta or mean.any() for mean in means)
    return "has batch normalizations that have seen no data" if fresh else ""


def _check_file(path: Path) -> None:
    """Refuse what no network is read from, before its content is looked at.

    Raises:
        UsageError: if it is a deploy file.
        CheckpointError: if it is missing; its name may be meant as a MODEL.
    """
    suffix = path.suffix.lower()
    try:
        os.stat(path)
    except (OSError, ValueError) as error:
        if suffix not in (*TORCH_FILES, *FORMATS):
            why: object = f"there is no such file; if a MODEL is meant, write {GRAMMAR}"
        else:
            why = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path} cannot be read: {why}") from None
    if os.path.isfile(path) and suffix in FORMATS and FORMATS[suffix].graph:
        raise UsageError(
            f"{path} is a deploy file, of which no network can be made: give the trained file or the MODEL that it was "
            "written from (nbcompile inspect shows its layers)"
        )
