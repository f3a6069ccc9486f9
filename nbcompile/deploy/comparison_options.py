"""The options of ``nbcompile verify`` for files in integers."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbcompile.core.errors import UsageError
from nbcompile.core.options import documented, option
from nbcompile.deploy.options import json_object, require_images, require_likeness

log = logging.getLogger("nbcompile")

DRAWN_INPUTS = 8
"""Random inputs that are compared."""

SHOWN_IMAGES = 64
"""Images that are compared, at most, evenly chosen."""

IMAGES_NEEDED = (
    "is of integers that suit what calibrated it, and random inputs say little: give images as the network will see "
    "them, --calibration FOLDER (calibration=… in Python), or the least with --min-sqnr"
)
"""Of a file, why random inputs do not do."""


USUAL_AGREEMENT = 0.8
"""Share of the inputs whose largest output is usually the same, in a file whose outputs have the signal over noise."""


def warn_of_agreement(candidate: Path, found: Sequence[float | None], asked: float | None) -> None:
    """Say that a file which passes names other classes than its network: a constant part of all outputs is signal, too.

    Args:
        candidate: the file.
        found: shares of the inputs whose largest output is the same; None where there is no largest one.
        asked: the least that was asked for; None: nothing was.
    """
    share = min((one for one in found if one is not None), default=1.0)
    if asked is None and share < USUAL_AGREEMENT:
        log.warning(
            "the largest output of %s is the same in %.1f%% of the inputs only: if it stands for a class, ask for more "
            "(min_agreement)", candidate, 100 * share,
        )  # fmt: skip


@documented
@dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """On what a ``.tflite`` or int8 ``.onnx`` file is compared with a network or another file, and what may differ.

    Raises:
        UsageError: if a value is not known, or two do not fit.
    """

    calibration: Any = option(
        None,
        "Images as the network will see them, a folder, or an .npz of N x C x H x W, to compare on",
        panel="Files in integers (.tflite, int8 .onnx)",
        metavar="DIR|FILE",
        unset="random inputs",
        read=Path,
        python="Images, as for `nbcompile.export`",
    )
    preprocessing: Mapping[str, Any] | None = option(
        None,
        'How they become inputs: {"scale": 0.00392, "mean": [0.5], "std": [0.5]}',
        metavar="JSON",
        unset="as the network records it",
        read=json_object,
    )
    steps: int | None = option(
        None,
        "Of .tflite: that outputs may differ by, in steps of their scale",
        metavar="N",
        unset="0 between two files of the same scales",
    )
    min_sqnr: float | None = option(
        None,
        "Signal over noise that the outputs must have, where their scales are not the same",
        metavar="DB",
        unset="by how the file stores numbers",
    )
    min_agreement: float | None = option(None, "Inputs, 0 to 1, whose largest output must be the same", metavar="SHARE")

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 0:
            raise UsageError(f"steps={self.steps} is no number of steps: give 0 or more")
        require_likeness(self.min_sqnr, self.min_agreement)
        require_images(self.calibration, self.preprocessing)
        if self.preprocessing is not None and self.calibration is None:
            raise UsageError("preprocessing is of the images to compare on: give them, too (calibration)")
