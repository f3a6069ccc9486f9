"""What was compared, and how it came out."""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from nbcompile.core.errors import VerificationError
from nbcompile.results.layer_costs import ModuleCost


@dataclass(frozen=True)
class Check:
    """One thing that was compared.

    Attributes:
        name: ``keys and shapes``, ``layers``, ``MACs``, ``params`` or ``numbers``; ``input sizes`` where the original
            does not run on the input of the file; of files for devices ``inputs and outputs`` and, by interpreter,
            ``numbers in TFLite Micro``.
        passed: whether it holds.
        detail: one sentence; for a failure, the first thing that differs.
        value: what was measured, if it is a number.
        limit: what it may be at most, if there is a limit.
    """

    name: str
    passed: bool
    detail: str
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class LayerPair:
    """Cost of one layer on both sides; None where a side lacks it."""

    name: str
    reference: ModuleCost | None
    candidate: ModuleCost | None


@dataclass(frozen=True)
class Verification:
    """What was compared, and how it came out."""

    checks: tuple[Check, ...]
    layers: tuple[LayerPair, ...]

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.passed for check in self.checks)

    def raise_on_failure(self, tolerated: Collection[str] = ()) -> None:
        """Raise VerificationError with the first failure's sentence.

        Args:
            tolerated: names of checks that may fail.
        """
        for check in self.checks:
            if not check.passed and check.name not in tolerated:
                raise VerificationError(f"{check.name} differ: {check.detail}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"passed": self.passed} | asdict(self)
