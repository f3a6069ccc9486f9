"""What a report says about a ``.tflite`` file, from the result of its export."""

from typing import Any

from nbcompile.exporters.to_tflite.file.options import INTERPRETERS
from nbcompile.report.devices import Device, Interpreter, QuantisedRow, TensorRow


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
        scheme=result.recipe.scheme,
        bytes=result.bytes,
        flash_budget=result.limits.flash,
        arena_head=arena.head,
        arena_tail=arena.tail,
        arena_total=arena.needed,
        arena_budget=result.limits.sram,
        peak_layer=arena.peak_layer,
        macs_logical=result.macs,
        macs_executed=result.executed_macs,
        interpreters=tuple(
            Interpreter(
                name=INTERPRETERS[one.kernels],
                sqnr=one.sqnr,
                max_lsb=one.max_lsb,
                mean_lsb=one.mean_lsb,
                top1=one.top1,
            )
            for one in result.agreements
        ),
        layers=tuple(
            QuantisedRow(
                name=row.layer,
                kind=row.op,
                low=row.low,
                high=row.high,
                scale=row.step,
                zero_point=row.zero_point,
                sqnr=row.sqnr,
                expected=row.expected,
                in_band=row.inside,
                weight_bytes=row.weight_bytes,
            )
            for row in result.layers
        ),
        tensors=tuple(
            TensorRow(
                name=row.buffer.name,
                layer=row.layer,
                first=row.buffer.first,
                last=row.buffer.last,
                offset=row.offset,
                bytes=row.buffer.size,
            )
            for row in arena.rows
        ),
        notes=tuple(
            f"{trial.how}: {trial.sqnr:.2f} dB (before quantising {trial.float_sqnr:.1f} dB)"
            f"{', taken' if trial.how == result.chosen else ''}"
            for trial in result.tried
        )
        if len(result.tried) > 1
        else (),
    )
