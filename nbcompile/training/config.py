"""What a training run is told: one frozen object, checked once, saved as JSON in the run folder."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nbcompile.core.errors import UsageError

METHOD_NAMES = ("vanilla", "netbooster")
PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The reference recipe: SGD with Nesterov momentum, linear warm-up, one cosine to zero, label smoothing.

    Every method gets the same recipe and the same total of epochs.

    Attributes:
        data: ``digits`` or ``imagefolder:DIR``.
        method: ``vanilla`` (the network as it is) or ``netbooster`` (expand, train, PLT, fine-tune).
        epochs: passes over the training set in the whole run, > 0.
        batch_size: images per optimiser step, summed over all processes, > 0.
        lr: peak learning rate for one batch of ``batch_size``, > 0.
        momentum: of SGD, in [0, 1).
        weight_decay: per optimiser step times ``lr``, >= 0; biases and norm parameters get none.
        warmup_epochs: length of the linear warm-up, in epochs, in [0, ``epochs``); None is 2, at most a fifth of
            ``epochs``.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        seed: of initial weights, data order and augmentation, >= 0.
        input_size: side of the square input, in pixels; None is the data set's own (digits: 8) or the model's.
        where: netbooster, for a network that is no giant yet: the sites, as in ``nbcompile.expand``.
        block: likewise: the kind of block, as in ``nbcompile.expand``.
        ratio: likewise: hidden width over input channels, >= 1.
        preserve: likewise: keep the original layer as a parallel branch.
        giant_epochs: netbooster: epochs before the slopes start to rise; None is half of ``epochs``.
        plt_epochs: netbooster: E_d, length of the rise, in epochs; None is 20 % of the epochs after
            ``giant_epochs``, at least 1.
        num_workers: processes that read and augment images, per training process, >= 0.
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``, as in Lightning Fabric.
        devices: training processes that nbcompile starts itself, > 0; under torchrun, torchrun decides.
        precision: ``32-true`` or ``bf16-mixed``.

    Source: NetAug's recipe (Cai et al. 2022, arXiv:2110.08890), on which NetBooster builds (Yu et al. 2023,
    arXiv:2306.13586, sec. 4.1). ``lr``, ``batch_size`` and ``weight_decay`` were tuned on digits, for ``vanilla``
    alone.
    """

    data: str = "digits"
    method: str = "netbooster"
    epochs: int = 60
    batch_size: int = 32
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float | None = None
    label_smoothing: float = 0.1
    seed: int = 0
    input_size: int | None = None
    where: str | tuple[str, ...] = "uniform:0.5"
    block: str = "inverted-residual"
    ratio: int = 6
    preserve: bool = False
    giant_epochs: int | None = None
    plt_epochs: int | None = None
    num_workers: int = 0
    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"

    def __post_init__(self) -> None:
        if not isinstance(self.where, str):
            object.__setattr__(self, "where", tuple(self.where))
        self._check_choices()
        self._check_numbers()
        if self.method == "netbooster" and self.ramp[0] + self.ramp[1] > self.epochs:
            raise UsageError(
                f"giant_epochs {self.ramp[0]} + plt_epochs {self.ramp[1]} is more than epochs {self.epochs}: "
                f"the slopes would not reach 1"
            )

    def _check_choices(self) -> None:
        if self.method not in METHOD_NAMES:
            raise UsageError(f"method must be one of {', '.join(METHOD_NAMES)}, not '{self.method}'")
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, not '{self.precision}'")

    def _check_numbers(self) -> None:
        positive = ("epochs", "batch_size", "lr", "ratio", "devices", "input_size", "plt_epochs")
        not_negative = ("weight_decay", "warmup_epochs", "seed", "giant_epochs", "num_workers")
        for name in positive:
            self._check(name, "> 0", lambda x: x > 0)
        for name in not_negative:
            self._check(name, ">= 0", lambda x: x >= 0)
        for name in ("momentum", "label_smoothing"):
            self._check(name, "in [0, 1)", lambda x: 0 <= x < 1)
        if self.warmup >= self.epochs:
            raise UsageError(f"warmup_epochs must be less than epochs {self.epochs}, not {self.warmup_epochs}")

    def _check(self, name: str, bound: str, fine: Callable[[float], bool]) -> None:
        value = getattr(self, name)
        if value is not None and not (math.isfinite(value) and fine(value)):
            raise UsageError(f"{name} must be {bound}, not {value}")

    @property
    def warmup(self) -> float:
        """Length of the linear warm-up, in epochs."""
        return min(2.0, self.epochs / 5) if self.warmup_epochs is None else self.warmup_epochs

    @property
    def ramp(self) -> tuple[int, int]:
        """Start and length of the rise of the slopes, in epochs."""
        start = self.epochs // 2 if self.giant_epochs is None else self.giant_epochs
        length = max(1, round(0.2 * (self.epochs - start))) if self.plt_epochs is None else self.plt_epochs
        return start, length

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON has them."""
        fields = dataclasses.asdict(self)
        return fields | {"where": list(self.where) if isinstance(self.where, tuple) else self.where}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "TrainConfig":
        """The inverse of ``to_json``.

        Raises:
            UsageError: if a field is unknown, or a value is out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise UsageError(f"no training option is called {', '.join(unknown)}; there are {', '.join(sorted(known))}")
        return cls(**fields)
