"""``voc:DIR``: images with boxes, in Pascal VOC's layout.

``voc:DIR?train=trainval&val=test&classes=cat,dog`` names other parts than ``train`` and ``val``, and the classes, which
are else those of the annotations, sorted. An image without objects is background, and learnt as such.
"""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nbcompile.core.errors import UsageError
from nbcompile.detection.boxes import anchors_of
from nbcompile.detection.decode import BoxCoding
from nbcompile.detection.network import ANCHORS, grid_of
from nbcompile.image_files import opened
from nbcompile.training.data.base import Data, Labelled
from nbcompile.training.data.boxes.views_of_boxes import WHOLE, boxes_in, drawn_view, shown
from nbcompile.training.data.boxes.voc_files import Annotation, names_in, read_annotation, voc_root
from nbcompile.training.data.cropped_images import MEAN, STD
from nbcompile.training.data.pictures import GO_ON, readable
from nbcompile.training.engine import is_main_process
from nbcompile.training.tasks.detection import Detection

log = logging.getLogger("nbcompile")


class BoxImages:
    """One part: images of any size, each at the same size, its whole or, to train on, a window of it.

    Args:
        annotations: of the images.
        classes: names, in the order of the labels.
        size: side of the images given out, in pixels.
        augment: whether a window is drawn.
    """

    def __init__(
        self, annotations: Sequence[Annotation], classes: tuple[str, ...], size: int, *, augment: bool
    ) -> None:
        self.annotations, self.classes, self.size, self.augment = annotations, classes, size, augment
        self._mean, self._std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))

    @cached_property
    def labels(self) -> Tensor:
        """``(N, M, 5)``: class, or -1 where an image has fewer objects than another; corners in shares of its sides."""
        most = max(1, *(len(one.objects) for one in self.annotations))
        labels = torch.zeros(len(self.annotations), most, 5)
        labels[..., 0] = -1
        number = {name: i for i, name in enumerate(self.classes)}
        for row, one in zip(labels, self.annotations, strict=True):
            for place, (name, corners) in enumerate(one.objects):
                row[place] = torch.tensor([number[name], *corners])
        return labels

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, indices: list[int]) -> Labelled | UsageError:
        try:
            pairs = [self._item(index) for index in indices]
        except UsageError as error:
            return UsageError(f"{error}; {GO_ON}")
        return torch.stack([image for image, _ in pairs]), torch.stack([label for _, label in pairs])

    def _item(self, index: int) -> tuple[Tensor, Tensor]:
        image = read_image(self.annotations[index])
        window = drawn_view() if self.augment else WHOLE
        from torchvision.transforms.v2.functional import pil_to_tensor

        pixels = pil_to_tensor(shown(image, window, self.size)).float() / 255
        return (pixels - self._mean) / self._std, boxes_in(self.labels[index], window)


def read_image(one: Annotation) -> Any:
    """The image of an annotation, of Pillow, in RGB.

    Raises:
        UsageError: if it cannot be read, or is of another size.
    """
    image = opened(one.image, str(one.image))
    if image.size != one.size:
        sizes = "×".join(map(str, image.size)), "×".join(map(str, one.size))
        raise UsageError(f"{one.image} has {sizes[0]} pixels, and the boxes of its annotation are for {sizes[1]}")
    return image


