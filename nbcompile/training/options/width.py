"""Giants in width."""

from dataclasses import dataclass

from nbcompile.core.errors import UsageError
from nbcompile.core.options import NOT_NEGATIVE, option


def _factors(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(factor) for factor in text.split(","))
    except ValueError:
        raise UsageError(f"factors must be numbers with commas, such as 1,1.8,2.6, not '{text}'") from None


@dataclass(frozen=True, kw_only=True)
class WidthOptions:
    """Which widths, and until when."""

    factors: tuple[float, ...] = option(
        (1, 1.8, 2.6),
        "Widths over the original's, with commas, of channels that several blocks share",
        panel="Width",
        metavar="N,N",
        read=_factors,
        python="Widths over the original's of channels that several blocks share",
    )
    inner: tuple[float, ...] = option(
        (1, 1.6, 2.2, 2.8),
        "Widths over the original's, with commas, of channels within one block",
        metavar="N,N",
        read=_factors,
        python="Widths over the original's of channels within one block",
    )
    wide_epochs: int | None = option(
        None, "Epochs before channels within one block alone are widened", bound=NOT_NEGATIVE, unset="half of --epochs"
    )
    sort_epochs: int | None = option(
        None,
        "Epochs at whose start the network takes the most important channels within a block",
        bound=NOT_NEGATIVE,
        unset="as --wide-epochs",
    )
    divergence: str = option(
        "adaptive",
        "Of the network from its widest, by netdistiller",
        metavar="NAME",
        choices=("adaptive", "forward", "reverse", "balanced"),
    )
    surgery: str = option(
        "widest",
        "By netdistiller: whose gradient gives way where the two are in conflict",
        metavar="NAME",
        choices=("widest", "none"),
    )
