"""One part of a set of images of any size: in random crops, or in centre crops, to measure on; normalised."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nbcompile.core.errors import UsageError
from nbcompile.training.data.augmentations import AutoAugmented, drawn_seeds
from nbcompile.training.data.base import BRIGHTEST, SAMPLE, Indices, Labelled, Views, checksum_of
from nbcompile.training.data.crops import RATIOS, drawn_crops, random_crops

if TYPE_CHECKING:
    from nbcompile.training.data.held import InFiles, Source

# Statistics of ImageNet: what pretrained networks expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CROP = 0.875  # side of the centre crop over the resized shorter side


class CroppedImages(Views):
    """One part of a set, in random crops, mirrored or not, and changed by AutoAugment or not.

    Args:
        source: the images.
        size: side of the images given out, in pixels.
        least: share of the image in a crop; see `nbcompile.training.data.crops.boxes`.
        mirror: mirror about every other one.
        change: AutoAugment; None is none.
    """

    def __init__(
        self, source: "Source", size: int, least: float, *, mirror: bool, change: AutoAugmented | None = None
    ) -> None:
        self.source, self.size, self.least, self.mirror, self.change = source, size, least, mirror, change
        said = [f"crops of {least:g} to 1 of the area", "mirrored" if mirror else "", change.said if change else ""]
        self.augmentation = ", ".join(filter(None, said))
        self._mean, self._std = (torch.tensor(of).view(-1, 1, 1) * BRIGHTEST for of in (MEAN, STD))

    @property
    def labels(self) -> Tensor:
        """Labels ``(N,)``."""
        return self.source.labels

    def __len__(self) -> int:
        return len(self.source)

    def checksum(self) -> str:
        """Of all labels, and of the bytes of some images: what is given out is rounded as each machine does it."""
        images, _ = self.source.read(list(range(0, len(self), max(1, len(self) // SAMPLE))))
        return checksum_of(self.labels, *images)

    def draw(self, count: int) -> Tensor:
        """See `drawn_crops`; then a seed, where images are changed."""
        crops = drawn_crops(count, self.device)
        if not self.mirror:
            crops[:, -1] = 0
        return torch.cat([crops, drawn_seeds(count)], 1) if self.change else crops

    def view(self, indices: Indices, drawn: Tensor) -> Labelled | UsageError:
        """Crops ``(N, 3, size, size)`` as ``drawn`` ``(N, P)`` says, and labels ``(N,)``."""
        try:
            images, labels = self.source.read(indices)
        except UsageError as error:
            return error
        x = random_crops(images, drawn, self.least, self.size)
        if self.change:
            x = self.change(x.round_().byte(), drawn[:, -1]).float()
        return x.sub_(self._mean).div_(self._std), labels

    def hold_on(self, device: torch.device) -> bool:
        """See `Views.hold_on`; of images of one size, which are not changed one at a time."""
        if self.change or not self.source.hold_on(device):
            return False
        self.device, self._mean, self._std = device, self._mean.to(device), self._std.to(device)
        return True

    def over(self, source: "Source") -> "CroppedImages":
        """Other images, given out like these."""
        return CroppedImages(source, self.size, self.least, mirror=self.mirror, change=self.change)

    def resize(self, side: int) -> None:
        """Images are ``side`` pixels wide and high from now on."""
        self.size = side


class CentredImages(Views):
    """One part of a set in files, in centre crops.

    Args:
        source: the images.
        size: side of the images given out, in pixels.
    """

    augmentation = "none"

    def __init__(self, source: "InFiles", size: int) -> None:
        self.source = source
        self.resize(size)

    @property
    def labels(self) -> Tensor:
        """Labels ``(N,)``."""
        return self.source.labels

    def __len__(self) -> int:
        return len(self.source)

    def draw(self, count: int) -> Tensor:
        """Nothing."""
        return torch.empty(count, 0, dtype=torch.int16)

    def view(self, indices: Indices, drawn: Tensor) -> Labelled | UsageError:
        """Centre crops ``(N, 3, size, size)``, and labels ``(N,)``."""
        try:
            pairs = self.source.pillow(indices)
        except UsageError as error:
            return error
        return torch.stack([self._transform(image) for image, _ in pairs]), torch.tensor([label for _, label in pairs])

    def over(self, source: "InFiles") -> "CentredImages":
        """Other images, given out like these."""
        return CentredImages(source, self.size)

    def resize(self, side: int) -> None:
        """Images are ``side`` pixels wide and high from now on."""
        from torchvision.transforms import v2

        self.size = side
        to_input = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        self._transform = v2.Compose([centred(side), *to_input])


def centred(size: int) -> Any:
    """Takes the centre of an image of Pillow, ``size`` pixels wide and high, after its shorter side became larger."""
    from torchvision.transforms import v2

    return v2.Compose([v2.Resize(round(size / CROP)), v2.CenterCrop(size)])


def shrunk(image: Any, size: int, least: float) -> Any:
    """An image of Pillow as large as its crops of ``size`` pixels need it, or as it is, if that is smaller.

    The narrowest crop takes ``sqrt(least * RATIOS[0])`` of the shorter side; where it has ``size`` pixels or more, no
    crop is enlarged that would not be enlarged if it were taken from the file.
    """
    from torchvision.transforms.v2 import functional

    side = math.ceil(size / math.sqrt(least * RATIOS[0]))
    return image if min(image.size) <= side else functional.resize(image, [side])
