"""What a run costs in training compute, and what our measured table would have done with it.

To learn from an image counts as three forward passes: the pass itself, the gradients of feature maps, those of weights.
A teacher's answer counts as one. What is done once a step or an epoch (the optimiser, composing weights in weight
space, measuring) does not count.

Source: Kaplan et al. 2020, arXiv:2001.08361, sec. 2.1, for the factor.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from nbcompile.core.copies import copied
from nbcompile.core.cost import cost
from nbcompile.core.errors import UsageError
from nbcompile.core.example import Origin, TensorSpec, remember
from nbcompile.results.layer_costs import original_of
from nbcompile.training.methods import MethodRow, default_method
from nbcompile.training.options.rules import check_schedule, refuse_two_ends

if TYPE_CHECKING:
    from nbcompile.training.options.config import TrainConfig

LEARNING = 3
"""Forward passes that a training step is worth."""

DEAR = 3
"""Times the MACs of plain training above which a run says so; the paper's giants take 1.8 to 2.3."""

MEASURED = 90_680
"""Parameters of the largest network in docs/accuracy.md."""

MOST_EPOCHS = 100_000
"""Epochs that no budget pays for: it must be a mistake."""


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """Multiply-accumulates of all training steps of a run.

    Attributes:
        network: spent on the network at its own size.
        giant: spent on it while it was larger.
        teacher: spent on a teacher's answers.
        plain_epoch: of an epoch that trains the network plainly.
        epochs: of the run.
        budget: that the epochs were chosen for; None where they were given.
        dearest: of an epoch, the most that is spent in one on what is trained.
    """

    network: int
    giant: int
    teacher: int
    plain_epoch: int
    epochs: int
    budget: float | None = None
    dearest: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.network + self.giant + self.teacher

    @property
    def over_plain(self) -> float:
        """The total over that of plain training of as many epochs."""
        return self.total / max(1, self.epochs * self.plain_epoch)

    @property
    def plain_epochs(self) -> int:
        """Whole epochs of plain training that the total would have paid for."""
        return self.total // max(1, self.plain_epoch)

    def to_json(self) -> dict[str, Any]:
        """All fields, and what follows from them."""
        follows = {name: getattr(self, name) for name in ("total", "over_plain", "plain_epochs")}
        return dataclasses.asdict(self) | follows

    def __str__(self) -> str:
        parts = {"giant": self.giant, "network": self.network, "teacher": self.teacher}
        listed = ", ".join(f"{name} {macs:.3g}" for name, macs in parts.items() if macs)
        split = "" if self.total == self.network else f" ({listed})"
        within = "" if self.budget is None else f" of a budget of {self.budget:.6g}"
        plain = f"{self.over_plain:.2f} × plain training of as many epochs"
        return f"{self.total:.3g} training MACs{within}{split}, {plain}"


class Prices:
    """What runs cost that differ in their epochs: what each phase trains is found out once.

    Args:
        model: what the runs start from, a giant or not; stays as it is.
        example: an image, ``(1, C, H, W)``.
        images: that an epoch trains on.
        teacher: a foreign one.
    """

    def __init__(self, model: nn.Module, example: Tensor, images: int, teacher: nn.Module | None = None) -> None:
        self._model, self._example, self._images, self._teacher = model, example, images, teacher
        self._plain = cost(original_of(self._start()), example).macs
        self._known: dict[tuple[str, int | None], tuple[int, int, int]] = {}

    def of(self, config: "TrainConfig") -> TrainingCost:
        """Count the multiply-accumulates of a run, from what its method trains in which epoch; nothing is trained."""
        method = config.method_row.start(config, 1, self._teacher)
        sides = [config.side_in(epoch) if config.sizes else None for epoch in range(config.epochs)]
        phases = [(method.phase(epoch), side) for epoch, side in enumerate(sides)]
        if not self._known.keys() >= set(phases):
            self._find_out(config, phases)
        own, larger, asked = (sum(self._known[phase][i] for phase in phases) for i in range(3))
        return TrainingCost(
            network=self._images * LEARNING * (own + (config.int8 or 0) * self._plain),
            giant=self._images * LEARNING * larger,
            teacher=self._images * asked,
            plain_epoch=self._images * LEARNING * self._plain,
            epochs=config.all_epochs,
            budget=config.macs,
            dearest=self._images * LEARNING * max(sum(self._known[phase][:2]) for phase in phases),
        )

    def _start(self) -> nn.Module:
        network = copied(self._model)
        remember(network, Origin((TensorSpec(tuple(self._example.shape)),)))
        return network

    def _find_out(self, config: "TrainConfig", phases: Sequence[tuple[str, int | None]]) -> None:
        """What an image costs in each phase, at each size: the network, what is larger, a teacher's answer."""
        method = config.method_row.start(config, 1, self._teacher)
        network = method.prepare(self._start())
        for epoch, phase in enumerate(phases):
            network = method.advance(network, epoch)
            method.attach(network, epoch)
            if phase not in self._known:
                example, side = self._example, phase[1]
                if side is not None:
                    example = example.new_zeros(*example.shape[:2], side, side)
                self._known[phase] = (*method.macs(network, example), method.asked(example))


