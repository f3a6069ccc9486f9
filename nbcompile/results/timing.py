"""How long a file takes on microcontrollers, estimated, as a report holds it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nbcompile.results.numbers import count


@dataclass(frozen=True, kw_only=True)
class TimedRow:
    """One operator.

    Attributes:
        layer: whose result it computes.
        kind: of kernel.
        optimized: whether CMSIS-NN has a kernel for it.
        cycles: by core.
    """

    layer: str
    kind: str
    optimized: bool
    cycles: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a file takes; all of it is estimated.

    Attributes:
        cycles: of one inference, by core.
        unknown: kinds of operators that are not counted.
        rows: operator by operator.
        board: its title; empty where none was named that has a core with a table.
        core: the board's.
        clock: the board's, MHz.
        milliseconds: of one inference on the board.
    """

    cycles: Mapping[str, int]
    unknown: tuple[str, ...] = ()
    rows: tuple[TimedRow, ...] = ()
    board: str = ""
    core: str = ""
    clock: int | None = None
    milliseconds: float | None = None

    @classmethod
    def read(cls, found: Mapping[str, Any] | None) -> "Timing | None":
        """The timing whose :func:`dataclasses.asdict`, or its JSON, is ``found``."""
        if found is None:
            return None
        return cls(**{**found, "unknown": tuple(found["unknown"]), "rows": tuple(TimedRow(**r) for r in found["rows"])})

    def said(self) -> Iterator[str]:
        """In words, for the terminal and the report."""
        if self.milliseconds is not None:
            yield f"time, estimated: {self.milliseconds:.3g} ms on {self.board} ({self.core}, {self.clock} MHz)"
        each = ", ".join(f"{name} {count(cycles)}" for name, cycles in self.cycles.items())
        yield f"cycles, estimated: {each}"
        plain = dict.fromkeys(row.kind for row in self.rows if not row.optimized)
        if plain:
            yield f"without a kernel in CMSIS-NN: {', '.join(plain)}"
        if self.unknown:
            yield f"not in the tables of cycles, and not counted: {', '.join(self.unknown)}"


def timing_of(result: Any) -> Timing | None:
    """What is estimated of an export's result; None where nothing is."""
    found = getattr(result, "estimate", None)
    if found is None:
        return None
    return Timing(
        cycles=found.cycles,
        unknown=found.unknown,
        rows=tuple(
            TimedRow(layer=row.layer, kind=row.kind, optimized=row.optimized, cycles=row.cycles) for row in found.layers
        ),
        board=found.board,
        core=found.core,
        clock=found.clock,
        milliseconds=found.milliseconds,
    )