def load_voc(spec: str, size: int | None, skip_broken: bool = False) -> Data:
    """A set of images with boxes at ``size`` × ``size`` pixels: each is squeezed, not cut.

    Args:
        spec: see above.
        size: side of the images given out, in pixels; None is refused.
        skip_broken: leave out images that cannot be read, or whose annotations cannot.

    Raises:
        UsageError: if the folder is not in VOC's layout, an annotation is not possible, or there are no boxes.
    """
    folder, wanted = _options(spec)
    if size is None:
        raise UsageError(f"{spec} needs input_size: the model remembers no square input")
    grid_of(size)
    root = voc_root(Path(folder))
    train, val = (_part(root, wanted.get(part, part), skip_broken) for part in ("train", "val"))
    classes = _classes(spec, train, val, wanted.get("classes"))
    training = BoxImages(train, classes, size, augment=True)
    corners = training.labels[training.labels[..., 0] >= 0][:, 1:]
    coding = BoxCoding.of_anchors(classes, anchors_of(corners[:, 2:] - corners[:, :2], 2 * ANCHORS))
    return Data(
        name=spec,
        train=training,
        val=BoxImages(val, classes, size, augment=False),
        classes=classes,
        shape=(3, size, size),
        preprocessing={
            "scale": 1 / 255, "mean": list(MEAN), "std": list(STD), "size": size, "boxes": coding.to_json()
        },
        task=Detection(coding, len(corners) / len(train)),
    )  # fmt: skip


def _options(spec: str) -> tuple[str, dict[str, str]]:
    """The folder, and what follows the question mark."""
    folder, _, query = spec.removeprefix("voc:").partition("?")
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    if unknown := [key for key, _, value in pairs if key not in ("train", "val", "classes") or not value]:
        raise UsageError(f"{spec}: option '{unknown[0]}' is not train=PART, val=PART or classes=NAME,NAME")
    return folder, {key: value for key, _, value in pairs}


def _part(root: Path, part: str, skip_broken: bool) -> list[Annotation]:
    found: list[Annotation] = []
    broken: list[str] = []
    for name in names_in(root, part):
        try:
            found.append(read_annotation(root, name))
        except UsageError as error:
            if not skip_broken:
                raise UsageError(f"{error}; {GO_ON}") from error
            broken.append(str(error))
    what = f"voc:{root}, {part}"
    if skip_broken and found:
        kept, _, _ = readable(_Annotated(found), lambda image, name: None, what, skip_broken=True)
        found = [found[i] for i in kept]
    if broken and is_main_process():
        log.warning("%s: %d annotations are left out; the first: %s", what, len(broken), broken[0])
    if not any(one.objects for one in found):
        raise UsageError(f"{what} has no boxes: there is nothing to detect")
    empty = [one.image.name for one in found if not one.objects]
    if empty and is_main_process():
        log.warning(
            "%s: %d of %d images have no objects, such as %s: they are background",
            what,
            len(empty),
            len(found),
            empty[0],
        )
    return found


class _Annotated:
    """As `nbcompile.training.data.pictures` reads them."""

    def __init__(self, annotations: Sequence[Annotation]) -> None:
        self.annotations = annotations

    def __len__(self) -> int:
        return len(self.annotations)

    def name(self, index: int) -> str:
        return str(self.annotations[index].image)

    def label(self, index: int) -> int:
        return 0

    def read(self, index: int) -> tuple[Any, int]:
        return read_image(self.annotations[index]), 0


def _classes(spec: str, train: Sequence[Annotation], val: Sequence[Annotation], given: str | None) -> tuple[str, ...]:
    """The names of both parts, sorted, or as they are given.

    Raises:
        UsageError: if the two differ, or one is not among those that are given.
    """
    named = [{name for one in part for name, _ in one.objects} for part in (train, val)]
    if given is None:
        if odd := named[0] ^ named[1]:
            raise UsageError(
                f"{spec}: the parts to train and to measure on must have the same classes; only one has "
                f"{', '.join(sorted(odd))} (?classes=NAME,NAME says which there are)"
            )
        return tuple(sorted(named[0]))
    classes = tuple(name.strip() for name in given.split(","))
    if len(set(classes)) < len(classes) or not all(classes):
        raise UsageError(f"{spec}: classes={given} names one twice, or none")
    if unknown := sorted((named[0] | named[1]) - set(classes)):
        raise UsageError(f"{spec}: the annotations have {', '.join(unknown)}, which classes={given} lacks")
    return classes
