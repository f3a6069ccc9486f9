"""``save`` and ``load``: trained files that describe themselves."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from nbcompile.core import record
from nbcompile.core.blocks import Expanded, check_absorbers, sites
from nbcompile.core.copies import working_copy
from nbcompile.core.errors import CaptureError, CheckpointError, PreconditionError, UsageError
from nbcompile.core.example import ExampleInput, Origin, inputs_for, origin_of, remember, specs
from nbcompile.core.files import atomic, check_target
from nbcompile.core.graph.replace import put
from nbcompile.core.layers import LayerSpec, why_no_layer
from nbcompile.core.progress import step
from nbcompile.core.serialization.bounds import bounded
from nbcompile.core.serialization.choose_weights import Wanted, choose
from nbcompile.core.serialization.describe import describe_model, unreadable
from nbcompile.core.serialization.rebuild import origin_from_json, rebuild, with_shared
from nbcompile.core.serialization.weight_files import EXTRA, RECORD, read_weights
from nbcompile.core.serialization.weight_sets import Weights, find
from nbcompile.core.tracing.capture import capture
from nbcompile.core.wrappers import require_loaded, unwrap
from nbcompile.file_proof import difference

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
        if proof and sites(model):
            _look_at_record(model)
        elif not sites(model) and (example_input is not None or origin_of(model) is not None):
            content[RECORD] = record.encode_record({"model": _description(model, example_input, proof)})
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


def _loaded(path: Path, model: nn.Module | None, key: str | None, proof: bool) -> nn.Module:
    model = None if model is None else unwrap(model)
    content = read_weights(path)
    wanted = Wanted.by_record(_beside(content)) if model is None else Wanted.by(model)
    weights, note = choose(find(content, path), key, path, wanted)
    if note:
        log.warning("%s", note)
    payload = _payload(content, weights)
    try:
        if model is not None:
            return _into(model, weights, payload, proof)
        if payload is None:
            raise CheckpointError(
                f"the weights describe no model (the first is '{next(iter(weights.tensors))}'): say which it is "
                "(--model torchvision:NAME or package.module:factory; in Python load(path, model=...))"
            )
        network, notes = rebuild(payload, weights.tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__
    for sentence in notes:
        log.warning("%s: %s", path, sentence)
    return network


def _look_at_record(giant: nn.Module) -> None:
    """Say where the network that a giant describes, since it was expanded, is not the giant."""
    for block in sites(giant).values():
        described = record.decode_record(block.get_extra_state(), EXTRA).get("model", {})
        if described.get("graph") and (differs := _difference(giant, described)):
            log.warning(
                "save: the giant was changed by hand after it was expanded; without its code the file is the network "
                "that was expanded, which differs %s",
                differs,
            )


def _difference(model: nn.Module, description: Mapping[str, Any]) -> str | None:
    with suppress(PreconditionError):  # nothing to compare
        return difference(model, description)
    return None


def _description(model: nn.Module, example_input: ExampleInput | None, proof: bool) -> dict[str, Any]:
    inputs = inputs_for(model, example_input, who="save")
    known = origin_of(model)
    origin = Origin(specs(inputs), known.model if known else None, known.preprocessing if known else {})
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


def _into(model: nn.Module, weights: Weights, payload: Mapping[str, Any] | None, proof: bool) -> nn.Module:
    """The weights in the user's own class."""
    tensors = weights.tensors if payload is None else with_shared(payload, weights.tensors)
    if proof and payload and payload.get("graph"):
        _prove(model, tensors, payload)
    model = _filled(model, tensors)
    if payload:
        remember(model, origin_from_json(payload))
    model.eval()
    return model


def _prove(model: nn.Module, tensors: Mapping[str, Tensor], payload: Mapping[str, Any]) -> None:
    name = type(model).__name__
    try:
        filled = working_copy(model)
        with torch.random.fork_rng([]):  # new blocks draw weights
            differs = difference(_filled(filled, tensors), payload)
    except PreconditionError as error:
        log.warning("load: %s was not compared with the network that the file describes: %s", name, error)
        return
    if differs is not None:
        raise CheckpointError(
            f"{name} is another network than the file describes, {differs}; either it is another model, or it was "
            "changed by hand after it was expanded: then load(..., proof=False) takes its code as it is"
        )


def _filled(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """``model`` with ``tensors`` in it; blocks that it lacks are built from their records."""
    if not sites(model):
        _insert(model, tensors)
    for name, block in sites(model).items():  # a trainer may drop or damage what is no weight
        if not _sound(tensors.get(f"{name}.{EXTRA}")):
            tensors = {**tensors, f"{name}.{EXTRA}": block.get_extra_state()}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise CheckpointError(f"the weights do not fit {type(model).__name__}: {lines[0][:300]}") from None
    check_absorbers(model)
    return model


def _sound(value: Tensor | None) -> bool:
    if not record.is_record(value):
        return False
    try:
        record.decode_record(cast(Tensor, value), EXTRA)
    except CheckpointError:
        return False
    return True


def _insert(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the blocks of a file in the place of the layers that they replaced; all of them, or none."""
    blocks: dict[nn.Module, Expanded] = {}
    for key, value in tensors.items():
        name = key.removesuffix(f".{EXTRA}")
        if name == key or not record.is_record(value):
            continue
        try:
            layer = model.get_submodule(name)
        except AttributeError:
            raise CheckpointError(
                f"the file has an expansion block at '{name}', where {type(model).__name__} has no layer"
            ) from None
        if layer not in blocks:  # else an alias
            _check_sizes(name, value, layer, tensors)
            blocks[layer] = Expanded.from_record(value, name, layer)
    for layer, block in blocks.items():
        put(model, layer, block)


def _check_sizes(name: str, value: Tensor, layer: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Build the block where sizes cost nothing, before it is built for good."""
    value = record.as_bytes(value)
    with bounded():
        block = Expanded.from_record(value, name)
    recorded = block.spec.layer
    if why_no_layer(layer) or LayerSpec.of(layer) != recorded:
        raise CheckpointError(f"the file's block at '{name}' replaced another layer than the {layer} that is there")
    for key, own in block.state_dict().items():
        held = tensors.get(f"{name}.{key}")
        if isinstance(own, Tensor) and not key.endswith(EXTRA) and (held is None or held.shape != own.shape):
            has = "nothing" if held is None else f"shape {tuple(held.shape)}"
            raise CheckpointError(f"'{name}.{key}' needs shape {tuple(own.shape)}; the file has {has}")
