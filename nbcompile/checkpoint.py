"""``save`` and ``load``: trained files that describe themselves."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from nbcompile.core import record
from nbcompile.core.blocks import sites
from nbcompile.core.copies import working_copy
from nbcompile.core.errors import CaptureError, CheckpointError, PreconditionError, UsageError
from nbcompile.core.example import ExampleInput, Origin, inputs_for, origin_of, remember, specs
from nbcompile.core.files import atomic, check_target
from nbcompile.core.progress import step
from nbcompile.core.random_state import forked_rng
from nbcompile.core.running import seldom_collected
from nbcompile.core.serialization.choose_weights import Wanted, choose
from nbcompile.core.serialization.describe import describe_model, shared_keys, unreadable
from nbcompile.core.serialization.own_ranges import forget_foreign_ranges
from nbcompile.core.serialization.rebuild import origin_from_json, rebuild, with_shared
from nbcompile.core.serialization.weight_files import EXTRA, RECORD, read_weights
from nbcompile.core.serialization.weight_sets import Weights, find
from nbcompile.core.tracing.capture import capture
from nbcompile.core.wrappers import require_loaded, unwrap
from nbcompile.file_proof import difference
from nbcompile.wide.fill_model import filled
from nbcompile.wide.giants import is_giant
from nbcompile.wide.slices import narrowed, widen_
from nbcompile.wide.wide_weights import WideWeights, wide_weights
from nbcompile.wide.widths import widths_of

log = logging.getLogger("nbcompile")

TORCH_FILES = (".pt", ".pth", ".ckpt", ".bin", ".tar")
"""What a trained file may be called: each is torch's own format, whatever the extension."""


def save(model: nn.Module, path: str | Path, example_input: ExampleInput | None = None, *, proof: bool = True) -> None:
    """Write ``model``'s weights so that :func:`load` and ``nbcompile fuse`` can read them without its code.

    Args:
        model: a giant, or any network; wrappers are seen through.
        path: written whole or not at all; ``torch.load(path, weights_only=True)["state_dict"]`` is the state_dict.
        example_input: what a network that is no giant is called with; may be left out where it remembers, or where
            the record is not wanted.
        proof: rebuild what is written, run it and a copy of ``model``, and compare. Where the two differ a warning says
            so; the file is written all the same, and that of a network that is no giant then needs its code.

    Raises:
        UsageError: if ``path`` cannot be written, or its extension is none of ``TORCH_FILES``.
    """
    check_output(path)
    model = unwrap(model)
    require_loaded(model, "save")
    content: dict[str, Any] = {"state_dict": model.state_dict()}
    with step(f"writing {Path(path).name}"):
        if is_giant(model):
            if proof:
                _look_at_record(model)
        elif example_input is not None or origin_of(model) is not None:
            content[RECORD] = record.encode_record({"model": description_of(model, example_input, proof)})
        with atomic(path) as temporary, temporary.open("wb") as file:  # not its name: torch hides why a disk is full
            torch.save(content, file)


def check_output(path: str | Path) -> None:
    """Find out before long work whether :func:`save` can write ``path``.

    Raises:
        UsageError: if it cannot be written, or its extension is none of ``TORCH_FILES``.
    """
    if Path(path).suffix.lower() not in TORCH_FILES:
        raise UsageError(
            f"save writes torch's own format: name the file .pt, not '{Path(path).name}' "
            f"({', '.join(TORCH_FILES[1:])} are taken, too)"
        )
    check_target(path)


def load(path: str | Path, model: nn.Module | None = None, key: str | None = None, *, proof: bool = True) -> nn.Module:
    """The network in a trained file, in eval mode: a giant with its blocks, or a plain network.

    Args:
        path: written by :func:`save` or by any trainer (timm, Lightning, Accelerate, DDP, ``torch.compile``).
        model: the network whose weights these are: needed where the file does not describe itself. The original or a
            giant; it is not copied, its weights are replaced. Without it a GraphModule with the same keys stands in.
        key: which weights to take where the file has several, such as ``state_dict_ema``; an EMA is the default.
        proof: where both are known, run the network that the file describes and a copy of ``model`` with the same
            weights, and compare them, before ``model`` is changed. Without ``model`` there is nothing to compare with.

    Raises:
        CheckpointError: if the file cannot be read, is refused, or does not fit, or if it describes another network
            than ``model``: then the first layer that differs is named.
    """
    with step(f"reading {Path(path).name}"):
        return _loaded(Path(path), model, key, proof)


