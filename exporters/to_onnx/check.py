"""Run an ONNX file in ONNX Runtime and compare it with PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from nbcompile.core.errors import ExportError
from nbcompile.core.example import Inputs, random_inputs, specs
from nbcompile.core.numerics import flatten
from nbcompile.core.running import output_of

BATCHES = (1, 3, 1, 3)
"""Batch sizes of the check: the smallest, and one that no tracing ever saw; each with inputs of its own."""

ONE_BATCH = "batch=1, on the command line --batch 1"
"""How to ask for a file that takes one batch size only."""

_ERRORS_ONLY = 3
"""Log severity of ONNX Runtime."""

EXACT_INT8 = "session.x64quantprecision"
"""Entry of ONNX Runtime's session configuration: on x86 without VNNI, sums of products of bytes do not saturate."""


@dataclass(frozen=True)
class Case:
    """Inputs, and what PyTorch gives for them."""

    inputs: Inputs
    output: Any

    @property
    def outputs(self) -> list[Tensor]:
        """The tensors of ``output``."""
        return flatten(self.output)


def cases(reference: nn.Module, inputs: Inputs, dynamic_batch: bool) -> list[Case]:
    """Seeded random inputs, with the outputs of ``reference``: at several batch sizes, or only at that of ``inputs``.

    Raises:
        ExportError: if ``reference`` does not run on them, or gives NaN.
    """
    batches = BATCHES if dynamic_batch else (inputs[0].shape[:1].numel(),) * 2
    return [_case(reference, resized(inputs, batch, seed)) for seed, batch in enumerate(batches)]


def session_options(*, exact_int8: bool = True) -> onnxruntime.SessionOptions:
    """Of a session that logs nothing but errors.

    Args:
        exact_int8: compute int8 layers as ARM and x86 with VNNI do. Left to itself, ONNX Runtime adds pairs of products
            in 16 bits on x86 without VNNI, where they saturate.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry(EXACT_INT8, str(int(exact_int8)))
    return options


def onnx_outputs(path: Path, calls: Sequence[Inputs], *, exact_int8: bool = True) -> list[list[Tensor]]:
    """The outputs of a file for the inputs of each call, in the order of the graph.

    Args:
        path: of the file.
        calls: inputs of each.
        exact_int8: as of :func:`session_options`.

    Raises:
        ExportError: if ONNX Runtime cannot load or run the file.
    """
    options = session_options(exact_int8=exact_int8)
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        if len(names) != len(calls[0]):
            raise ExportError(f"{path} takes {len(names)} inputs ({', '.join(names)}), and {len(calls[0])} are given")
        runs = [session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)}) for inputs in calls]
    except ExportError:
        raise
    except Exception as error:  # ONNX Runtime raises many kinds, RuntimeError their only common base
        raise ExportError(f"ONNX Runtime cannot run the exported graph: {str(error).splitlines()[0]}") from error
    return [[torch.as_tensor(y) for y in run] for run in runs]


def has_batch(x: Tensor, inputs: Inputs) -> bool:
    """Whether the first dimension of ``x`` is the batch, which is that of the first input."""
    return bool(x.ndim and inputs[0].ndim and len(x) == len(inputs[0]))


def resized(inputs: Inputs, batch: int, seed: int | None = None) -> Inputs:
    """``inputs`` at another batch size; those without a batch stay as they are.

    Floating-point values are drawn anew from ``seed``. Without a seed, and in other dtypes (token numbers, masks),
    the samples of ``inputs`` are repeated in turn.
    """
    drawn = inputs if seed is None else random_inputs(specs(inputs), seed=seed, batch=batch)
    made = []
    for x, new in zip(inputs, drawn, strict=True):
        if not has_batch(x, inputs):
            made.append(x)
        elif seed is not None and x.is_floating_point():
            made.append(new)
        else:
            made.append(x[torch.arange(batch) % len(x)])
    return tuple(made)


def _case(reference: nn.Module, inputs: Inputs) -> Case:
    shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
    try:
        case = Case(inputs, output_of(reference, inputs))
    except RuntimeError as error:
        raise ExportError(
            f"the model does not run on inputs of shape {shapes}: {str(error).splitlines()[0]}; "
            f"if it takes one batch size only, export at that: {ONE_BATCH}"
        ) from error
    for i, output in enumerate(case.outputs):
        nan = int(output.isnan().sum())
        if nan:
            raise ExportError(
                f"output {i} of the model has {nan:,} NaN of {output.numel():,} values on random inputs of shape "
                f"{shapes}: its file could not be checked"
            )
    return case
