"""The options of ``.tflite`` files: of ``nbcompile.export(…, "tiny.tflite")`` and of ``nbcompile fuse``.

A new one is a field here; those that say how numbers are stored go on to the exporter in its ``Recipe``.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from nbcompile.core.errors import UsageError
from nbcompile.core.options import CHECKS, documented, option, options_of
from nbcompile.exporters.to_tflite.file.options import (
    IO,
    PROJECTS,
    RANGES,
    SCHEMES,
    Limits,
    Recipe,
    names_beside,
    project_folder,
    require_choice,
)
from nbcompile.exporters.to_tflite.targets.boards import BOARDS
from nbcompile.exporters.to_tflite.targets.boards import board as board_of

TARGETS = ("raspberrypi", "mcu")
LEAST = "least"
"""The budget of who wants the smallest arena."""

WHEN = ("auto", "always", "never")
PREPARED = ("scale", "mean", "std", "crop", "size")
"""What a preprocessing may say of images; ``size``, which training records, is the input's own side."""
DEVICE, QUANTIZATION = "Device (.tflite)", "Quantization (.tflite, and .onnx with --quantize int8)"


def _names(text: str) -> list[str]:
    return text.split(",") if text else []


def json_object(text: str) -> dict[str, Any]:
    """The preprocessing that ``text`` says.

    Raises:
        UsageError: if it is no JSON object.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--preprocessing is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(
            '--preprocessing must be a JSON object, such as {"scale": 0.00392, "mean": [0.5], "std": [0.5]}'
        )
    return value


def require_likeness(min_sqnr: float | None, min_agreement: float | None) -> None:
    """Check limits of how near outputs are, in dB and as a share; None is no limit.

    Raises:
        UsageError: if one is none.
    """
    if min_agreement is not None and not 0 <= min_agreement <= 1:
        raise UsageError(f"min_agreement={min_agreement} is not a share: give a number from 0 to 1, such as 0.99")
    if min_sqnr is not None and not math.isfinite(min_sqnr):
        raise UsageError(f"min_sqnr={min_sqnr} is no limit: give a number of dB, such as 20")


def require_images(calibration: Any, preprocessing: Mapping[str, Any] | None) -> None:
    """Check where images come from, if that is a path, and how they become inputs.

    Raises:
        UsageError: if there are none, or it is not known how.
    """
    if isinstance(calibration, str | PathLike):
        require_calibration(Path(calibration))
    if preprocessing is not None:
        require_preprocessing(preprocessing)


@documented
@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """What a ``.tflite`` file is to be.

    Raises:
        UsageError: if a value is not known, or two do not fit.
    """

    calibration: Any = option(
        None,
        "Images as the network will see them: a folder, or an .npz of N x C x H x W",
        panel=QUANTIZATION,
        metavar="DIR|FILE",
        read=Path,
        python="A folder of images, an ``.npz``, a tensor ``(N, C, H, W)`` or an iterable of batches",
    )
    target: str = option(
        "raspberrypi",
        "What runs the file: LiteRT, or TFLite Micro on a microcontroller (with C++ sources beside it)",
        panel=DEVICE,
        metavar="TARGET",
        choices=TARGETS,
    )
    quantize: str = option("int8", "How numbers are stored", panel=QUANTIZATION, metavar="SCHEME", choices=SCHEMES)
    io: str = option("int8", "Inputs and outputs of an integer file", metavar="TYPE", choices=IO)
    ranges: str = option(
        "auto",
        "How ranges are taken from the calibration set (auto: those that training with --int8 recorded; else minmax, "
        "unless another way raises the SQNR)",
        metavar="METHOD",
        choices=RANGES,
    )
    per_channel: bool = option(
        True,
        "One scale per weight tensor, not per output channel: for old runtimes",
        flag="--per-tensor",
        python="Whether convolutions have a scale per output channel",
    )
    dense_per_channel: bool | None = option(
        None,
        "The same of linear layers only; for mcu, without it, where the SQNR stays: it needs less memory",
        flag="--dense-per-tensor",
        python="The same of linear layers; older runtimes have no kernels for it. None: yes, but for ``mcu``, which "
        "then needs more memory, only where one scale loses SQNR",
    )
    float_layers: str | Sequence[str] = option(
        (),
        "Names and globs, with commas, of layers that stay float32",
        metavar="NAMES",
        read=_names,
        python="Names and globs of layers that stay float32; one by itself, or several",
    )
    equalize: str = option(
        "auto", "Equalize ranges across layers (auto: where it raises the SQNR)", metavar="WHEN", choices=WHEN
    )
    correct_bias: str = option(
        "auto", "Correct biases for what quantization shifts, likewise", metavar="WHEN", choices=WHEN
    )
    fast: bool = option(
        False,
        "Try one way to quantize only, where the others are auto: sooner, with some dB less",
        python="Try one way to quantize only, where ``ranges``, ``equalize`` and ``correct_bias`` are ``auto``",
    )
    board: str | None = option(
        None,
        "Memory by name, such as pico or esp32-s3, where --sram and --flash do not say",
        panel=DEVICE,
        metavar="BOARD",
        offers=tuple(BOARDS),
    )
    sram: int | str | None = option(
        None, "That the arena may take, such as 192K; for mcu also least, the smallest there is", metavar="BYTES"
    )
    flash: int | str | None = option(None, "That the file may take, such as 1M", metavar="BYTES")
    project: str | None = option(
        None,
        "Of mcu: put the C++ sources into a folder that the tool of this name builds",
        metavar="NAME",
        choices=PROJECTS,
        unset="none",
    )
    min_sqnr: float | None = option(
        None,
        "Signal over noise that the outputs must have against PyTorch's",
        panel=CHECKS,
        metavar="DB",
        unset="by --quantize",
    )
    min_agreement: float | None = option(
        None, "Samples, 0 to 1, whose largest output must be PyTorch's", metavar="SHARE"
    )
    preprocessing: Mapping[str, Any] | None = option(
        None,
        'How images become inputs: {"scale": 0.00392, "mean": [0.5], "std": [0.5]}',
        panel=QUANTIZATION,
        metavar="JSON",
        unset="as the network records it",
        read=json_object,
    )

    def __post_init__(self) -> None:
        for name, about in options_of(type(self)).items():
            if about.choices and not (about.unset and getattr(self, name) is None):
                require_choice(name, getattr(self, name), about.choices)
        if self.micro and self.quantize in ("dynamic", "float16"):
            raise UsageError(
                f"quantize='{self.quantize}' makes files that TFLite Micro cannot run: use int8, int16x8 or float32"
            )
        if self.project is not None and not self.micro:
            raise UsageError(f"project='{self.project}' goes with target='mcu': no sources are written for others")
        require_likeness(self.min_sqnr, self.min_agreement)
        if self.sram == LEAST and not self.micro:
            raise UsageError(f"sram='{LEAST}' goes with target='mcu': what LiteRT needs is not arranged here")
        _, _ = self.recipe(), self.limits()
        require_images(self.calibration, self.preprocessing)

    @property
    def micro(self) -> bool:
        """Whether TFLite Micro is to run the file."""
        return self.target == "mcu"

    def recipe(self) -> Recipe:
        """How the file stores its numbers."""
        layers = self.float_layers
        names = (layers,) if isinstance(layers, str) else tuple(layers)  # a name by itself is no sequence of letters
        ranges = "minmax" if self.ranges == "auto" and (self.fast or self.quantize != "int8") else self.ranges
        tried = self.micro and self.quantize == "int8" and self.per_channel and not self.fast
        dense = self.dense_per_channel if self.dense_per_channel is not None or tried else True
        return Recipe(self.quantize, self.io, ranges, self.per_channel, dense, names)

    @property
    def takes_learned(self) -> bool:
        """Whether ranges that training found are taken, where there are some."""
        return self.quantize == "int8" and self.ranges == "auto"

    def require_ranges(self, *, learned: bool) -> None:
        """Check that there is something to know ranges from, where any are needed.

        Args:
            learned: whether the network has recorded some.

        Raises:
            UsageError: if there is not.
        """
        if self.recipe().calibrated and self.calibration is None and not (learned and self.takes_learned):
            raise UsageError(
                f"quantize='{self.quantize}' needs a calibration set, some 100 images as the network will see them: "
                "--calibration FOLDER (calibration=… in Python); quantize='float32' needs none"
            )

    def when(self, option: str) -> str:
        """``equalize`` or ``correct_bias``: ``auto``, ``always`` or ``never``."""
        asked: str = getattr(self, option)
        return "never" if self.fast and asked == "auto" else asked

    def beside(self, path: Path) -> tuple[Path, ...]:
        """The files that are written beside the file ``path``."""
        return names_beside(path, self.micro, self.quantize, self.project)

    def folder(self, path: Path) -> Path | None:
        """The folder that is written beside the file ``path``, if there is one."""
        return None if self.project is None else project_folder(path, self.project)

    def limits(self) -> Limits:
        """Budgets as numbers; a board gives those that are not given."""
        least = self.sram == LEAST
        sram, flash = None if least else size_in_bytes(self.sram, "sram"), size_in_bytes(self.flash, "flash")
        if self.board is not None:
            known = board_of(self.board)
            sram, flash = sram or known.block, flash or known.flash
        return Limits(sqnr=self.min_sqnr, agreement=self.min_agreement, sram=sram, flash=flash, least_sram=least)


def require_calibration(path: Path) -> None:
    """Raise UsageError if ``path`` is neither a folder nor an ``.npz``."""
    if not os.path.isdir(path) and not (path.suffix.lower() == ".npz" and os.path.isfile(path)):
        fault = "is neither" if os.path.exists(path) else "is not there"
        raise UsageError(f"calibration {path} {fault}: give a folder of images, or an .npz with arrays (N, C, H, W)")


def require_preprocessing(given: Any) -> None:
    """Raise UsageError if ``given`` is no mapping from ``PREPARED``."""
    if not isinstance(given, Mapping):
        raise UsageError(f"preprocessing={given!r} is no mapping: give {{'scale': …, 'mean': […], 'std': […]}}")
    if unknown := [str(key) for key in given if key not in PREPARED]:
        raise UsageError(f"preprocessing: {', '.join(unknown)} is not known; there are {', '.join(PREPARED)}")


_UNITS = {"": 1, "K": 1024, "M": 1024**2}


def size_in_bytes(value: int | str | None, option: str) -> int | None:
    """A number of bytes: ``196608``, ``"192K"`` or ``"1M"`` (of 1,024 and 1,048,576).

    Raises:
        UsageError: if it is none; ``option`` is named.
    """
    if value is None or (isinstance(value, int) and value > 0):
        return value
    size = re.fullmatch(r"(\d+)\s*([KM]?)(?:i?B)?", str(value).strip(), re.IGNORECASE)
    if not size or not int(size[1]):
        raise UsageError(f"{option}={value!r} is not a size: give bytes, such as 196608, 192K or 1M")
    return int(size[1]) * _UNITS[size[2].upper()]
