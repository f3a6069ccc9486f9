"""What ``nbcompile verify`` does."""

import logging
from dataclasses import replace
from pathlib import Path

from torch import nn

from nbcompile.core.cost import cost
from nbcompile.core.errors import CheckpointError, UsageError, VerificationError
from nbcompile.core.input_files import of_one_state
from nbcompile.core.serialization.choose_weights import Wanted, choose
from nbcompile.core.serialization.weight_files import EXTRA, read_weights
from nbcompile.core.serialization.weight_sets import find
from nbcompile.exporters import FORMATS, known_format
from nbcompile.models import build
from nbcompile.open_network import is_file, open_network
from nbcompile.results.layer_costs import holding, original_of
from nbcompile.spec_strings import is_pretrained
from nbcompile.verification import Check, Verification, verify

log = logging.getLogger("nbcompile")


@of_one_state
def run_verify(
    candidate: str, against: str, *, model: str | None, key: str | None, input_shape: str | None
) -> Verification:
    """``nbcompile verify``: structure and cost against a MODEL, and numbers too against trained weights."""
    path = Path(candidate)
    forms = known_format(path), known_format(against)
    for form in forms:
        if form is not None and form.graph and not form.comparable:
            *most, last = (row.suffix for row in FORMATS.values() if row.comparable or not row.graph)
            raise UsageError(
                f"verify compares {', '.join(most)} and {last} files: a {form.suffix} file is compared when it is "
                "written, and nbcompile inspect shows its layers; verify the .onnx or .pt of the same network"
            )
    has_weights = is_file(against) or is_pretrained(against)
    if (form := forms[0]) is not None and form.graph:
        if not path.exists():
            raise CheckpointError(f"{path} cannot be read: there is no such file")
        shape = input_shape or ",".join("x".join(map(str, size)) for size in form.read_input_sizes(path))
        reference = open_network(against, model=model, key=key, input_shape=None if "," in shape else shape)
        if input_shape is not None or _runs(reference):
            return verify(reference, path, numbers=has_weights)
        return _verify_at_own_size(path, shape, against, model, key)
    own = key if is_file(candidate) and not is_file(against) else None  # of the file that there is
    reference = open_network(against, model=model, key=None if own else key, input_shape=input_shape)
    if not is_file(candidate):
        return verify(reference, build(candidate, input_shape).model, numbers=False)
    return verify(reference, _filled(reference, path, own), numbers=has_weights)


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
