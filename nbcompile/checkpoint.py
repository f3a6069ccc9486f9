"""``save`` and ``load``: trained files that describe themselves."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nbcompile.core import record
from nbcompile.core.blocks import Expanded, sites
from nbcompile.core.capture import capture
from nbcompile.core.description import describe, origin_from_json, rebuild
from nbcompile.core.errors import CaptureError, CheckpointError
from nbcompile.core.example import ExampleInput, Origin, inputs_for, origin_of, remember, specs
from nbcompile.core.files import atomic
from nbcompile.core.reading import EXTRA, RECORD, Weights, choose, find, read
from nbcompile.core.wrappers import unwrap

log = logging.getLogger("nbcompile")


def save(model: nn.Module, path: str | Path, example_input: ExampleInput | None = None) -> None:
    """Write ``model``'s weights so that :func:`load` and ``nbcompile fuse`` can read them without its code.

    Args:
        model: a giant, or any network; wrappers are seen through.
        path: written whole or not at all; ``torch.load(path, weights_only=True)["state_dict"]`` is the state_dict.
        example_input: what a network that is no giant is called with; may be left out where it remembers, or where
            the record is not wanted.

    Raises:
        UsageError: if ``path`` cannot be written.
    """
    model = unwrap(model)
    content: dict[str, Any] = {"state_dict": model.state_dict()}
    if not sites(model) and (example_input is not None or origin_of(model) is not None):
        content[RECORD] = record.encode({"model": _description(model, example_input)})
    with atomic(path) as temporary:
        torch.save(content, temporary)


def load(path: str | Path, model: nn.Module | None = None, key: str | None = None) -> nn.Module:
    """The network in a trained file, in eval mode: a giant with its blocks, or a plain network.

    Args:
        path: written by :func:`save` or by any trainer (timm, Lightning, Accelerate, DDP, ``torch.compile``).
        model: the network whose weights these are: needed where the file does not describe itself. The original or a
            giant; it is not copied, its weights are replaced. Without it a GraphModule with the same keys stands in.
        key: which weights to take where the file has several, such as ``state_dict_ema``; an EMA is the default.

    Raises:
        CheckpointError: if the file cannot be read, is refused, or does not fit.
    """
    path = Path(path)
    content = read(path)
    weights, note = choose(find(content, path), key, path)
    if note:
        log.warning("%s", note)
    payload = _payload(content, weights)
    try:
        if model is not None:
            return _into(unwrap(model), weights, payload)
        if payload is None:
            raise CheckpointError(
                f"the weights describe no model (the first is '{next(iter(weights.tensors))}'): say which it is "
                "(--model torchvision:NAME or package.module:factory; in Python load(path, model=...))"
            )
        found, notes = rebuild(payload, weights.tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__
    for sentence in notes:
        log.warning("%s: %s", path, sentence)
    return found


def _description(model: nn.Module, example_input: ExampleInput | None) -> dict[str, Any]:
    inputs = inputs_for(model, example_input, who="save")
    known = origin_of(model)
    origin = Origin(specs(inputs), known.model if known else None, known.preprocessing if known else {})
    try:
        return describe(model, capture(model, len(inputs)), origin)
    except CaptureError as error:
        return describe(model, _no_graph(), origin) | {"graph": None, "why": str(error)}


def _no_graph() -> Any:
    graph = torch.fx.Graph()
    graph.output(())
    return torch.fx.GraphModule(nn.Module(), graph)


def _payload(content: Any, weights: Weights) -> Mapping[str, Any] | None:
    """The description of the model: in the record of its first block, or beside the weights of a plain network."""
    if weights.described is not None:
        found = record.decode(weights.tensors[weights.described], weights.described)["model"]
        return found if isinstance(found, dict) else None
    beside = content.get(RECORD) if isinstance(content, dict) else None
    if isinstance(beside, Tensor) and record.is_record(beside):
        found = record.decode(beside, RECORD).get("model")
        return found if isinstance(found, dict) else None
    return None


def _into(model: nn.Module, weights: Weights, payload: Mapping[str, Any] | None) -> nn.Module:
    """The weights in the user's own class; blocks that it lacks are built from their records."""
    if not sites(model):
        for key, value in weights.tensors.items():
            if key.endswith(f".{EXTRA}") and record.is_record(value):
                _insert(model, key.removesuffix(f".{EXTRA}"), value)
    shared = payload.get("shared", {}) if payload else {}
    tensors: dict[str, Tensor] = dict(weights.tensors)
    for key, name in shared.items():
        if name in tensors:
            tensors.setdefault(key, tensors[name])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise CheckpointError(f"the weights do not fit {type(model).__name__}: {lines[0][:300]}") from None
    if payload:
        remember(model, origin_from_json(payload))
    return model.eval()


def _insert(model: nn.Module, name: str, value: Tensor) -> None:
    from nbcompile.expansion import put

    try:
        layer = model.get_submodule(name)
    except AttributeError:
        raise CheckpointError(
            f"the file has an expansion block at '{name}', where {type(model).__name__} has no layer"
        ) from None
    if isinstance(layer, Expanded):
        return  # an alias of a site that is in place already
    put(model, layer, Expanded.from_record(value, name, layer))
