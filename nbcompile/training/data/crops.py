"""Random crops, resized: Szegedy et al. 2015, arXiv:1409.4842, sec. 6; many images at once, where they have one size.

Antialiased bilinear resizing is separable: the crop of a channel ``X`` is ``A X B^T``, with matrices that hold the
triangle filter of each output row and column. They are made for a whole batch in one computation, so that no image
needs Python of its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PARTS = 1 << 15
"""What is drawn is a whole number of these parts of 1."""

RATIOS = (3 / 4, 4 / 3)
"""Least and largest width of a crop over its height."""


SMALL = 64
"""Sides in pixels up to which many images at once are ahead; of larger ones the matrices are mostly zeros."""

CROPS_AT_ONCE = 32
"""Images whose crops a processor makes at once: what is made on the way stays in its cache."""


def drawn_crops(count: int, device: torch.device | None = None) -> Tensor:
    """Random crops ``(count, 5)``, int16, of any image: see `boxes`; the last number is 1 for a mirror image."""
    crops = torch.randint(0, PARTS, (count, 5), dtype=torch.int16, device=device)
    crops[:, 4] //= PARTS // 2
    return crops


def random_crops(images: Tensor | list[Tensor], drawn: Tensor, least: float, out: int) -> Tensor:
    """A crop of each image, resized to a square: ``(N, C, out, out)``, float32.

    Args:
        images: ``(N, C, H, W)``, or each ``(C, H, W)``; of any dtype.
        drawn: see `drawn_crops`.
        least: see `boxes`.
        out: side, in pixels.
    """
    box, mirror = boxes(drawn, _sides(images), least), drawn[:, 4] == 1
    if isinstance(images, Tensor) and max(images.shape[2:]) <= SMALL:
        at_once = CROPS_AT_ONCE if images.device.type == "cpu" else len(images)
        parts = (slice(start, start + at_once) for start in range(0, len(images), at_once))
        return torch.cat([cropped_alike(images[part], box[part], mirror[part], out) for part in parts])
    each = zip(images, box.tolist(), mirror.tolist(), strict=True)
    return torch.stack([cropped(*one, out) for one in each])


def _sides(images: Tensor | list[Tensor]) -> Tensor:
    """Height and width of each image, ``(N, 2)``, or ``(1, 2)`` of all; numbers that are sent wait for the device."""
    if isinstance(images, Tensor):
        return torch.cat([torch.full((1, 1), side, device=images.device) for side in images.shape[2:]], 1)
    return torch.tensor([image.shape[1:] for image in images])


def boxes(drawn: Tensor, sides: Tensor, least: float) -> Tensor:
    """Crops of images: top, left, height and width in pixels, ``(N, 4)``, int64.

    The area is uniform, from ``least`` of the image to all of it; the logarithm of the ratio of width to height is
    uniform among those within ``RATIOS`` with which such an area fits into the image; places are uniform. Of an image
    that is longer than ``RATIOS``, the largest crop that there is stands for all of it. (torchvision draws area and
    ratio until they fit, which makes large areas rarer: of a square image those above 3/4.)

    Args:
        drawn: ``(N, 4)`` or more columns: area, ratio, row and column, in `PARTS` of their ranges.
        sides: height and width of each image, in pixels, ``(N, 2)``, or ``(1, 2)`` of all.
        least: share of the area, in (0, 1].
    """
    area, ratio, row, column = (drawn[:, :4].double() / PARTS).unbind(1)
    height, width = sides.double().unbind(1)
    own = width / height
    most = torch.minimum(RATIOS[1] / own, own / RATIOS[0]).clamp(max=1)
    share = torch.lerp(most.clamp(max=least), most, area)
    low, high = (share * own).clamp(min=RATIOS[0]).log(), (own / share).clamp(max=RATIOS[1]).log()
    wanted, pixels = torch.lerp(low, high, ratio).exp(), share * height * width
    h = torch.minimum((pixels / wanted).sqrt().round(), height).clamp(min=1)
    w = torch.minimum((pixels * wanted).sqrt().round(), width).clamp(min=1)
    return torch.stack([(row * (height - h + 1)).floor(), (column * (width - w + 1)).floor(), h, w], 1).long()


def filters(start: Tensor, length: Tensor, size: int, out: int) -> Tensor:
    """Matrices ``(N, out, size)`` that resize pixels ``start`` to ``start + length`` of ``size`` to ``out`` pixels.

    The filter is a triangle, as wide as ``max(1, length / out)`` on each side, cut off at the ends of the crop: what
    torchvision's ``resized_crop`` does to tensors with ``antialias=True``.

    Args:
        start: ``(N,)``, in pixels.
        length: ``(N,)``, in pixels.
        size: of the whole, in pixels.
        out: pixels.
    """
    scale = (length.float() / out).view(-1, 1, 1)
    centre = scale * (torch.arange(out, device=start.device) + 0.5).view(1, -1, 1)
    place = torch.arange(size, device=start.device) + 0.5 - start.view(-1, 1, 1).float()
    weights = (1 - (place - centre).abs() / scale.clamp(min=1)).clamp_(min=0)
    weights *= (place > 0) & (place < length.view(-1, 1, 1))
    return weights / weights.sum(2, keepdim=True)


def cropped_alike(images: Tensor, box: Tensor, mirror: Tensor, out: int) -> Tensor:
    """Crops of images of one size, each resized to a square: ``(N, C, out, out)``, float32.

    Args:
        images: ``(N, C, H, W)``, of any dtype.
        box: see `boxes`.
        mirror: ``(N,)``, where the crop is turned left to right.
        out: side, in pixels.
    """
    n, channels, height, width = images.shape
    top, left, h, w = box.unbind(1)
    rows, columns = filters(top, h, height, out), filters(left, w, width, out)
    columns = torch.where(mirror.view(-1, 1, 1), columns.flip(1), columns)
    x = images.permute(0, 2, 1, 3).float().reshape(n, height * channels, width) @ columns.mT
    x = rows @ x.view(n, height, channels * out)
    return x.view(n, out, channels, out).transpose(1, 2).contiguous()


def cropped(image: Tensor, box: list[int], mirror: bool, out: int) -> Tensor:
    """As `cropped_alike`, of one image ``(C, H, W)``: ``(C, out, out)``."""
    top, left, h, w = box
    part = image[None, :, top : top + h, left : left + w].float()
    x = F.interpolate(part, size=(out, out), mode="bilinear", antialias=True)[0]
    return x.flip(2) if mirror else x
