"""What a run costs in training compute, and what our measured table would have done with it.

To learn from an image counts as three forward passes: the pass itself, the gradients of feature maps, those of weights.
A teacher's answer counts as one. What is done once a step or an epoch (the optimiser, composing weights in weight
space, measuring) does not count.

Source: Kaplan et al. 2020, arXiv:2001.08361, sec. 2.1, for the factor.
"""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from nbcompile.core.copies import copied
from nbcompile.core.cost import cost
from nbcompile.core.example import Origin, TensorSpec, remember
from nbcompile.results.layer_costs import original_of
from nbcompile.training.methods import MethodRow, default_method

if TYPE_CHECKING:
    from nbcompile.training.options.config import TrainConfig

LEARNING = 3
"""Forward passes that a training step is worth."""

DEAR = 3
"""Times the MACs of plain training above which a run says so; the paper's giants take 1.8 to 2.3."""

MEASURED = 65_690
"""Parameters of the largest network in docs/accuracy.md."""


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """Multiply-accumulates of all training steps of a run.

    Attributes:
        network: spent on the network at its own size.
        giant: spent on it while it was larger.
        teacher: spent on a teacher's answers.
        plain_epoch: of an epoch that trains the network plainly.
        epochs: of the run.
        dearest: of an epoch, the most that is spent in one on what is trained.
    """

    network: int
    giant: int
    teacher: int
    plain_epoch: int
    epochs: int
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
        return f"{self.total:.3g} training MACs{split}, {self.over_plain:.2f} × plain training of as many epochs"


def training_cost(
    model: nn.Module, config: "TrainConfig", example: Tensor, images: int, teacher: nn.Module | None = None
) -> TrainingCost:
    """Count the multiply-accumulates of a run, from what its method trains in which epoch; nothing is trained.

    Args:
        model: what the run starts from, a giant or not; stays as it is.
        config: of the run.
        example: an image, ``(1, C, H, W)``.
        images: that an epoch trains on.
        teacher: a foreign one.
    """
    method = config.method_row.start(config, 1, teacher)
    network = copied(model)
    remember(network, Origin((TensorSpec(tuple(example.shape)),)))
    network, plain = method.prepare(network), cost(original_of(model), example).macs
    spent, phase, own, larger, asked = {"network": 0, "giant": 0, "teacher": 0, "dearest": 0}, None, 0, 0, 0
    for epoch in range(config.epochs):
        network = method.advance(network, epoch)
        method.attach(network, epoch)
        if phase != (phase := method.phase(epoch)):
            own, larger = method.macs(network, example)
            asked = 0 if method.teacher is None else cost(method.teacher, example).macs
        spent["network"] += images * LEARNING * own
        spent["giant"] += images * LEARNING * larger
        spent["teacher"] += images * asked
        spent["dearest"] = max(spent["dearest"], images * LEARNING * (own + larger))
    return TrainingCost(**spent, plain_epoch=images * LEARNING * plain, epochs=config.epochs)


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