def training_cost(
    model: nn.Module, config: "TrainConfig", example: Tensor, images: int, teacher: nn.Module | None = None
) -> TrainingCost:
    """What one run costs; see `Prices`."""
    return Prices(model, example, images, teacher).of(config)


def within_budget(config: "TrainConfig", prices: Prices, begun: int | None = None) -> "TrainConfig":
    """``config`` with as many epochs as its ``macs`` pay for; itself, where it has none.

    The whole schedule, phases and cosine, is that of a run of so many epochs.

    Args:
        config: of the run.
        prices: of its network.
        begun: how many epochs a run has that is resumed; it keeps them.

    Raises:
        UsageError: if ``epochs`` are given, too, or the budget is too small for one epoch, for the schedule that is
            asked for, or so large that it must be a mistake.
    """
    if config.macs is None:
        return config
    budget = config.macs
    refuse_two_ends(epochs=config.epochs != type(config).epochs, macs=True)
    if begun is not None:
        return dataclasses.replace(config, epochs=begun)

    low = _most_epochs(config, prices, budget)
    found = dataclasses.replace(config, epochs=low)
    try:
        check_schedule(found)
    except UsageError as error:
        raise UsageError(f"macs {budget:.6g} pays for {low} epoch{'s' * (low != 1)}: {error}") from error
    return found


def _most_epochs(config: "TrainConfig", prices: Prices, budget: float) -> int:
    """How many epochs ``budget`` pays for; a longer run never costs less.

    Raises:
        UsageError: if there is not one, or there are more than anybody wants.
    """

    def total(epochs: int) -> int:
        return prices.of(dataclasses.replace(config, epochs=epochs)).total

    total(config.epochs)  # a run of usual length has all phases: others need not find out any
    if (one := total(1)) > budget:
        raise UsageError(f"macs {budget:.6g} is less than one epoch costs: {one:.6g} by '{config.method_row.name}'")
    low, high = 1, 2
    while total(high) <= budget:
        low, high = high, 2 * high
        if high > MOST_EPOCHS:
            raise UsageError(f"macs {budget:.6g} pays for more than {MOST_EPOCHS:,} epochs of {one:.6g}: give less")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if total(middle) <= budget else (low, middle)
    return low


def warning(row: MethodRow, spent: TrainingCost) -> str | None:
    """What is to be known before a run by the method of ``row`` begins, if its giant is dear; None where it is not."""
    times = spent.dearest / max(1, spent.plain_epoch)
    if times <= DEAR:
        return None
    smaller = " or ".join(f"--{name}" for name in ("ratio", "factors") if name in row.takes)
    less = f": a smaller {smaller} takes less" if smaller else ""
    return f"an epoch takes up to {times:.1f} × the training MACs of a plain one{less}"


def advice(row: MethodRow, spent: TrainingCost) -> str:
    """What docs/accuracy.md recommends at the cost of a run by the method of ``row``, and what it says of that."""
    plain, count = default_method().name, spent.plain_epochs
    said = f"docs/accuracy.md, up to {MEASURED:,} parameters, recommends at this cost: {plain}"
    if row.name == plain and not spent.giant:
        return f"{said}, as here"
    return f"{said} for {count} epoch{'s' * (count != 1)} ({row.name}: {row.measured})"
