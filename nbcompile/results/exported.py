"""What a report holds about a file for a device, from the result of its export."""

from collections.abc import Iterator
from typing import Any

from nbcompile.exporters.to_tflite.file.options import INTERPRETERS
from nbcompile.results.device import Device, Interpreter, QuantizedRow, TensorRow
from nbcompile.results.memory_ways import ways_of
from nbcompile.results.timing import timing_of


def device_of(result: Any) -> Device | None:
    """The rows of an export's result.

    Args:
        result: of any exporter.

    Returns:
        None if it is not for a device.
    """
    if result.format != "tflite":
        return None
    arena = result.arena
    return Device(
        file=result.path.name,
        target="mcu" if result.micro else "raspberrypi",
        scheme=result.recipe.scheme + (", in part float32" if result.in_float else ""),
        bytes=result.bytes,
        flash_budget=result.limits.flash,
        arena_head=arena.head,
        arena_tail=arena.tail,
        arena_total=arena.needed,
        arena_budget=result.limits.sram,
        peak_layer=arena.peak_layer,
        macs_logical=result.macs,
        macs_executed=result.executed_macs,
        interpreters=tuple(map(_interpreter, result.agreements)),
        layers=tuple(map(_layer, result.layers)),
        tensors=tuple(map(_tensor, arena.rows)),
        ways=ways_of(result),
        notes=tuple(_trials(result)),
        timing=timing_of(result),
    )


def _interpreter(found: Any) -> Interpreter:
    """The row of an ``Agreement``."""
    return Interpreter(
        name=INTERPRETERS[found.kernels],
        sqnr=found.sqnr,
        max_lsb=found.max_lsb,
        mean_lsb=found.mean_lsb,
        top1=found.top1,
        error=found.least.error,
        lowest=found.least.low,
        samples=found.samples,
    )


def _layer(found: Any) -> QuantizedRow:
    """The row of a ``LayerError``."""
    return QuantizedRow(
        name=found.layer,
        kind=found.op,
        low=found.low,
        high=found.high,
        scale=found.step,
        zero_point=found.zero_point,
        sqnr=found.sqnr,
        expected=found.expected,
        in_band=found.inside,
        weight_bytes=found.weight_bytes,
    )


def _tensor(found: Any) -> TensorRow:
    """The row of an arena's."""
    return TensorRow(
        name=found.buffer.name,
        layer=found.layer,
        first=found.buffer.first,
        last=found.buffer.last,
        offset=found.offset,
        bytes=found.buffer.size,
    )


def _trials(result: Any) -> Iterator[str]:
    """What was tried, where there was a choice."""
    for trial in result.tried if len(result.tried) > 1 else ():
        taken = ", taken" if trial.how == result.chosen else ""
        yield (f"{trial.how}: {trial.sqnr:.2f} dB of all samples (before quantizing {trial.float_sqnr:.1f} dB){taken}")
