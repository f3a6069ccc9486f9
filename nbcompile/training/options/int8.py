"""The int8-aware finish."""

from dataclasses import dataclass

from nbcompile.core.options import POSITIVE, option


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """How a run ends that is for int8 files."""

    int8: int | None = option(
        None,
        "Epochs behind --epochs in which the contracted network learns to live with the rounding of its int8 file, "
        "whose ranges are recorded in the trained file",
        panel="Int8 finish",
        bound=POSITIVE,
        unset="none",
    )
    int8_lr: float | None = option(
        None, "Peak learning rate of these epochs", bound=POSITIVE, unset="a hundredth of --lr"
    )
