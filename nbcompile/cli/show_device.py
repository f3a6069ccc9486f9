"""A file for a device in a terminal of 80 columns: its memory, its numbers in each interpreter, its layers."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from nbcompile.cli.terminal import add_row, new_table, say
from nbcompile.results.device import Device, Interpreter, QuantizedRow, first_out_of_band, verdict
from nbcompile.results.memory_ways import WayRow
from nbcompile.results.numbers import DASH, count, decibels, exact, known, percent, ratio, small


def show_device(found: dict[str, Any], console: Console, *, layers: bool = False, memory_plan: bool = False) -> None:
    """Memory, peak and numbers of one file; with ``layers`` its layer table, too.

    Args:
        found: what :meth:`nbcompile.results.device.Device.of` reads.
        console: to print on.
        layers: whether to show every layer.
        memory_plan: whether to show the ways to arrange its memory.
    """
    device = Device.of(found)
    say(console, ", ".join(filter(None, (device.file, device.target, device.scheme))))
    for line in (*_memory(device), *_work(device), *_band(device.layers), *device.notes):
        say(console, f"  {line}")
    if memory_plan and device.ways:
        console.print(_ways(device.ways))
    if device.interpreters:
        console.print(_interpreters(device.interpreters))
    if layers and device.layers:
        console.print(_layers(device.layers))


def _memory(device: Device) -> Iterator[str]:
    if known(device.bytes):
        yield f"flash: {exact(device.bytes)}{_budget(device.bytes, device.flash_budget)}"
    if known(device.arena_total):
        parts = f"{exact(device.arena_head)} of activations, {exact(device.arena_tail)} that stay"
        if device.arena_planning:
            parts += f", {exact(device.arena_planning)} to plan and align"
        yield f"arena: {exact(device.arena_total)}{_budget(device.arena_total, device.arena_budget)}: {parts}"
    if device.peak_layer:
        yield f"peak: at {device.peak_layer}"


def _budget(value: float, budget: float | None) -> str:
    return f" of {exact(budget)} ({verdict(value, budget)[1]})" if known(budget) else ""


def _work(device: Device) -> Iterator[str]:
    if known(device.macs_executed):
        over = f", {ratio(device.macs_executed / device.macs_logical)} the layers'" if device.macs_logical else ""
        yield f"MACs: {count(device.macs_executed)} executed{over}"
    if device.timing is not None:
        yield from device.timing.said()


def _band(layers: Sequence[QuantizedRow]) -> Iterator[str]:
    first = first_out_of_band(layers)
    if first is not None:
        expected = f", expected at least {decibels(first.expected)}" if known(first.expected) else ""
        yield f"first layer out of its expected band: {first.name} ({decibels(first.sqnr)}{expected})"


def _ways(rows: Sequence[WayRow]) -> Table:
    table = new_table("way", "activations", "stays more", "about in all", "more work", "strips", left=1)
    for number, row in enumerate(rows):
        name = ("as converted" if not row.strips else str(number)) + (", taken" if row.taken else "")
        numbers = (exact(row.activations), exact(row.stays), exact(row.total), f"{row.work:.1%}", count(row.strips))
        add_row(table, name, *numbers)
    return table


def _interpreters(rows: Sequence[Interpreter]) -> Table:
    table = new_table("against torch", "SQNR", "lowest", "max LSB", "mean LSB", "top-1", left=1)
    for row in rows:
        numbers = (small(row.max_lsb), small(row.mean_lsb), percent(row.top1))
        add_row(table, row.name, row.measured, decibels(row.lowest), *numbers)
    return table


def _layers(rows: Sequence[QuantizedRow]) -> Table:
    table = new_table("layer", "least", "greatest", "scale", "SQNR", "band", "bytes", left=1)
    first = first_out_of_band(rows)
    for row in rows:
        band = DASH if row.in_band is None else "in" if row.in_band else "first out" if row is first else "out"
        numbers = (small(row.low), small(row.high), small(row.scale), decibels(row.sqnr))
        add_row(table, row.name, *numbers, band, count(row.weight_bytes))
    return table
