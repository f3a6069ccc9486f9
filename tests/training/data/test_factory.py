import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from nbcompile import UsageError
from nbcompile.training import TrainConfig
from nbcompile.training.data.base import Data
from nbcompile.training.data.digits import load_digits
from nbcompile.training.data.load import load_data
from nbcompile.training.data.subset import Subset
from nbcompile.training.loader import BatchOrder, Loader


class Listed(Dataset[Any]):
    def __init__(self, items: Any, classes: list[str] | None = None) -> None:
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(GOOD)


def image(*shape: int) -> Tensor:
    return torch.zeros(shape or (3, 8, 8))


GOOD = [(image(), 0), (image(), 1)]

FACTORIES: dict[str, Callable[..., Any]] = {
    "pair": lambda count=4: (
        TensorDataset(torch.randn(count, 1, 8, 6), torch.arange(count) % 3),
        TensorDataset(torch.randn(4, 1, 8, 6), torch.arange(4) % 3),
    ),
    "named": lambda: (Listed([(image(), np.int64(0)), (image(), torch.tensor(1))], ["cat", "dog"]), Listed(GOOD)),
    "data": load_digits,
    "empty_data": lambda part: replace(load_digits(), **{part: Subset(load_digits().val, torch.tensor([]).long())}),
    "one": lambda: Listed(GOOD),
    "three": lambda: (1, 2, 3),
    "stream": lambda: (Stream(), Stream()),
    "fails": lambda: 1 / 0,
    "no_pairs": lambda: (Listed([image(), image()]), Listed(GOOD)),
    "no_tensor": lambda: (Listed([(np.zeros((3, 8, 8)), 0)]), Listed(GOOD)),
    "bytes": lambda: (Listed([(image().byte(), 0)]), Listed(GOOD)),
    "nan": lambda: (Listed([GOOD[0], (image() / 0, 1)], ["a", "b"]), Listed(GOOD)),
    "double": lambda: (Listed([(image().double(), 0), (image().half(), 1)]), Listed(GOOD)),
    "flat": lambda: (Listed([(image(8, 8), 0)]), Listed(GOOD)),
    "sizes": lambda: (Listed([*GOOD, (image(3, 9, 8), 0)], ["a", "b"]), Listed(GOOD)),
    "other_val": lambda: (Listed(GOOD), Listed([(image(3, 9, 9), 0)])),
    "words": lambda: (Listed([(image(), "cat")]), Listed(GOOD)),
    "fraction": lambda: (Listed([(image(), torch.tensor(0.5))]), Listed(GOOD)),
    "negative": lambda: (Listed([(image(), -1)]), Listed(GOOD)),
    "more": lambda: (Listed(GOOD), Listed([(image(), 2)])),
    "fails_later": lambda: (Listed(GOOD), Listed({0: GOOD[0], 2: 0})),
    "empty": lambda: (Listed([]), Listed(GOOD)),
    "empty_val": lambda: (Listed(GOOD), Listed([])),
    "single": lambda: (Listed([GOOD[0]]), Listed([GOOD[0]])),
    "no_function": 3,  # type: ignore[dict-item]
}


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importable as a user's module is."""
    monkeypatch.setitem(sys.modules, "mydata", type(sys)("mydata"))
    for name, factory in FACTORIES.items():
        setattr(sys.modules["mydata"], name, factory)


def load(name: str, **options: Any) -> Data:
    return load_data(TrainConfig(data=f"mydata:{name}", **options))


def test_a_pair_of_sets() -> None:
    data = load("pair?count=7")
    assert (len(data.train), len(data.val), data.shape, data.classes) == (7, 4, (1, 8, 6), ("0", "1", "2"))
    assert (data.name, data.preprocessing) == ("mydata:pair?count=7", {})
    images, labels = data.train[[6, 1]]  # type: ignore[misc]
    assert images.shape == (2, 1, 8, 6)
    assert labels.tolist() == [0, 1]
    assert labels.dtype == torch.int64
    assert load("pair?count=7", train_images=3).train.labels.tolist() == [0, 1, 2]


