"""What is known of a ``.tflite`` file when it is written."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nbcompile.exporters.base import ExportResult
from nbcompile.exporters.to_tflite.file.options import Limits, Recipe
from nbcompile.exporters.to_tflite.file.ports import Port
from nbcompile.exporters.to_tflite.memory.search import Way
from nbcompile.exporters.to_tflite.run.agreement import Agreement
from nbcompile.exporters.to_tflite.run.arena import Arena
from nbcompile.exporters.to_tflite.run.errors_by_layer import LayerError
from nbcompile.exporters.to_tflite.targets.cycles import Estimate


@dataclass(frozen=True)
class Attempt:
    """A way to quantize the network that was tried.

    Attributes:
        how: what was done to the network before.
        sqnr: signal over noise of its outputs in LiteRT against PyTorch's, dB: over all samples that the choice is by,
            those that calibrate, too.
        float_sqnr: the same before quantizing: what the change itself costs.
    """

    how: str
    sqnr: float
    float_sqnr: float


@dataclass(frozen=True, kw_only=True)
class TfliteResult(ExportResult):
    """A ``.tflite`` file that was run in its interpreters.

    ``error`` and ``tolerance`` are root mean square errors over root mean squares: ``10 ** (-SQNR / 20)``.

    Attributes:
        recipe: how it stores its numbers.
        micro: whether it is for TFLite Micro.
        agreements: with PyTorch, one per interpreter.
        unseen: how many of the samples that they are measured on did not calibrate.
        in_float: layers of a file for integers that compute in float32 all the same; none: it is full-integer.
        inputs: name, shape and layout of each.
        outputs: likewise.
        layers: of a file with quantized activations, in order.
        arena: what it needs under TFLite Micro.
        limits: that it kept.
        ways: to arrange its memory, from the file as it was converted to the least memory; none without ``micro``.
        way: the one that was taken.
        tried: every way to quantize the network, in order.
        chosen: which of them was taken, in words.
        macs: multiply-accumulates of the network's layers, if known.
        executed_macs: those that the file performs; more where zero taps save memory.
        companions: files that were written beside it.
        estimate: how long it takes on microcontrollers; None without ``micro``.
    """

    recipe: Recipe
    micro: bool
    agreements: tuple[Agreement, ...]
    unseen: int
    in_float: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[LayerError, ...]
    arena: Arena
    limits: Limits
    tried: tuple[Attempt, ...]
    chosen: str
    ways: tuple[Way, ...] = ()
    way: Way | None = None
    macs: int | None = None
    executed_macs: int | None = None
    companions: tuple[Path, ...] = ()
    estimate: Estimate | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields in plain JSON types; of the arena its totals."""
        arena = {name: getattr(self.arena, name) for name in ("head", "tail", "needed", "flash", "peak_layer")}
        plain = {name: value for name, value in asdict(self).items() if name not in ("arena", "layers", "ways", "way")}
        return plain | {
            "path": str(self.path),
            "notes": list(self.notes),
            "arena": arena,
            "companions": [str(path) for path in self.companions],
        }
