"""Write a deploy file: ``nbcompile.export(tiny, "tiny.onnx", example_input)``."""

import inspect
from collections.abc import Callable, Collection
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nbcompile.core.blocks import sites
from nbcompile.core.copies import working_copy
from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.core.example import ExampleInput, inputs_for
from nbcompile.core.files import check_target
from nbcompile.core.progress import step
from nbcompile.core.wrappers import require_loaded, unwrap
from nbcompile.deploy.deploy_form import deploy
from nbcompile.deploy.outputs import require_outputs
from nbcompile.deploy.repeatable import require_repeatable
from nbcompile.deploy.single_precision import in_float32
from nbcompile.exporters import Format, format_of, imported
from nbcompile.exporters.base import ExportResult
from nbcompile.wide.giants import refuse_wide


def export(
    model: nn.Module, path: str | PathLike[str], example_input: ExampleInput | None = None, **options: Any
) -> ExportResult:
    """Write ``model`` to ``path`` in the format that the extension names, checked before the file gets its name.

    ``.onnx`` holds the deploy form: eval mode, norms folded, run in ONNX Runtime and compared with ``model``.
    ``.tflite`` holds it quantized, run in LiteRT and TFLite Micro: see `nbcompile.deploy.to_device`.
    Both compute in float32, whatever the network does. ``.pt`` and ``.safetensors`` hold the plain state_dict.
    ``model`` itself is left as it is.

    Args:
        model: a network without expansion blocks, such as `nbcompile.fuse` returns; wrappers are seen through.
        path: the output file; what it held before stays until the new file is complete.
        example_input: one tensor or a tuple of them, batch first; None where the model remembers it. Formats that
            hold weights only do not need it.
        options: of the format. ``.onnx``: ``opset`` (None: the exporter's default), ``batch`` (the one batch size that
            the file takes; None: any), ``dynamic_batch`` (True; else that of ``example_input``). ``.tflite``: those of
            `nbcompile.deploy.to_device.export_tflite`, ``calibration`` first of all.

    Raises:
        UsageError: if ``path`` cannot be written, its extension or an option is unknown, a package is missing, or
            there is no example input.
        PreconditionError: if ``model`` is a giant, has weights that are not finite, gives no real tensors, or gives
            another output when it is called again.
        ExportError: if the format cannot express the model, or the file does not give the same outputs.
    """
    path = Path(path)
    check_target(path)
    form = format_of(path)
    check_options(form, options)
    model = unwrap(model)
    _refuse_giant(model)
    require_loaded(model, "export")
    _refuse_not_finite(model)
    model = working_copy(model, training=False).cpu()
    with step(f"writing {path.name}"):
        if not form.graph:
            return form.exporter()(model, (), path, **options)
        inputs = inputs_for(model, example_input, who="export")
        require_outputs(model, inputs)
        require_repeatable(model, inputs)
        model, inputs, note = in_float32(model, inputs)
        result: ExportResult
        if form.pipeline is not None:
            result = imported(form.pipeline)(model, inputs, path, **options)
        else:
            result = form.exporter()(deploy(model, inputs), inputs, path, reference=model, **options)
        return replace(result, notes=(*result.notes, note)) if note else result


def check_options(form: Format, options: Collection[str]) -> None:
    """Raise UsageError if one of ``options`` is not an option of files of this format."""
    write: Callable[..., Any] = form.exporter()  # whatever the options are: it says which package is missing
    if form.pipeline is not None:
        write = imported(form.pipeline)
    parameters = inspect.signature(write).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "reference"]
    for option in options:
        if option not in known:
            raise UsageError(
                f"'{option}' is not an option of {form.suffix} files; they have {', '.join(known) or 'none'}"
            )


def _refuse_giant(model: nn.Module) -> None:
    refuse_wide(model, "export", "export what nbcompile.fuse(model) returns; nbcompile.save keeps a giant")
    blocks = sites(model)
    if blocks:
        raise PreconditionError(
            f"{type(model).__name__} still has {len(blocks)} expansion blocks (the first is '{next(iter(blocks))}'): "
            f"export what nbcompile.fuse(model) returns; nbcompile.save keeps a giant"
        )


def _refuse_not_finite(model: nn.Module) -> None:
    """A NaN anywhere, or an infinite parameter, spreads to every output; masks may hold infinities as buffers."""
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, x in tensors:
            bad = x.isnan() if kind == "buffer" else ~torch.isfinite(x)
            if count := int(bad.sum()):
                raise PreconditionError(
                    f"{kind} '{name}' has {count:,} of {x.numel():,} values that are NaN or infinite: "
                    f"the training diverged; go back to an earlier checkpoint"
                )