def test_classes_by_name_and_labels_of_any_whole_number() -> None:
    data = load("named")
    assert data.classes == ("cat", "dog")
    assert data.train[[0, 1]][1].tolist() == [0, 1]  # type: ignore[index]


def test_a_factory_of_data() -> None:
    data = load("data?size=12")
    assert (data.name, data.shape, len(data.train)) == ("mydata:data?size=12", (1, 12, 12), 1437)
    assert load("data", input_size=8).shape == (1, 8, 8)


PAIR = (
    r"a factory of data returns a nbcompile.training.data.base.Data, or a pair \(train, val\) of "
    r"torch.utils.data.Dataset with a length"
)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nothing", "mydata has no 'nothing'.*; data must be digits, cifar10:DIR"),
        ("fails", "building 'mydata:fails' failed: ZeroDivisionError: division by zero"),
        ("no_function", "building 'mydata:no_function' failed: TypeError: 'int' object is not callable"),
        ("pair?depth=3", "building .* failed: TypeError: .*unexpected keyword argument 'depth'"),
        ("pair?count", "option 'count' is not key=value"),
        ("one", rf"made \(Listed\): {PAIR}$"),
        ("three", rf"made \(int, int, int\): {PAIR}$"),
        ("stream", rf"made \(Stream, Stream\): {PAIR}$"),
        ("no_pairs", r"^item 0 of the training set of mydata:no_pairs is a Tensor, not a pair \(image, label\)$"),
        ("no_tensor", r"has a ndarray as image, not a float tensor \(C, H, W\)"),
        ("bytes", r"has an image of torch.uint8 and shape \(3, 8, 8\), not a float tensor \(C, H, W\)"),
        ("flat", r"has an image of torch.float32 and shape \(8, 8\), not a float tensor \(C, H, W\)"),
        (
            "other_val",
            r"item 0 of the validation set of mydata:other_val has an image of shape \(3, 9, 9\), the first of the "
            r"training set has \(3, 8, 8\)",
        ),
        ("words", "has the label 'cat', not a whole number from 0"),
        ("fraction", r"has the label tensor\(0.5000\), not a whole number from 0"),
        ("negative", "has the label -1, not a whole number from 0"),
        ("more", "validation set of mydata:more has the label 2, but the training set has 2 classes, counted from 0"),
        ("empty_data?part=train", r"^mydata:empty_data\?part=train has no images to train on$"),
        ("empty_data?part=val", r"^mydata:empty_data\?part=val has no images to measure on$"),
        ("empty", "^the training set of mydata:empty is empty$"),
        ("empty_val", "^the validation set of mydata:empty_val is empty$"),
        ("single", "^mydata:single has 1 class, '0': training needs at least two$"),
    ],
)
def test_refuses(name: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load(name)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_item_that_does_not_fit_is_named_when_it_is_read(workers: int) -> None:
    data = load("sizes")
    loader = Loader(data.train, BatchOrder(3, 1, seed=0), workers, lambda batch: batch)
    with pytest.raises(
        UsageError, match=r"^item 2 of the training set of mydata:sizes has an image of shape \(3, 9, 8"
    ):
        list(loader.epoch(0))


def test_images_of_any_floating_dtype_are_float32() -> None:
    images, _ = load("double").train[[0, 1]]  # type: ignore[misc]
    assert images.dtype == torch.float32


def test_an_image_without_numbers_is_named_and_not_the_learning_rate() -> None:
    found = load("nan").train[[0, 1]]
    assert str(found) == "item 1 of the training set of mydata:nan has an image with values that are NaN or infinite"


def test_an_item_that_fails() -> None:
    found = load("fails_later").val[[0, 1]]
    assert isinstance(found, UsageError)
    assert str(found) == "item 1 of the validation set of mydata:fails_later cannot be had: KeyError: 1"


def test_the_factory_decides_the_size() -> None:
    with pytest.raises(
        UsageError, match=r"^input_size 16: 'mydata:pair' gives images of 8×6, and decides that itself$"
    ):
        load("pair", input_size=16)
