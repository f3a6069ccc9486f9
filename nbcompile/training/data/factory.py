"""``package.module:factory?key=value``: data that a Python function makes.

It returns a ``Data``, or a pair of ``torch.utils.data.Dataset``: one to train on, augmented, and one to measure on.
Their items are an image, a float tensor ``(C, H, W)`` that is ready for the network and given to it in float32, and a
label, a whole number from 0. The training set's ``classes`` (names) are used, if it has them.
"""

import operator
from collections.abc import Sized
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nbcompile.core.errors import UsageError
from nbcompile.spec_strings import named_factory, parse, said
from nbcompile.training.data.base import DATA_KINDS, Data, Labelled

RETURNS = (
    "a factory of data returns a nbcompile.training.data.base.Data, or a pair (train, val) of torch.utils.data.Dataset "
    "with a length"
)


class Items:
    """One part: a data set of torch whose items are ready.

    Args:
        dataset: gives pairs of image and label.
        what: the part, in messages.
    """

    def __init__(self, dataset: Any, what: str) -> None:
        self.dataset, self.what = dataset, what
        self.shape: tuple[int, ...] | None = None
        self.classes: int | None = None

    @cached_property
    def labels(self) -> Tensor:
        """Labels ``(N,)``: a pass over all items."""
        return torch.tensor([self.item(index)[1] for index in range(len(self))])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, indices: list[int]) -> Labelled | UsageError:
        try:
            pairs = [self.item(index) for index in indices]
        except UsageError as error:
            return error
        return torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])

    def item(self, index: int) -> tuple[Tensor, int]:
        """One image and its label.

        Raises:
            UsageError: if it cannot be had, or is no such thing.
        """
        try:
            item = self.dataset[index]
        except Exception as error:
            raise UsageError(f"item {index} of {self.what} cannot be had: {said(error)}") from error
        if reason := self._misfit(item):
            raise UsageError(f"item {index} of {self.what} {reason}")
        return item[0].float(), int(item[1])

    def _misfit(self, item: Any) -> str | None:
        """Why ``item`` is not what is wanted; None if it is."""
        if not isinstance(item, tuple | list) or len(item) != 2:
            return f"is a {type(item).__name__}, not a pair (image, label)"
        image, label = item
        if not isinstance(image, Tensor):
            return f"has a {type(image).__name__} as image, not a float tensor (C, H, W)"
        if not image.is_floating_point() or image.ndim != 3:
            return f"has an image of {image.dtype} and shape {tuple(image.shape)}, not a float tensor (C, H, W)"
        if not bool(image.isfinite().all()):
            return "has an image with values that are NaN or infinite"
        if self.shape is not None and tuple(image.shape) != self.shape:
            return f"has an image of shape {tuple(image.shape)}, the first of the training set has {self.shape}"
        try:
            number = operator.index(label)
        except TypeError:
            number = -1
        if number < 0:
            return f"has the label {label!r}, not a whole number from 0"
        if self.classes is not None and number >= self.classes:
            return f"has the label {number}, but the training set has {self.classes} classes, counted from 0"
        return None


def load_factory(spec: str, input_size: int | None = None) -> Data:
    """The data that the factory makes.

    Args:
        spec: ``package.module:factory?key=value``; the current directory is searched first.
        input_size: side of the images, in pixels; refused if the factory's is another.

    Raises:
        UsageError: if there is no such factory, it fails, or it returns something else.
    """
    module, name, options = parse(spec)
    try:
        factory = named_factory(spec, module, name)
    except UsageError as error:
        raise UsageError(f"{error}; data must be {DATA_KINDS}") from error
    try:
        made = factory(**options)
    except Exception as error:
        raise UsageError(f"building '{spec}' failed: {said(error)}") from error
    data = replace(made, name=spec) if isinstance(made, Data) else _from_pair(spec, made)
    if input_size is not None and data.shape[1:] != (input_size, input_size):
        _, height, width = data.shape
        raise UsageError(f"input_size {input_size}: '{spec}' gives images of {height}×{width}, and decides that itself")
    return data


def _from_pair(spec: str, made: Any) -> Data:
    sets = made if isinstance(made, tuple | list) else (made,)
    if len(sets) != 2 or not all(isinstance(x, Dataset) and isinstance(x, Sized) for x in sets):
        kinds = ", ".join(type(x).__name__ for x in sets)
        raise UsageError(f"'{spec}' made ({kinds}): {RETURNS}")
    train, val = (
        Items(x, f"the {part} set of {spec}") for x, part in zip(sets, ("training", "validation"), strict=True)
    )
    if len(train) == 0 or len(val) == 0:
        raise UsageError(f"{(val if len(train) else train).what} is empty")
    channels, height, width = train.item(0)[0].shape
    named = getattr(sets[0], "classes", None)
    classes = tuple(map(str, named)) if named else tuple(map(str, range(int(train.labels.max()) + 1)))
    for part in (train, val):
        part.shape, part.classes = (channels, height, width), len(classes)
    val.item(0)
    return Data(name=spec, train=train, val=val, classes=classes, shape=(channels, height, width))
