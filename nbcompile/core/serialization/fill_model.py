"""The weights of a file in the user's own class: expansion blocks that it lacks are built from their records."""

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from nbcompile.core import record
from nbcompile.core.blocks import Expanded, check_absorbers, sites
from nbcompile.core.errors import CheckpointError
from nbcompile.core.graph.replace import put
from nbcompile.core.layers import LayerSpec, why_no_layer
from nbcompile.core.serialization.bounds import bounded
from nbcompile.core.serialization.weight_files import EXTRA
from nbcompile.core.width.widths import RecordingPart, widths_of
from nbcompile.core.words import class_of


def filled(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """``model`` with ``tensors`` in it.

    Raises:
        CheckpointError: if they do not fit.
    """
    if not sites(model) and widths_of(model) is None:
        _insert(model, tensors)
    for name, module in model.named_modules():  # a trainer may drop or damage what is no weight
        if isinstance(module, Expanded | RecordingPart) and not _sound(tensors.get(f"{name}.{EXTRA}")):
            tensors = {**tensors, f"{name}.{EXTRA}": module.get_extra_state()}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise CheckpointError(f"the weights do not fit {class_of(model)}: {lines[0][:300]}") from None
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
