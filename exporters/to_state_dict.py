"""Write the weights alone: ``.pt`` or ``.safetensors``.

Both hold the plain state_dict, so that ``model.load_state_dict`` of the original class takes it. A ``.pt`` is what
``torch.load(path, weights_only=True)`` reads.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from nbcompile.core.errors import ExportError
from nbcompile.core.example import Inputs
from nbcompile.core.files import atomic
from nbcompile.core.input_files import require_written, sha256_of
from nbcompile.core.progress import step
from nbcompile.exporters.base import ExportResult


def write_state_dict(
    graph: nn.Module, inputs: Inputs, path: Path, *, reference: nn.Module | None = None
) -> ExportResult:
    """Write the state_dict of ``graph`` in torch's own format, read it back and compare every bit; see `base.Exporter`.

    Args:
        graph: the model whose weights are written.
        inputs: not used: weights have no inputs.
        path: the output file.
        reference: not used: the weights are compared with those of ``graph``.

    Raises:
        ExportError: if the state_dict holds something other than tensors, or what is read back is not equal.
        UsageError: if the file cannot be written.
    """
    return _written(graph, path, safe=False)


def write_safetensors(
    graph: nn.Module, inputs: Inputs, path: Path, *, reference: nn.Module | None = None
) -> ExportResult:
    """As :func:`write_state_dict`, in the format of safetensors."""
    return _written(graph, path, safe=True)


def _written(graph: nn.Module, path: Path, *, safe: bool) -> ExportResult:
    started = time.perf_counter()
    weights = _weights(graph)
    with step("writing and reading back the weights"), atomic(path) as temporary:
        if safe:
            # This format refuses shared and strided tensors: every key gets bytes of its own.
            own = {key: x.clone(memory_format=torch.contiguous_format) for key, x in weights.items()}
            # Not save_file: it makes a file of its own, that only its owner can read.
            temporary.write_bytes(safetensors.torch.save(own, metadata={"format": "pt"}))
            digest = sha256_of(temporary)
            back = safetensors.torch.load_file(temporary)
        else:
            with temporary.open("wb") as file:  # not its name: torch hides why a disk takes no more
                torch.save(weights, file)
            digest = sha256_of(temporary)
            back = torch.load(temporary, map_location="cpu", weights_only=True)
        _compare(back, weights, path)
        size = temporary.stat().st_size
        require_written(path, digest, temporary)
    return ExportResult(
        path=path,
        format="safetensors" if safe else "state_dict",
        bytes=size,
        sha256=digest,
        error=0.0,
        tolerance=0.0,
        versions={"torch": torch.__version__} | ({"safetensors": safetensors.__version__} if safe else {}),
        seconds=time.perf_counter() - started,
    )


def _weights(model: nn.Module) -> dict[str, Tensor]:
    weights = {key: value.detach() if isinstance(value, Tensor) else value for key, value in model.state_dict().items()}
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            raise ExportError(
                f"the state_dict entry '{key}' is of type {type(value).__name__}, not a tensor: "
                f"a file of plain weights cannot hold it"
            )
    return weights


def _compare(back: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise ExportError unless both hold the same keys and the same bits."""
    if back.keys() != weights.keys():
        raise ExportError(f"{path}: the keys that were read back are not those that were written; no file was kept")
    for key, value in weights.items():
        # As bytes: NaN must equal NaN, and -0.0 is not 0.0.
        if back[key].dtype != value.dtype or back[key].shape != value.shape or _bytes(back[key]) != _bytes(value):
            raise ExportError(f"{path}: '{key}' was not read back as it was written; no file was kept")


def _bytes(x: Tensor) -> bytes:
    return x.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if x.numel() else b""
