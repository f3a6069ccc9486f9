"""How a ``.tflite`` file is to be: what users choose; imports neither TensorFlow nor torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nbcompile.core.errors import UsageError

if TYPE_CHECKING:
    from nbcompile.core.example import Inputs

SCHEMES = ("int8", "int16x8", "dynamic", "float16", "float32")
ESTIMATORS = ("minmax", "mse", "percentile")
RANGES = ("auto", *ESTIMATORS)
TRIED = ("minmax", "mse")
"""Those that ``auto`` tries: what percentiles cut off, new data may need, and a few samples do not show it."""

IO = ("int8", "float")
PROJECTS = ("arduino", "esp-idf", "zephyr", "cmake")
"""Tools for which the sources of a microcontroller's program are laid out."""

CALIBRATED = ("int8", "int16x8")
"""The schemes whose activations are integers: their ranges come from a calibration set."""


@dataclass(frozen=True)
class Recipe:
    """How a file stores its numbers.

    Attributes:
        scheme: ``float32``, ``float16`` (weights), ``dynamic`` (int8 weights, activations quantized as they come),
            ``int8`` (all), ``int16x8`` (activations of 16 bits, weights of 8).
        io: ``int8`` or ``float``: what the inputs and outputs of an integer file are.
        ranges: how ranges are taken from the calibration set: ``minmax``, ``percentile`` or ``mse``; ``auto``: in the
            way of ``TRIED`` that gives the least noise.
        per_channel: whether convolutions have a scale per output channel.
        dense_per_channel: the same of linear layers; older runtimes have no kernels for it. None: where TFLite Micro
            is to run it, only if that gives less noise.
        float_layers: names and globs of layers that stay float32.
    """

    scheme: str = "int8"
    io: str = "int8"
    ranges: str = "minmax"
    per_channel: bool = True
    dense_per_channel: bool | None = True
    float_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option, value, known in (
            ("quantize", self.scheme, SCHEMES), ("ranges", self.ranges, RANGES), ("io", self.io, IO)
        ):  # fmt: skip
            require_choice(option, value, known)
        if self.scheme == "int16x8" and self.float_layers:
            raise UsageError("int16x8 cannot keep layers in float: TensorFlow's quantizer has no such choice; use int8")
        if self.scheme == "int16x8" and not self.per_channel:
            raise UsageError("int16x8 has weights per channel: TensorFlow's quantizer fails otherwise; use int8")

    @property
    def levels(self) -> int:
        """How many values a quantized activation has."""
        return 2**16 if self.scheme == "int16x8" else 2**8

    @property
    def estimator(self) -> str:
        """How ranges are taken first."""
        return "minmax" if self.ranges == "auto" else self.ranges

    @property
    def several(self) -> bool:
        """Whether it leaves a choice."""
        return self.ranges == "auto" or self.dense_per_channel is None

    @property
    def calibrated(self) -> bool:
        """Whether it needs a calibration set."""
        return self.scheme in CALIBRATED


INTERPRETERS = {
    "xnnpack": "LiteRT, XNNPACK",
    "reference": "LiteRT, reference kernels",
    "micro": "TFLite Micro",
}
"""By their kernels."""

LEAST_SQNR = {"float32": 80.0, "float16": 40.0, "dynamic": 15.0, "int16x8": 15.0, "int8": 15.0}
"""dB that the outputs must reach against PyTorch's, by scheme, if the user sets no limit: less is no longer the same
function. Trained networks reach 20 to 40 dB in int8."""


MORE_SQNR = {
    "int8": "Calibrate on more images, try quantize='int16x8' or float_layers=…",
    "int16x8": "Calibrate on more images, try ranges='mse'",
    "dynamic": "Try quantize='float16' or float_layers=…",
    "float16": "Try quantize='float32'",
    "float32": "Train the network: float32 sums in another order, and random weights may amplify that",
}
"""What may raise it, by scheme."""


@dataclass(frozen=True)
class Limits:
    """What a file must keep; None: anything goes.

    Attributes:
        sqnr: dB that the outputs must reach at least, against PyTorch's, in every interpreter.
        agreement: share of the samples whose largest output must be the same, in [0, 1].
        sram: bytes that the arena may take.
        least_sram: whether it is to take as few as it can.
        flash: bytes that the file may take.
    """

    sqnr: float | None = None
    agreement: float | None = None
    sram: int | None = None
    flash: int | None = None
    least_sram: bool = False

    def least_sqnr(self, scheme: str) -> float:
        """What the outputs of a file of ``scheme`` must reach, dB."""
        return LEAST_SQNR[scheme] if self.sqnr is None else self.sqnr


def require_choice(option: str, value: str, known: tuple[str, ...]) -> None:
    """Raise UsageError if ``value`` is not one of ``known``."""
    if value not in known:
        raise UsageError(f"{option}='{value}' is not known; known are {', '.join(known)}")


def names_beside(path: Path, micro: bool, scheme: str, project: str | None = None) -> tuple[Path, ...]:
    """What is written beside the file ``path``: a microcontroller's sources, or what a Raspberry Pi needs.

    Nothing with a ``project``, which has the sources in a folder of its own.
    """
    if project is not None:
        return ()
    if micro:
        endings: tuple[str, ...] = (".h", ".cc", "_ops.h", "_check.h", "_main.cc")
    else:
        endings = () if scheme == "float32" else ("_float32.tflite", "_benchmark.py")
    return tuple(path.with_name(path.stem + ending) for ending in endings)


def project_folder(path: Path, project: str) -> Path:
    """The folder of a project that is written beside the file ``path``.

    Raises:
        UsageError: if the tools of microcontrollers do not take the file's name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,39}", path.stem):
        raise UsageError(
            f"--project names files after {path.name}, and the tools take 40 letters, digits, '_', '.' and '-': "
            "give the output such a name"
        )
    return path.with_name(f"{path.stem}_{project.replace('-', '_')}")


AS_IT_IS = "as it is"
"""What was done to a network to which nothing was done."""

CHECKED = 16
"""Samples that files are checked on, at most."""


ENOUGH = 8
"""Samples of a check below which their standard error is itself but a guess: those of a set of 32."""


def held_out(samples: "Sequence[Inputs]") -> "tuple[list[Inputs], list[Inputs]]":
    """The samples that calibrate, and those that the file is checked on: a quarter, evenly chosen, ``CHECKED`` at most.

    They are different ones, so that a file is judged by what it has not seen; only a single sample does both.
    """
    every = max(4, -(-len(samples) // CHECKED))
    checked = list(samples[::every])
    return [one for i, one in enumerate(samples) if i % every] or checked, checked


def doubts_of_check(calibrating: int, checking: int) -> list[str]:
    """What is to be said of a set of which ``checking`` samples were held out, and ``calibrating`` are left."""
    if not checking or checking >= ENOUGH:
        return []
    held = "one sample is" if checking == 1 else f"{checking} samples are"
    both = ", which calibrates, too" if calibrating == checking == 1 else ""
    return [f"{held} left to check the file on{both}: its SQNR says little of others; give some 100 samples"]