@seldom_collected()
def _loaded(path: Path, model: nn.Module | None, key: str | None, proof: bool) -> nn.Module:
    model = None if model is None else unwrap(model)
    content = read_weights(path)
    wanted = Wanted.by_record(_beside(content)) if model is None else Wanted.by(model)
    weights, note = choose(find(content, path), key, path, wanted)
    if note:
        log.warning("%s", note)
    payload = _payload(content, weights)
    try:
        at_hand = model is not None and widths_of(model) is not None
        wide = None if at_hand else wide_weights(weights.tensors, (payload or {}).get("shared"))
        if model is not None:
            return _into(model, weights.tensors, payload, proof, wide)
        if payload is None:
            raise CheckpointError(
                f"the weights describe no model (the first is '{next(iter(weights.tensors))}'): say which it is "
                "(--model torchvision:NAME or package.module:factory; in Python load(path, model=...))"
            )
        network, notes = rebuild(payload, weights.tensors if wide is None else wide.own)
        if wide is not None:
            widen_(network, wide.widths, torch.Generator(), wide.wide)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__
    for sentence in notes:
        log.warning("%s: %s", path, sentence)
    return network


def _look_at_record(giant: nn.Module) -> None:
    """Say where the network that a giant describes, since it was made, is not the giant."""
    widths = widths_of(giant)
    described = [widths.description] if widths is not None and widths.description is not None else []
    own = giant if widths is None else narrowed(giant)
    described += [record.decode_record(b.get_extra_state(), EXTRA).get("model", {}) for b in sites(own).values()]
    for one in described:
        if one.get("graph") and (differs := _difference(own, one)):
            log.warning(
                "save: the giant was changed by hand after it was made; without its code the file is the network "
                "that was made, which differs %s",
                differs,
            )


def _difference(model: nn.Module, description: Mapping[str, Any]) -> str | None:
    with suppress(PreconditionError):  # nothing to compare
        return difference(model, description)
    return None


def description_of(model: nn.Module, example_input: ExampleInput | None, proof: bool = True) -> dict[str, Any]:
    """Of a network that is no giant: what a file needs to be read without its code, or why that cannot be.

    Args:
        model: left as it is.
        example_input: what it is called with; None where it remembers.
        proof: rebuild it, and compare.
    """
    inputs = inputs_for(model, example_input, who="save")
    known = forget_foreign_ranges(model, "save")
    origin = replace(known, inputs=specs(inputs)) if known else Origin(specs(inputs))
    model = working_copy(model)  # tracing runs its code
    try:
        gm = capture(model, inputs)
    except CaptureError as error:
        return unreadable(model, origin, str(error))
    description = describe_model(model, gm, origin)
    if proof and description["graph"] and (differs := _difference(model, description)):
        return unreadable(model, origin, f"what can be written of it is another network, {differs}")
    return description


def _payload(content: Any, weights: Weights) -> Mapping[str, Any] | None:
    """The description of the model: in the record of its first block, or beside the weights of a plain network."""
    description = _beside(content)
    if weights.described is not None:
        description = record.decode_record(weights.tensors[weights.described], weights.described)["model"]
    return description if isinstance(description, dict) else None


def _beside(content: Any) -> Any:
    if isinstance(content, dict) and record.is_record(beside := content.get(RECORD)):
        return record.decode_record(cast(Tensor, beside), RECORD).get("model")
    return None


def _into(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    payload: Mapping[str, Any] | None,
    proof: bool,
    wide: WideWeights | None,
) -> nn.Module:
    """The weights in the user's own class."""
    widened = widths_of(model) is not None
    if wide is not None and not widened:
        tensors = wide.own
    if widened:
        tensors = with_shared({"shared": shared_keys(model)}, tensors)
    elif payload is not None:
        tensors = with_shared(payload, tensors)
    if proof and payload and payload.get("graph"):
        _prove(model, tensors, payload)
    model = filled(model, tensors)
    if wide is not None and not widened:
        widen_(model, wide.widths, torch.Generator(), wide.wide)
    if payload:
        remember(model, origin_from_json(payload))
    model.eval()
    return model


def _prove(model: nn.Module, tensors: Mapping[str, Tensor], payload: Mapping[str, Any]) -> None:
    name = type(model).__name__
    try:
        with forked_rng():  # new blocks draw weights
            ours = filled(working_copy(model), tensors)
        differs = difference(ours if widths_of(ours) is None else narrowed(ours), payload)
    except PreconditionError as error:
        log.warning("load: %s was not compared with the network that the file describes: %s", name, error)
        return
    if differs is not None:
        raise CheckpointError(
            f"{name} is another network than the file describes, {differs}; either it is another model, or it was "
            "changed by hand after it was made: then load(..., proof=False) takes its code as it is"
        )
