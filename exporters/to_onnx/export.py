"""Write ONNX: one file, dynamic batch, run in ONNX Runtime before it gets its name.

    deploy form -> torch.export -> torch.onnx (dynamo) -> constant folding -> onnxsim -> check -> file

Weights keep the names of the layers (``features.0.0.weight``). If onnxsim fails, or what it gives is not the same
function, the file is written without it and the result says so.
"""

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxsim
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from nbcompile import __version__
from nbcompile.core.errors import ExportError, UsageError
from nbcompile.core.example import Inputs
from nbcompile.core.files import atomic
from nbcompile.core.input_files import require_written
from nbcompile.core.judging.compared import Allowed
from nbcompile.core.judging.judgment import judge
from nbcompile.core.numerics import TOLERANCE, flatten, relative_error
from nbcompile.core.progress import step
from nbcompile.core.words import first_line
from nbcompile.exporters.base import ExportResult, require_batch
from nbcompile.exporters.to_onnx.blame import first_difference
from nbcompile.exporters.to_onnx.check import ONE_BATCH, Case, cases, onnx_outputs, resized
from nbcompile.exporters.to_onnx.graph import aten_graph, onnx_graph, quiet_exporter
from nbcompile.exporters.to_onnx.layers import layer_names

_LARGEST = 2**31 - 1  # bytes of a protobuf message
_SKIPPED = (
    "eliminate_duplicate_initializer",  # equal weights of two layers stay two, each with its layer's name
    *("fuse_bn_into_conv", "fuse_add_bias_into_conv"),  # what the passes left alone would lose names, and get biases
)


def write_onnx(
    graph: nn.Module,
    inputs: Inputs,
    path: Path,
    *,
    reference: nn.Module | None = None,
    opset: int | None = None,
    dynamic_batch: bool = True,
    batch: int | None = None,
) -> ExportResult:
    """Write ``graph`` as ONNX; see `base.Exporter`.

    Args:
        graph: on the CPU, in eval mode.
        inputs: example, batch first; those whose first dimension is that of the first input share the batch.
        path: the output file.
        reference: the model whose outputs the file must give; None: ``graph`` itself.
        opset: ONNX operator set; None: the exporter's default.
        dynamic_batch: whether the file takes any batch size; else it takes that of ``inputs`` only.
        batch: the one batch size that the file takes, whatever ``inputs`` and ``dynamic_batch`` say; None: as they say.

    Raises:
        ExportError: if the graph cannot be expressed, or ONNX Runtime does not give the same outputs.
        UsageError: if the file cannot be written, ``inputs`` holds no sample, or ``batch`` is below 1.
    """
    started = time.perf_counter()
    if any(x.numel() == 0 for x in inputs):
        raise UsageError("the example input holds no sample; exporting needs at least one")
    if batch is not None:
        require_batch(batch)
        inputs, dynamic_batch = resized(inputs, batch), False
    reference = graph if reference is None else reference
    with step("running the network in PyTorch"):
        checked = cases(reference, inputs, dynamic_batch)
    with quiet_exporter():
        plain = onnx_graph(graph, inputs, output=checked[0].output, opset=opset, dynamic_batch=dynamic_batch)
        if plain.ByteSize() > _LARGEST:
            raise ExportError(f"{path}: the graph has {plain.ByteSize():,} bytes; an ONNX file holds {_LARGEST:,}")
        with step("simplifying it"):
            candidates, note = _simplified(plain)
    with step("naming its weights"):
        weights = graph.state_dict()
        places = _places(plain, weights)
        for candidate in candidates:
            _name_weights(candidate, weights)
            _name_by_place(candidate, places)
            _describe(candidate)

    def where(limit: float) -> str:
        program, inputs_ = aten_graph(graph, inputs, dynamic_batch), checked[int(dynamic_batch)].inputs
        return first_difference(program, candidates[-1], inputs_, limit)

    with step("comparing it with PyTorch in ONNX Runtime"), atomic(path) as temporary:
        chosen, digest, error, limit = _keep(candidates, temporary, path, checked, reference, where)
        size = temporary.stat().st_size
        require_written(path, digest, temporary)
    if chosen is not candidates[0]:
        note = "what onnxsim made of the graph was not the same function, so the file is not simplified"
    why = f"its outputs may differ from PyTorch's by {limit.error:.0e}: {limit.why}" if limit.why else ""
    return ExportResult(
        path=path,
        format="onnx",
        bytes=size,
        sha256=digest,
        error=error,
        tolerance=limit.error,
        versions=_versions(chosen),
        notes=tuple(filter(None, (note, why))),
        seconds=time.perf_counter() - started,
    )


def _simplified(plain: ModelProto) -> tuple[list[ModelProto], str]:
    """The graphs to try, the best first, and what there is to say about them."""
    try:
        simple, sound = _stored(*onnxsim.simplify(plain, skipped_optimizers=list(_SKIPPED)))
        if sound and _weights(simple) > _weights(plain):  # what is beside a layer that is called twice went into copies
            simple, sound = _stored(*onnxsim.simplify(plain, perform_optimization=False))
    except Exception as error:  # a simplifier may fail in any way; the file can do without it
        return [plain], f"onnxsim failed ({first_line(error)}), so the file is not simplified"
    if not sound:
        return [plain], "onnxsim's own check failed, so the file is not simplified"
    return [simple, plain], ""


