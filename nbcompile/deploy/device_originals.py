"""What a ``.tflite`` file is compared with: a network or another file (`nbcompile.deploy.device_verification`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nbcompile.core.copies import working_copy
from nbcompile.core.cost import cost
from nbcompile.core.example import ExampleInput, Inputs, change_tensors, inputs_for, origin_of
from nbcompile.core.numerics import flatten
from nbcompile.core.running import output_of
from nbcompile.core.tracing.call import names_of_inputs
from nbcompile.core.wrappers import require_loaded, unwrap
from nbcompile.deploy.deploy_form import deploy
from nbcompile.deploy.single_precision import in_float32
from nbcompile.exporters.to_tflite.comparison import FileOnDisk, PortShapes
from nbcompile.exporters.to_tflite.file.inspect import tflite_input_sizes, tflite_layers, tflite_weights
from nbcompile.exporters.to_tflite.file.ports import stored_order
from nbcompile.exporters.to_tflite.run.interpreters import Sample, run_file
from nbcompile.results.layer_costs import original_of
from nbcompile.wide.giants import is_giant


@dataclass(frozen=True)
class Original:
    """What a file is compared with.

    Attributes:
        inputs: their shapes, in the file's layout where they fit it.
        outputs: the same of the outputs.
        macs: multiply-accumulates of a sample.
        params: elements that the file's weights may have.
        example: inputs in PyTorch's layout, at batch size 1.
        run: from samples in the file's layout, and an interpreter, to outputs in it, as numbers.
        preprocessing: how images become inputs, as far as that is known.
        names: of the inputs, as far as they are known.
        file: None where it is a network.
    """

    inputs: PortShapes
    outputs: PortShapes
    macs: int
    params: int
    example: Inputs
    run: Callable[[Sequence[Sample], str], list[Sample]]
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    names: Sequence[str] = ()
    file: FileOnDisk | None = None


def original_file(path: Path) -> Original:
    """The file at ``path``.

    Raises:
        CheckpointError: if it cannot be read.
    """
    disk = FileOnDisk.read(path)

    def run(samples: Sequence[Sample], kernels: str) -> list[Sample]:
        return run_file(disk.content, samples, kernels=kernels)

    macs = sum(layer.macs for layer in tflite_layers(path))
    weights = tflite_weights(disk.file)
    return Original(disk.input_shapes, disk.output_shapes, macs, weights, _examples(disk), run, file=disk)


def original_network(reference: nn.Module, example_input: ExampleInput | None, file: FileOnDisk) -> Original:
    """A network; a giant stands for its outputs, and for its original's cost.

    Args:
        reference: left as it is.
        example_input: None: as the network remembers, or else of the sizes of the file's inputs.
        file: what is compared with it.

    Raises:
        UsageError: if it does not run on the example.
    """
    reference = unwrap(reference)
    require_loaded(reference, "verify")
    origin = origin_of(reference)
    if example_input is None and origin is None:
        example_input = _examples(file)
    example = inputs_for(reference, example_input, who="verify")
    example = change_tensors(lambda x: x[:1].cpu() if x.ndim else x.cpu(), example)
    architecture = original_of(reference) if is_giant(reference) else reference
    found = cost(deploy(architecture, example), example)
    model, example, _ = in_float32(working_copy(reference, training=False).cpu(), example)
    inputs = [_order(x, shape) for x, shape in _longest(example, file.input_shapes)]
    made = flatten(output_of(model, example))
    outputs = [_order(y, shape) for y, shape in _longest(made, file.output_shapes)]

    def run(samples: Sequence[Sample], kernels: str) -> list[Sample]:
        results = []
        for sample in samples:
            given = tuple(
                _from_file(x, *pair) for x, pair in zip(sample, zip(example, inputs, strict=True), strict=True)
            )
            results.append(tuple(map(_to_file, flatten(output_of(model, given)), outputs)))
        return results

    prepared = {name: x for name, x in (origin.preprocessing if origin else {}).items() if name != "boxes"}
    return Original(
        _ordered(example, inputs), _ordered(made, outputs), found.macs, found.params, example, run, prepared,
        names_of_inputs(reference),
    )  # fmt: skip


def _examples(file: FileOnDisk) -> Inputs:
    """Zeros in PyTorch's layout: float32, or whole numbers where these stand for themselves."""
    made = []
    for size, index in zip(tflite_input_sizes(file.path), file.file.inputs, strict=True):
        tensor = file.file.tensors[index]
        own = tensor.quantization is None and tensor.dtype.kind != "f"
        made.append(torch.from_numpy(np.zeros(size, tensor.dtype if own else np.float32)))
    return tuple(made)


def _longest(values: Sequence[Tensor], shapes: PortShapes) -> list[tuple[Tensor, tuple[int, ...]]]:
    """Each value with the shape in its place, which may be none."""
    return [(x, shapes[i] if i < len(shapes) else ()) for i, x in enumerate(values)]


def _order(x: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The order of PyTorch's dimensions in a file that has ``shape``: as our files have them, or as they are."""
    ours = stored_order(x.ndim)
    return ours if tuple(x.shape[d] for d in ours) == shape else tuple(range(x.ndim))


def _ordered(values: Sequence[Tensor], orders: Sequence[tuple[int, ...]]) -> PortShapes:
    return tuple(tuple(x.shape[d] for d in order) for x, order in zip(values, orders, strict=True))


def _to_file(x: Tensor, order: Sequence[int]) -> np.ndarray:
    """``x`` in the order of a file."""
    made: np.ndarray = x.detach().permute(*order).contiguous().numpy()
    return made


def _from_file(x: np.ndarray, like: Tensor, order: Sequence[int]) -> Tensor:
    back = np.argsort(order).tolist()
    return torch.from_numpy(np.ascontiguousarray(x)).permute(*back).contiguous().to(like.dtype)


def stored_inputs(inputs: Inputs, shapes: PortShapes) -> Sample:
    """Inputs in PyTorch's layout as a file has them whose inputs have ``shapes``."""
    return tuple(_to_file(x, _order(x, shape)) for x, shape in _longest(inputs, shapes))
