"""What a training run is told: one frozen object, checked once, saved as JSON in the run folder."""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

from nbcompile.core.errors import UsageError
from nbcompile.training.methods import METHODS, MethodRow, default_method
from nbcompile.training.rules import check, check_named


class Phases(NamedTuple):
    """Where the phases of netbooster begin, in epochs counted from 0; the last one ends with the run.

    Attributes:
        giant: the network is expanded, and trained as a giant.
        decay: the slopes start to rise.
        tune: the slopes are 1.
    """

    giant: int
    decay: int
    tune: int


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The reference recipe: SGD with Nesterov momentum, linear warm-up, one cosine to zero, label smoothing.

    Every method gets the same recipe and the same total of epochs.

    Attributes:
        data: ``digits``, ``cifar10:DIR``, ``imagefolder:DIR``, ``torchvision:NAME?root=DIR`` or
            ``package.module:factory``.
        train_images: train on so many images, evenly chosen, > 0; None takes all.
        skip_broken: pass over images that cannot be read, instead of refusing them.
        method: a name of ``METHODS``: ``vanilla`` (the network as it is), ``netbooster`` (expand, train, PLT,
            fine-tune), and both with distillation: ``kd``, ``netbooster+kd``. None is what docs/accuracy.md recommends:
            ``vanilla``, or with a teacher ``kd``; for a network that is a giant already ``netbooster`` in their place.
        epochs: passes over the training set in the whole run, > 0.
        batch_size: images per optimiser step, summed over all processes, > 0.
        accumulate: parts in which a process computes its share of a batch, one after the other, > 0.
        lr: peak learning rate for one batch of ``batch_size``, > 0.
        momentum: of SGD, in [0, 1).
        weight_decay: per optimiser step times ``lr``, >= 0; biases and norm parameters get none.
        warmup_epochs: length of the linear warm-up, in epochs, in [0, ``epochs``); None is 2, at most a fifth of
            ``epochs``.
        restarts: epochs at which the learning rate starts again at its peak, without warm-up, rising numbers.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        ema: decay per optimiser step of an exponential moving average of the weights, in [0, 1); it is measured and
            written instead of the last weights; 0 keeps none.
        new_head: transfer: a new last layer for the classes of ``data``.
        seed: of initial weights, data order and augmentation, >= 0.
        input_size: side of the square input, in pixels; None is the data set's own (digits: 8) or the model's.
        where: netbooster, for a network that is no giant yet: the sites, as in ``nbcompile.expand``.
        block: likewise: the kind of block, as in ``nbcompile.expand``.
        ratio: likewise: hidden width over input channels, >= 1.
        preserve: likewise: keep the original layer as a parallel branch.
        plain_epochs: netbooster: epochs before the network is expanded, >= 0; then best with ``preserve``.
        giant_epochs: netbooster: epochs before the slopes start to rise; None is half of the epochs after
            ``plain_epochs``.
        plt_epochs: netbooster: E_d, length of the rise, in epochs; None is 20 % of the epochs after the giant's, at
            least 1; 0 removes the activations at once.
        decay: netbooster: how the slopes rise, ``linear`` or ``cosine``.
        contract_at: netbooster: train the giant to the ``end``, or from the end of the ``decay`` on the tiny network.
        collapse: netbooster: from the end of the decay train in weight space, as ``nbcompile.collapse_`` does.
        inserted_lr: netbooster: learning rate of inserted layers over ``lr``, > 0.
        inserted_weight_decay: netbooster: weight decay of inserted layers over ``weight_decay``, >= 0.
        teacher: kd: a MODEL, a file, or ``self`` (netbooster+kd: the giant, before its slopes rise).
        teacher_model: kd: the MODEL whose weights the file ``teacher`` holds, where it does not say so.
        temperature: kd: T, that softens both distributions, > 0.
        kd_weight: kd: share of the distillation in the loss, in [0, 1].
        num_workers: processes that read and augment images, per training process, >= 0.
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``, as in Lightning Fabric.
        devices: training processes that nbcompile starts itself, > 0; under torchrun, torchrun decides.
        precision: ``32-true`` or ``bf16-mixed``.
        compile: whether ``torch.compile`` compiles the training step's forward.
        channels_last: memory format of images and weights.

    Source: NetAug's recipe (Cai et al. 2022, arXiv:2110.08890), on which NetBooster builds (Yu et al. 2023,
    arXiv:2306.13586, sec. 4.1). ``lr``, ``batch_size`` and ``weight_decay`` were tuned on digits, for ``vanilla``
    alone. ``temperature`` and ``kd_weight``: Tian et al. 2020, arXiv:1910.10699.
    """

    data: str = "digits"
    train_images: int | None = None
    skip_broken: bool = False
    method: str | None = None
    epochs: int = 60
    batch_size: int = 32
    accumulate: int = 1
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float | None = None
    restarts: tuple[int, ...] = ()
    label_smoothing: float = 0.1
    ema: float = 0.0
    new_head: bool = False
    seed: int = 0
    input_size: int | None = None
    where: str | tuple[str, ...] = "uniform:0.5"
    block: str = "inverted-residual"
    ratio: int = 6
    preserve: bool = False
    plain_epochs: int = 0
    giant_epochs: int | None = None
    plt_epochs: int | None = None
    decay: str = "linear"
    contract_at: str = "end"
    collapse: bool = False
    inserted_lr: float = 1.0
    inserted_weight_decay: float = 1.0
    teacher: str | None = None
    teacher_model: str | None = None
    temperature: float = 4.0
    kd_weight: float = 0.9
    num_workers: int = 0
    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    compile: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.where, str):
            object.__setattr__(self, "where", tuple(self.where))
        object.__setattr__(self, "restarts", tuple(self.restarts))
        check(self)

    @property
    def method_row(self) -> MethodRow:
        """The method; where none is named, that for a network which is no giant yet."""
        return default_method(teacher=self.teacher is not None) if self.method is None else METHODS[self.method]

    @property
    def expands(self) -> bool:
        """Whether the method trains a giant."""
        return self.method_row.expands

    @property
    def distils(self) -> bool:
        """Whether the method has a teacher."""
        return self.method_row.distils

    def for_network(self, *, giant: bool) -> "TrainConfig":
        """With the method's name, for a network that is a giant or not.

        Raises:
            UsageError: if none is named, and an option is given that goes with another one.
        """
        if self.method is not None:
            return self
        row = default_method(giant=giant, teacher=self.teacher is not None)
        check_named(self, row)
        return dataclasses.replace(self, method=row.name)

    @property
    def warmup(self) -> float:
        """Length of the linear warm-up, in epochs."""
        return min(2.0, self.epochs / 5) if self.warmup_epochs is None else self.warmup_epochs

    @property
    def phases(self) -> Phases:
        """Of netbooster."""
        giant = self.plain_epochs
        decay = giant + ((self.epochs - giant) // 2 if self.giant_epochs is None else self.giant_epochs)
        length = max(1, round(0.2 * (self.epochs - decay))) if self.plt_epochs is None else self.plt_epochs
        return Phases(giant, decay, decay + length)

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON has them."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

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
