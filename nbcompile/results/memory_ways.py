"""The ways to arrange a file's memory, as a report holds them."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class WayRow:
    """A way to arrange a file's memory; estimates, but for the one that is taken.

    Attributes:
        activations: bytes that are held at once.
        stays: bytes that are kept for good, more than for the file as it was converted.
        total: bytes of the whole arena.
        work: what is copied more, over the multiply-accumulates of the layers.
        strips: of all regions together; 0: nothing is computed in strips.
        taken: whether the file is computed so.
    """

    activations: int
    stays: int
    total: int | None = None
    work: float = 0.0
    strips: int = 0
    taken: bool = False


def ways_of(result: Any) -> tuple[WayRow, ...]:
    """What is estimated of every way; what stays is taken from the one that was measured."""
    taken = result.way
    tail = None if taken is None else (result.arena.tail or 0) - taken.kept
    return tuple(
        WayRow(
            activations=way.peak,
            stays=way.kept,
            total=None if tail is None else way.peak + way.kept + tail,
            work=way.work / max(1, way.macs),
            strips=sum(region.strips for region in way.regions),
            taken=way == taken,
        )
        for way in result.ways
    )
