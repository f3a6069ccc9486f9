"""Loss and accuracy of the batches of an epoch, fetched from the device a few steps at a time."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nbcompile.core.errors import NBCompileError
from nbcompile.training.accuracy import averaged
from nbcompile.training.outputs.records import Stepped
from nbcompile.training.session import Session

EVERY = 20
"""Optimiser steps between two looks at an accelerator: each look waits until it has done all of them."""


@dataclass(frozen=True)
class _Step:
    """One optimiser step, whose loss may still be on its way."""

    number: int
    lr: float
    slope: float | None
    loss: Tensor
    right: Tensor
    images: int


class Meter:
    """Collects the steps of one epoch and tells them, in order; on the CPU each at once.

    Args:
        session: gives engine, listener and run folder.
        epoch: counted from 0.
        every: optimiser steps between two looks at the device; None: ``EVERY``, on the CPU 1.
    """

    def __init__(self, session: Session, epoch: int, every: int | None = None) -> None:
        self._session, self._epoch = session, epoch
        self._every = every or (1 if session.fabric.device.type == "cpu" else EVERY)
        self._waiting: list[_Step] = []
        self._losses: list[float] = []
        self._right = self._images = 0

    def add(self, lr: float, loss: Tensor, right: Tensor, images: int) -> None:
        """One optimiser step is done.

        Args:
            lr: its learning rate.
            loss: mean over the images of this process, a scalar.
            right: how many of them were named rightly, a scalar.
            images: how many there were.

        Raises:
            NBCompileError: if a loss is no finite number; on all processes at once.
        """
        step = self._session.step
        self._waiting.append(_Step(step, lr, self._session.method.slope, loss.detach(), right, images))
        if len(self._waiting) == self._every:
            self._fetch()

    def finish(self) -> tuple[float, float]:
        """Mean loss and accuracy of the epoch over all processes.

        Raises:
            NBCompileError: as ``add``.
        """
        self._fetch()
        # Every process has as many images in every batch, so that means of means are means.
        (accuracy,) = averaged(self._session.fabric, self._right / self._images)
        return sum(self._losses) / len(self._losses), accuracy

    def _fetch(self) -> None:
        if not self._waiting:
            return
        losses = averaged(self._session.fabric, *torch.stack([step.loss for step in self._waiting]).tolist())
        right = torch.stack([step.right for step in self._waiting]).tolist()
        for step, loss, hits in zip(self._waiting, losses, right, strict=True):
            self._require_finite(step, loss)
            self._losses.append(loss)
            self._right += hits
            self._images += step.images
            self._session.tell(
                Stepped(
                    epoch=self._epoch + 1,
                    step=step.number,
                    loss=loss,
                    accuracy=self._right / self._images,
                    slope=step.slope,
                    lr=step.lr,
                    phase=self._session.phase(self._epoch),
                )
            )
        self._waiting.clear()

    def _require_finite(self, step: _Step, loss: float) -> None:
        if not math.isfinite(loss):
            raise NBCompileError(
                f"the loss is {loss} at optimiser step {step.number} with learning rate {step.lr:.3g}: "
                f"lower lr, or lengthen warmup_epochs; {self._session.folder.kept()}"
            )
