"""How long an int8 file takes on a Cortex-M with TFLite Micro and CMSIS-NN: estimated, layer by layer.

    cycles = cycles per instruction of the core x sum over what is done of instructions for each

Instructions were counted on emulated boards (``benchmarks/on_device.py``) and fitted kernel by kernel
(``benchmarks/cycles.py``); how many cycles an instruction takes follows from times that others measured on boards.
Slow flash, small caches and shared buses make boards slower than that, and compilers differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.targets.boards import Board
from nbcompile.exporters.to_tflite.targets.cycle_tables import DSP, HELIUM, PLAIN, Table
from nbcompile.exporters.to_tflite.targets.work import Work, works


@dataclass(frozen=True)
class Core:
    """A processor.

    Attributes:
        name: as boards name it.
        title: as its maker calls it.
        table: instructions of its kernels.
        per_instruction: cycles.
        source: of ``per_instruction``.
    """

    name: str
    title: str
    table: Table
    per_instruction: float
    source: str


_OCTOML = "MLPerf Tiny v1.0, closed, OctoML, microTVM with CMSIS-NN"

CORES: dict[str, Core] = {
    core.name: core
    for core in (
        Core(
            "cortex-m0+",
            "Cortex-M0+",
            PLAIN,
            1.13,
            "pico-tflmicro's person_detection_benchmark on an RP2040 (125 MHz), one core, layer by layer: 60.3 ms for "
            "a depthwise convolution of 48 x 48 x 8, 47.5 ms for the pointwise one behind it, and so on: 1.09 to 1.20",
        ),
        Core(
            "cortex-m4",
            "Cortex-M4",
            DSP,
            1.53,
            f"{_OCTOML}, NUCLEO-L4R5ZI at 120 MHz: 301 ms for visual wake words, 390 ms for image classification, "
            "100 ms for keyword spotting: 1.48, 1.53 and 1.58 cycles",
        ),
        Core(
            "cortex-m7",
            "Cortex-M7",
            DSP,
            0.97,
            "TinyEngine's README: 770 ms for mcunet-in3 with CMSIS-NN on an STM32H743 (480 MHz)",
        ),
        Core(
            "cortex-m33",
            "Cortex-M33",
            DSP,
            1.28,
            f"{_OCTOML}, nRF5340 DK at 128 MHz: 232 ms for visual wake words, 316 ms for image classification, "
            "76 ms for keyword spotting: 1.22, 1.33 and 1.28 cycles",
        ),
        Core(
            "cortex-m55",
            "Cortex-M55",
            HELIUM,
            1.5,
            "no time was found; one instruction of Helium takes two beats of two cycles in all, of which loads and "
            "products overlap: 1 to 2 cycles",
        ),
    )
    if core.table
}
"""By name; those whose kernels were counted."""


@dataclass(frozen=True)
class LayerCycles:
    """One operator.

    Attributes:
        layer: whose result it computes.
        kind: of kernel.
        cycles: by core; none where the tables do not have it.
        optimized: whether CMSIS-NN has a kernel for it.
    """

    layer: str
    kind: str
    cycles: dict[str, int]
    optimized: bool


@dataclass(frozen=True)
class Estimate:
    """What a file takes, estimated.

    Attributes:
        cycles: of one inference, by core, of all operators that the tables have.
        unknown: kinds of operators that the board's table does not have; without one, that any does not have.
        layers: operator by operator.
        board: its title; empty where none was named, or none of these cores is on it.
        core: the board's.
        clock: the board's, MHz.
        milliseconds: of one inference on the board.
    """

    cycles: dict[str, int]
    unknown: tuple[str, ...]
    layers: tuple[LayerCycles, ...]
    board: str = ""
    core: str = ""
    clock: int | None = None
    milliseconds: float | None = None


def estimated(content: bytes, board: Board | None = None, layers: Mapping[str, str] | None = None) -> Estimate:
    """The estimate for a file.

    Args:
        content: the file.
        board: to say how long it takes there; None, or one without a table: cycles alone.
        layers: names of layers, by the names of their results in the file.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    file, names = read_file(content), layers or {}
    rows = []
    for work in works(file):
        tensor = file.tensors[work.result]
        spent = {core.name: instructions(work, core.table) for core in CORES.values()}
        cycles = {name: round(CORES[name].per_instruction * one) for name, one in spent.items() if one is not None}
        rows.append(LayerCycles(names.get(tensor.name, tensor.name), work.kind, cycles, work.optimized))
    total = {name: sum(row.cycles.get(name, 0) for row in rows) for name in CORES}
    asked = [board.core] if board is not None and board.core in CORES else list(CORES)
    unknown = tuple(dict.fromkeys(row.kind for row in rows if any(name not in row.cycles for name in asked)))
    if board is None or board.core not in CORES:
        return Estimate(total, unknown, tuple(rows))
    spent_there = total[board.core] / board.clock / 1000
    return Estimate(total, unknown, tuple(rows), board.title, board.core, board.clock, spent_there)


def why_no_latency(board: Board) -> str | None:
    """Why no latency is estimated for a board, in one sentence; None if it is."""
    if board.core in CORES:
        return None
    return f"no latency is estimated for {board.title}: there are tables of cycles for {', '.join(CORES)} only"


def instructions(work: Work, table: Table) -> float | None:
    """Instructions of one operator, by a table; None where it does not have its kind."""
    if work.kind not in table:
        return None
    return sum(each * work.counts.get(what, 0) for what, each in table[work.kind].items())
