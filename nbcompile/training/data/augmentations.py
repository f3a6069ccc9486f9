"""Augmentation beyond shifts and crops, by torchvision; it is reported to cost tiny networks accuracy.

Sources: Zhang et al. 2018, arXiv:1710.09412 (mixup); Yun et al. 2019, arXiv:1905.04899 (CutMix); Cubuk et al. 2019,
arXiv:1805.09501 (AutoAugment).
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nbcompile.core.errors import UsageError
from nbcompile.core.random_state import forked_rng
from nbcompile.training.batch import MIXTURE

if TYPE_CHECKING:
    from nbcompile.training.data.base import Images

_NETAUG = "NetAug, Cai et al. 2022, arXiv:2110.08890, fig. 2: MobileNetV2-Tiny falls from 52.4 to about"

HURTS = {
    "mixup": f"{_NETAUG} 51.7 %",
    "cutmix": "GhostNetV3, Liu et al. 2024, arXiv:2404.11202, abstract",
    "autoaugment": f"{_NETAUG} 51.0 %; it also takes images one at a time, which is slow",
}
"""Who says so."""

ALPHA = {"mixup": 0.2, "cutmix": 1.0}
"""Of ``Beta(alpha, alpha)``, from which the share of an image is drawn, once a batch: as in the papers, on ImageNet."""

SEEDS = 1 << 15
"""Ways in which AutoAugment changes an image."""


class Mixed:
    """Batches whose images are mixed with each other, and whose labels are shares of classes.

    Args:
        images: the set.
        kind: ``mixup`` or ``cutmix``.
        classes: K.
    """

    def __init__(self, images: "Images", kind: str, classes: int) -> None:
        from torchvision.transforms import v2

        make: Any = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[kind]
        self.images, self._mix = images, make(alpha=ALPHA[kind], num_classes=classes)

    @property
    def labels(self) -> Tensor:
        """Labels ``(N,)``, before images are mixed."""
        return self.images.labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: list[int]) -> Any:
        """Images, the labels of their larger shares, and by name all shares ``(N, K)``: see `Batch`."""
        found = self.images[indices]
        if isinstance(found, UsageError):
            return found
        images, mixture = self._mix(*found)
        return images, mixture.argmax(1), {MIXTURE: mixture}


class AutoAugmented:
    """What torchvision's AutoAugment makes of images, one at a time.

    Args:
        policy: ``imagenet`` or ``cifar10``.
    """

    def __init__(self, policy: str) -> None:
        from torchvision.transforms import v2

        self._change = v2.AutoAugment(v2.AutoAugmentPolicy(policy))
        self.said = f"AutoAugment for {policy}"

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Images ``(N, 3, H, W)``, uint8, changed as the seeds ``(N,)`` say."""
        changed = []
        with forked_rng():
            for image, seed in zip(images, seeds.tolist(), strict=True):
                torch.manual_seed(seed)
                changed.append(self._change(image))
        return torch.stack(changed)


def drawn_seeds(count: int) -> Tensor:
    """Seeds ``(count, 1)``, int16."""
    return torch.randint(0, SEEDS, (count, 1), dtype=torch.int16)
