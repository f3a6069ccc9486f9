"""What ``nbcompile verify`` does."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from nbcompile.core.cost import cost
from nbcompile.core.errors import CheckpointError, UsageError, VerificationError
from nbcompile.core.input_files import of_one_state
from nbcompile.core.serialization.choose_weights import Wanted, choose
from nbcompile.core.serialization.weight_files import EXTRA, read_weights
from nbcompile.core.serialization.weight_sets import find
from nbcompile.deploy.comparison_options import ComparisonOptions
from nbcompile.exporters import format_of, known_format
from nbcompile.models import build
from nbcompile.open_network import is_file, open_network
from nbcompile.results.checks import Check, Verification
from nbcompile.results.layer_costs import holding, original_of
from nbcompile.spec_strings import is_pretrained
from nbcompile.verification import verify

log = logging.getLogger("nbcompile")


@of_one_state
def run_verify(
    candidate: str,
    against: str,
    *,
    model: str | None,
    key: str | None,
    input_shape: str | None,
    options: Mapping[str, Any],
) -> Verification:
    """``nbcompile verify``: structure and cost against a MODEL, and numbers too against trained weights.

    ``options`` are those of ``.tflite`` files, `nbcompile.deploy.comparison_options.ComparisonOptions`.
    """
    path = Path(candidate)
    forms = known_format(path), known_format(against)
    if forms[0] is not None and forms[0].verifier:
        return _verify_device_file(path, against, model, key, input_shape, options)
    if options and (forms[0] is None or forms[0].quantized is None):
        name = next(iter(options)).replace("_", "-")
        raise UsageError(f"--{name} goes with a CANDIDATE that is a .tflite or an int8 .onnx file, not {candidate}")
    if forms[1] is not None and forms[1].verifier:
        raise UsageError(f"{against} can be the original of another {forms[1].suffix} file only: name it as CANDIDATE")
    has_weights = is_file(against) or is_pretrained(against)
    if (form := forms[0]) is not None and form.graph:
        if not path.exists():
            raise CheckpointError(f"{path} cannot be read: there is no such file")
        shape = input_shape or ",".join("x".join(map(str, size)) for size in form.read_input_sizes(path))
        reference = open_network(against, model=model, key=key, input_shape=shape)
        if input_shape is not None or _runs(reference):
            return verify(reference, path, numbers=has_weights, **options)
        return _verify_at_own_size(path, shape, against, model, key)
    own = key if is_file(candidate) and not is_file(against) else None  # of the file that there is
    reference = open_network(against, model=model, key=None if own else key, input_shape=input_shape)
    if not is_file(candidate):
        return verify(reference, build(candidate, input_shape).model, numbers=False)
    return verify(reference, _filled(reference, path, own), numbers=has_weights)


def _verify_device_file(
    path: Path, against: str, model: str | None, key: str | None, input_shape: str | None, options: Mapping[str, Any]
) -> Verification:
    """A file of a device against another one, a trained file, or a MODEL."""
    ComparisonOptions(**options)  # before anything is read
    if not path.exists():
        raise CheckpointError(f"{path} cannot be read: there is no such file")
    if (form := known_format(against)) is not None and form.verifier:
        if model is not None or key is not None or input_shape is not None:
            raise UsageError("--model, --key and --input are of trained files; both of these are files of a device")
        return verify(against, path, **options)
    sizes = format_of(path).read_input_sizes(path)
    shape = input_shape or ",".join("x".join(map(str, size)) for size in sizes)
    reference = open_network(against, model=model, key=key, input_shape=shape)
    if input_shape is None and not _runs(reference):
        reference = open_network(against, model=model, key=key, input_shape=None)
    return verify(reference, path, numbers=is_file(against) or is_pretrained(against), **options)


def _runs(network: nn.Module) -> bool:
    """Whether it runs on the input that it remembers."""
    try:
        cost(network)
    except UsageError:
        return False
    return True


def _verify_at_own_size(path: Path, shape: str, against: str, model: str | None, key: str | None) -> Verification:
    """The layers of an original that does not run on the file's input, at its own size: the first to differ has a name.

    Args:
        path: a file that holds a graph.
        shape: of its input.
        against: the original.
        model: as for :func:`open_network`.
        key: as for :func:`open_network`.
    """
    misfit = Check("input sizes", False, f"{against} does not run on {shape}, the input of {path}")
    try:
        reference = open_network(against, model=model, key=key, input_shape=None)
    except UsageError:  # it could be opened with a size: a factory, which has none of its own
        return Verification((misfit,), ())
    found = verify(reference, path, numbers=False)
    return replace(found, checks=(*found.checks, misfit))


def _filled(reference: nn.Module, path: Path, key: str | None) -> nn.Module:
    """The reference's architecture with the weights in ``path``; where they do not fit, as empty as they are."""
    weights, note = choose(find(read_weights(path), path), key, path, Wanted.by(reference))
    if note:
        log.warning("%s", note)
    blocks = [name for name in weights.tensors if name.endswith(EXTRA)]
    if blocks:
        raise VerificationError(
            f"{path} still has {len(blocks)} expansion blocks (the first: '{blocks[0].removesuffix('.' + EXTRA)}'): "
            "fuse it first"
        )
    return holding(original_of(reference), weights.tensors)
