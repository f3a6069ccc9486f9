"""What a report holds about a file for a device: its numbers in each interpreter, its layers, its memory.

Rows are filled by the caller from what it measured; like all of a report's numbers, those not known are None.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbcompile.core.memory.arena import covered
from nbcompile.results.memory_ways import WayRow
from nbcompile.results.numbers import decibels, exact, known
from nbcompile.results.timing import Timing


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """One interpreter's outputs against torch's, on the same examples.

    Attributes:
        name: such as ``LiteRT, XNNPACK``.
        sqnr: signal over quantization noise, dB.
        error: its standard error over the examples, dB.
        lowest: the same of the worst example.
        samples: how many examples.
        max_lsb: largest difference, in steps of the output's scale.
        mean_lsb: mean absolute difference, in the same unit.
        top1: share of the examples with the same largest output, a fraction in [0, 1].
    """

    name: str
    sqnr: float | None = None
    max_lsb: float | None = None
    mean_lsb: float | None = None
    top1: float | None = None
    error: float | None = None
    lowest: float | None = None
    samples: int | None = None

    @property
    def measured(self) -> str:
        """``sqnr`` in words, with its error where that is known: ``30.0 ± 0.6 dB``."""
        if self.sqnr is None or not known(self.error):
            return decibels(self.sqnr)
        return f"{self.sqnr:.1f} ± {decibels(self.error)}"


@dataclass(frozen=True, kw_only=True)
class QuantizedRow:
    """One layer of a quantized file.

    Attributes:
        name: qualified name.
        kind: such as ``conv 1×1 16→96``, or the file's own ``CONV_2D``.
        low, high: real numbers that its output can hold.
        scale: of its output, real numbers a step.
        zero_point: of its output, the integer that stands for 0.
        sqnr: of its output against the float file's, dB.
        expected: the lowest SQNR of the band that was expected here, dB.
        in_band: whether ``sqnr`` is inside that band.
        weight_bytes: of its constants in the file.
    """

    name: str
    kind: str = ""
    low: float | None = None
    high: float | None = None
    scale: float | None = None
    zero_point: int | None = None
    sqnr: float | None = None
    expected: float | None = None
    in_band: bool | None = None
    weight_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class TensorRow:
    """One tensor's place in the arena.

    Attributes:
        name: of the tensor in the file.
        layer: whose result it is; empty for one that belongs to no layer, such as a scratch buffer.
        first, last: the ops that are the first and the last to need it, both included; ``first <= last``. Below 0:
            needed before the first op, as inputs are.
        offset: bytes from the arena's start.
        bytes: of the arena that it takes.
    """

    name: str
    first: int
    last: int
    offset: int
    bytes: int
    layer: str = ""

    @property
    def label(self) -> str:
        """The layer's name, or the tensor's own."""
        return self.layer or self.name

    @property
    def ops(self) -> str:
        """When it is needed: ``3``, ``3–5`` or ``start–0``."""
        first, last = ("start" if op < 0 else str(op) for op in (self.first, self.last))
        return first if first == last else f"{first}–{last}"

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.bytes


@dataclass(frozen=True, kw_only=True)
class Device:
    """A file for a device, as far as it is known before it is flashed.

    Attributes:
        file: its name.
        target: such as ``mcu``.
        scheme: such as ``int8``; ``int8, in part float32`` where layers have no integer form.
        bytes: size of the file, which is what it takes in flash.
        flash_budget: bytes of flash that it may take.
        arena_head: bytes for activations, shared between tensors over time.
        arena_tail: bytes that stay for as long as the model does.
        arena_total: bytes of the arena that holds both: their sum, or more where planning takes more.
        arena_budget: bytes that the arena may have.
        peak_layer: the layer at which the activations need the most.
        macs_logical: multiply-accumulates of the layers on one example.
        macs_executed: those that the file performs; more where a pass traded speed for memory.
        interpreters: that the file was run in.
        layers: in execution order.
        tensors: the memory plan of the head.
        ways: to arrange it, from the file as it was converted to the least memory.
        notes: sentences a reader should know, such as what the input must look like.
        timing: how long it takes on microcontrollers, estimated.
    """

    file: str
    target: str = ""
    scheme: str = ""
    bytes: int | None = None
    flash_budget: int | None = None
    arena_head: int | None = None
    arena_tail: int | None = None
    arena_total: int | None = None
    arena_budget: int | None = None
    peak_layer: str = ""
    macs_logical: int | None = None
    macs_executed: int | None = None
    interpreters: tuple[Interpreter, ...] = ()
    layers: tuple[QuantizedRow, ...] = ()
    tensors: tuple[TensorRow, ...] = ()
    ways: tuple[WayRow, ...] = ()
    notes: tuple[str, ...] = ()
    timing: Timing | None = None

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "Device":
        """The device whose :func:`dataclasses.asdict`, or its JSON, is ``found``."""
        rows = {
            "interpreters": tuple(Interpreter(**row) for row in found["interpreters"]),
            "layers": tuple(QuantizedRow(**row) for row in found["layers"]),
            "tensors": tuple(TensorRow(**row) for row in found["tensors"]),
            "ways": tuple(WayRow(**row) for row in found.get("ways", ())),
            "notes": tuple(found["notes"]),
            "timing": Timing.read(found.get("timing")),
        }
        return cls(**{**found, **rows})

    @property
    def arena_planning(self) -> int | None:
        """Bytes of the arena beside head and tail, to plan in and to align: few or none but in small networks."""
        if self.arena_total is None or self.arena_head is None or self.arena_tail is None:
            return None
        return (self.arena_total - self.arena_head - self.arena_tail) or None

    def memory(self) -> tuple[tuple[str, float | None, float | None], ...]:
        """What it takes of each memory, and the budget, in bytes; a row for each of which either is known."""
        rows = (
            ("file, in flash", self.bytes, self.flash_budget),
            ("arena: activations (head)", self.arena_head, None),
            ("arena: what stays (tail)", self.arena_tail, None),
            ("arena: to plan and align", self.arena_planning, None),
            ("arena: total", self.arena_total, self.arena_budget),
        )
        return tuple(row for row in rows if row[1:] != (None, None))


def first_out_of_band(layers: Sequence[QuantizedRow]) -> QuantizedRow | None:
    """The first layer whose error is larger than expected; those after it may only pass its error on."""
    return next((row for row in layers if row.in_band is False), None)


def busiest(tensors: Sequence[TensorRow]) -> tuple[int, tuple[TensorRow, ...], int]:
    """Where a plan is at its fullest.

    Args:
        tensors: at least one.

    Returns:
        The first of the ops at which the most bytes are live; the tensors that are live there, largest first; and
        the bytes that the plan needs beyond theirs, because it leaves gaps. Tensors may lie in each other.
    """
    alive = {op: [t for t in tensors if t.first <= op <= t.last] for op in sorted({t.first for t in tensors})}
    op = max(alive, key=lambda op: covered((t.offset, t.end) for t in alive[op]))
    live = tuple(sorted(alive[op], key=lambda t: -t.bytes))
    return op, live, max(t.end for t in tensors) - covered((t.offset, t.end) for t in live)


def verdict(value: float | None, budget: float | None) -> tuple[bool, str]:
    """Whether ``value`` bytes fit ``budget``, and that in words; fits, without a word, where one is not known."""
    if not known(value) or not known(budget):
        return True, ""
    if value > budget:
        return False, f"{exact(value - budget)} too many"
    return True, f"fits, {exact(budget - value)} free"