def _stored(model: ModelProto, sound: bool) -> tuple[ModelProto, bool]:
    """``model`` with the tensors of its nodes, which is what has been folded, among those that are stored."""
    for node in [node for node in model.graph.node if node.op_type == "Constant" and node.attribute[0].HasField("t")]:
        model.graph.initializer.append(node.attribute[0].t)
        model.graph.initializer[-1].name = node.output[0]
        model.graph.node.remove(node)
    return model, sound


def _weights(model: ModelProto) -> int:
    """Numbers that the weights of layers have in a file of ``model``: sizes, axes and biases are no weights."""
    return sum(math.prod(x.dims) for x in model.graph.initializer if len(x.dims) > 1)


def _keep(
    candidates: list[ModelProto],
    temporary: Path,
    path: Path,
    checked: list[Case],
    reference: nn.Module,
    where: Callable[[float], str],
) -> tuple[ModelProto, str, float, Allowed]:
    """Write the first of ``candidates`` that gives PyTorch's outputs; its digest, relative error, and what that may be.

    ``where`` tells where the last of them first differs by more than that.
    """
    expected = [(case.inputs, case.outputs) for case in checked]
    for candidate in candidates:
        content = candidate.SerializeToString()
        temporary.write_bytes(content)
        try:
            outputs = onnx_outputs(temporary, [case.inputs for case in checked])
        except ExportError:
            if candidate is candidates[-1]:
                raise
            continue
        judgment = judge(reference, expected, outputs, least=TOLERANCE[torch.float32], read=flatten)
        limit = judgment.limit
        if judgment.passed:
            return candidate, hashlib.sha256(content).hexdigest(), judgment.error, limit
    batch = "" if limit.why else _batch_to_blame(outputs, checked, limit.error)
    raise ExportError(
        f"{path}: ONNX Runtime and PyTorch differ by a relative error of {judgment.error:.2g}{judgment.place} on "
        f"random inputs, and {limit} is allowed{'' if batch or limit.why else where(limit.error)}; no file was "
        f"kept{batch}"
    )


def _batch_to_blame(outputs: list[list[Tensor]], checked: list[Case], limit: float) -> str:
    """That a file is right at some batch sizes only, if it is, and what to do."""
    sizes = [case.inputs[0].shape[:1].numel() for case in checked]
    errors = [relative_error(y, case.outputs) for y, case in zip(outputs, checked, strict=True)]
    wrong = {size for size, error in zip(sizes, errors, strict=True) if error > limit}
    if wrong in (set(), set(sizes)):  # none: what differs is small beside the rest
        return ""
    right = ", ".join(map(str, sorted(set(sizes) - wrong)))
    return (
        f". It is right at batch {right} and wrong at {', '.join(map(str, sorted(wrong)))}: forward goes another way "
        f"there; write it for all batch sizes, or export at one: {ONE_BATCH}"
    )


def _name_weights(model: ModelProto, weights: Mapping[str, Tensor]) -> None:
    """Give transposed weights, which folding names ``val_3``, the names that they have in the state_dict."""
    present = {tensor.name for tensor in model.graph.initializer}
    missing = {name: w.numpy() for name, w in weights.items() if w.ndim == 2 and name not in present}
    renamed: dict[str, str] = {}
    for tensor in model.graph.initializer:
        if tensor.name in weights or len(tensor.dims) != 2:
            continue
        value = numpy_helper.to_array(tensor)
        for name, weight in missing.items():
            if any(np.array_equal(value, w) for w in (weight, weight.T)):
                renamed[tensor.name] = name
                tensor.name = name
                del missing[name]
                break
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def _places(model: ModelProto, weights: Mapping[str, Tensor]) -> dict[tuple[str, int], str]:
    """Which of ``weights`` a layer of ``model`` reads, by the name of its node and the place among its inputs."""
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    return {(node.name, i): name for node in layers for i, name in enumerate(node.input) if name in weights}


def _name_by_place(model: ModelProto, places: Mapping[tuple[str, int], str]) -> None:
    """Give weights that a factor behind their layer went into the names of those that were there before."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    reads = Counter(name for node in model.graph.node for name in node.input)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            known = places.get((node.name, i))
            if known is not None and known not in stored and reads[name] == 1 and name in stored:
                stored[name].name = node.input[i] = known


def _describe(model: ModelProto) -> None:
    """Say who wrote the file; the tools' own notes, which hold paths of this machine, go."""
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    model.graph.ClearField("metadata_props")
    model.producer_name, model.producer_version = "nbcompile", __version__
    notes = {
        "nbcompile": __version__,
        "opset": str(_versions(model)["opset"]),
        "layers": json.dumps(layer_names(model)),
    }
    onnx.helper.set_model_props(model, notes)


def _versions(model: ModelProto) -> dict[str, str | int]:
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return {
        "opset": opset,
        "ir": model.ir_version,
        "torch": torch.__version__,
        "onnxsim": onnxsim.__version__.lstrip("v"),
        "onnxruntime": onnxruntime.__version__,
    }
