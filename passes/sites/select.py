"""Which candidates to expand: the words of ``where``."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from fractions import Fraction
from math import ceil

from nbcompile.core.errors import UsageError

WORDS = "'all', 'uniform:F' (0 < F <= 1), 'first:N', 'middle:N', 'last:N', or names and globs of layers"


def select_sites(where: str | Sequence[str], candidates: Sequence[str], layers: Sequence[str]) -> tuple[str, ...]:
    """The layers that ``where`` names, in graph order.

    Args:
        where: ``uniform:F`` takes candidate i iff ceil((i+1)F) > ceil(iF), so 0.5 takes 0, 2, 4, … as the counts of
            the paper's Table 5 show; ``first:N``, ``middle:N``, ``last:N``, ``all``; or names and globs (a list, or
            one string with commas), which may name any layer.
        candidates: names of the layers that the pattern found.
        layers: names of all convolutions and linear layers.

    Raises:
        UsageError: if it cannot be read or matches nothing; the message lists the candidates.
    """
    patterns = named_patterns(where)
    if patterns is None:
        return _ruled(str(where), candidates, layers)
    unmatched = [p for p in patterns if not any(fnmatchcase(name, p) for name in layers)]
    if unmatched or not patterns:
        named = ", ".join(repr(p) for p in unmatched) or "nothing"
        raise UsageError(f"where: no convolution or linear layer is called {named}; {_offer(candidates, layers)}")
    return tuple(name for name in layers if any(fnmatchcase(name, p) for p in patterns))


def named_patterns(where: str | Sequence[str]) -> list[str] | None:
    """The names and globs of ``where``; None where it is a rule over the candidates."""
    if not isinstance(where, str):
        return list(where)
    if where.partition(":")[0] in ("uniform", "first", "middle", "last", "all"):
        return None
    return [part.strip() for part in where.split(",") if part.strip()]


def _ruled(where: str, candidates: Sequence[str], layers: Sequence[str]) -> tuple[str, ...]:
    word, _, value = where.partition(":")
    n = len(candidates)
    if not n:
        raise UsageError(
            f"where='{where}': no pattern of layers to expand is in this network; {_offer(candidates, layers)}"
        )
    if word == "all" and not value:
        return tuple(candidates)
    try:
        if word == "uniform":
            f = Fraction(value)
            if 0 < f <= 1:
                return tuple(name for i, name in enumerate(candidates) if ceil((i + 1) * f) > ceil(i * f))
        elif word != "all" and 0 < (count := int(value)) <= n:
            start = {"first": 0, "middle": (n - count) // 2, "last": n - count}[word]
            return tuple(candidates[start : start + count])
    except (ValueError, ZeroDivisionError):
        pass  # said below, with what can be written
    raise UsageError(f"where='{where}' does not fit the {n} candidates; write {WORDS}; {_offer(candidates, layers)}")


def _offer(candidates: Sequence[str], layers: Sequence[str]) -> str:
    kind, names = ("candidates", candidates) if candidates else ("layers that can be named", layers)
    shown = ", ".join(names[:24]) + (f", … ({len(names)} in all)" if len(names) > 24 else "")
    return f"{kind}: {shown or 'none'}"
