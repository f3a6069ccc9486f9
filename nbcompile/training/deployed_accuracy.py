"""Accuracy of the files that will be deployed, each in its own runtime, on the images that the run was measured on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nbcompile.core.errors import NBCompileError, UsageError
from nbcompile.deploy.export import export
from nbcompile.training.loader import BatchOrder, Loader
from nbcompile.training.seeds import seed_everything

if TYPE_CHECKING:
    from nbcompile.training.data.base import Data
    from nbcompile.training.options.config import TrainConfig

CALIBRATION = 200
"""Images of the training set that calibrate the int8 file."""

_BATCH = 100

Runner = Callable[[Tensor], Any]
"""Images ``(N, C, H, W)`` to logits ``(N, K)``, or a tuple of maps."""


@dataclass(frozen=True)
class Deployed:
    """What was measured.

    Attributes:
        onnx: accuracy of ``tiny.onnx`` in ONNX Runtime, in [0, 1]; None where it could not be had.
        int8: of ``tiny.tflite`` in LiteRT; likewise.
        notes: why not.
    """

    onnx: float | None = None
    int8: float | None = None
    notes: tuple[str, ...] = ()


NOT_CHECKED = Deployed()


def check_files(tiny: nn.Module, data: "Data", config: "TrainConfig", folder: Path) -> Deployed:
    """Write ``tiny.onnx`` and ``tiny.tflite`` (int8) into ``folder``, and measure those that can be written.

    Args:
        tiny: the fused network.
        data: gives the images to measure and to calibrate on.
        config: gives the seed of the calibration images' augmentation, and ``num_workers``.
        folder: of the run.
    """
    tiny = tiny.cpu()
    example = torch.zeros(1, *data.shape)
    notes: list[str] = []

    def measured(start: Callable[[], Runner], name: str) -> float | None:
        try:
            return _accuracy(start(), data, config)
        except NBCompileError as error:
            notes.append(f"{name} is not measured: {error}")
            return None

    def onnx() -> Runner:
        return _onnx_runner(export(tiny, folder / "tiny.onnx", example).path)

    def int8() -> Runner:
        images = calibration_images(data, config)
        return _int8_runner(export(tiny, folder / "tiny.tflite", example, calibration=images).path)

    return Deployed(measured(onnx, "tiny.onnx"), measured(int8, "tiny.tflite"), tuple(notes))


def _accuracy(run: Runner, data: "Data", config: "TrainConfig") -> float:
    order = BatchOrder(len(data.val), _BATCH, seed=None)
    score = data.task.score()
    for images, labels, _ in Loader(data.val, order, config.num_workers, lambda batch: batch).epoch(0):
        score.add(run(images.cpu()), labels.cpu())
    return score.result(lambda *numbers: list(numbers))


def calibration_images(data: "Data", config: "TrainConfig") -> Tensor:
    """Training images, evenly chosen, ``(N, C, H, W)``."""
    count = min(CALIBRATION, len(data.train))
    seed_everything(config.seed, config.epochs)
    found = data.train[[i * len(data.train) // count for i in range(count)]]
    if isinstance(found, UsageError):
        raise found
    return found[0].cpu()


def _onnx_runner(path: Path) -> Runner:
    import onnxruntime  # export has run the file in it

    from nbcompile.exporters.to_onnx.check import session_options

    session = onnxruntime.InferenceSession(path, session_options(), providers=["CPUExecutionProvider"])
    (port,) = session.get_inputs()
    return lambda images: _outputs([torch.as_tensor(x) for x in session.run(None, {port.name: images.numpy()})])


def _int8_runner(path: Path) -> Runner:
    from nbcompile.exporters.to_tflite.run.interpreters import run_file

    content = path.read_bytes()

    def runner(images: Tensor) -> Any:
        samples = [(x.movedim(0, -1)[None].contiguous().numpy(),) for x in images]  # channels last
        columns = zip(*run_file(content, samples), strict=True)
        outputs = [torch.cat([torch.from_numpy(y) for y in column]) for column in columns]
        return _outputs([x.movedim(-1, 1) if x.ndim == 4 else x for x in outputs])

    return runner


def _outputs(found: list[Tensor]) -> Any:
    """One tensor as it is, several as a tuple."""
    return found[0] if len(found) == 1 else tuple(found)
