import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nbcompile import UsageError
from nbcompile.training import TrainConfig
from nbcompile.training.data.base import Data
from nbcompile.training.data.in_memory import TensorImages
from nbcompile.training.data.load import load_data


def load(address: str, default_size: int | None = None, **options: object) -> Data:
    return load_data(TrainConfig(data=f"torchvision:{address}", **options), default_size)  # type: ignore[arg-type]


@pytest.fixture
def fashion(tmp_path: Path) -> np.ndarray:
    """FashionMNIST, as its files are: 20 images to train on, 10 to measure on; the former, (20, 28, 28)."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = {"train": rng.integers(0, 255, (20, 28, 28), dtype=np.uint8)}
    images["t10k"] = rng.integers(0, 255, (10, 28, 28), dtype=np.uint8)
    for part, pixels in images.items():
        labels = (np.arange(len(pixels)) % 10).astype(np.uint8)
        for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (raw / f"{part}-{name}-ubyte").write_bytes(head + array.tobytes())
    return images["train"]


def save_noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def textures(tmp_path: Path) -> Path:
    """DTD, as its files are: 6 images to train on, 4 in each of the others."""
    home = tmp_path / "dtd" / "dtd"
    (home / "labels").mkdir(parents=True)
    for part, count in (("train", 3), ("val", 2), ("test", 2)):
        names = [f"{name}/{part}_{i}.png" for name in ("banded", "dotted") for i in range(count)]
        (home / "labels" / f"{part}1.txt").write_text("\n".join(names) + "\n")
        for seed, name in enumerate(names):
            save_noise(home / "images" / name, seed)
    return home


def test_an_array_of_grey_images(tmp_path: Path, fashion: np.ndarray) -> None:
    data = load(f"FashionMNIST?root={tmp_path}")
    assert (len(data.train), len(data.val), data.shape) == (20, 10, (1, 28, 28))
    assert (data.classes[0], len(data.classes)) == ("T-shirt/top", 10)
    assert isinstance(data.train, TensorImages)
    assert data.train.mirror
    assert np.array_equal(data.train.pixels.squeeze(1), fashion)
    assert data.train.labels.tolist() == [*range(10), *range(10)]
    assert load(f"FashionMNIST?root={tmp_path}", input_size=32, train_images=10).shape == (1, 32, 32)
    assert load(f"FashionMNIST?root={tmp_path}", 32).shape == (1, 28, 28)


def test_digits_are_not_mirrored(tmp_path: Path, fashion: np.ndarray) -> None:
    (tmp_path / "FashionMNIST").rename(tmp_path / "MNIST")
    data = load(f"MNIST?root={tmp_path}")
    assert isinstance(data.train, TensorImages)
    assert not data.train.mirror


def test_an_array_of_colour_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3, 12), dtype=np.uint8)
    for part in ("train", "test"):
        savemat(tmp_path / f"{part}.mat", {"X": pixels, "y": np.arange(1, 13).reshape(-1, 1) % 10 + 1})
    names = {part: ["", f"{part}.mat", None] for part in ("train", "test")}
    monkeypatch.setattr(SVHN, "split_list", names)
    data = load(f"SVHN?root={tmp_path}")
    assert (data.shape, data.classes) == ((3, 32, 32), tuple("0123456789"))
    assert isinstance(data.train, TensorImages)
    assert not data.train.mirror
    assert np.array_equal(data.train.pixels[5], pixels[..., 5].transpose(2, 0, 1))
    assert data.train.labels[:4].tolist() == [2, 3, 4, 5]


def test_pictures_in_files(tmp_path: Path, textures: Path) -> None:
    data = load(f"DTD?root={tmp_path}", 16)
    assert (len(data.train), len(data.val), data.shape, data.classes) == (6, 4, (3, 16, 16), ("banded", "dotted"))
    images, labels = data.val[[0, 3]]  # type: ignore[misc]
    assert images.shape == (2, 3, 16, 16)
    assert labels.tolist() == [0, 1]
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert load(f"DTD?root={tmp_path}", 16, train_images=2).train.labels.tolist() == [0, 1]
    assert load(f"DTD?root={tmp_path}", 16, input_size=8).shape == (3, 8, 8)


def test_the_part_can_be_chosen(tmp_path: Path, textures: Path) -> None:
    (textures / "labels" / "test1.txt").write_text("banded/test_0.png\ndotted/test_0.png\n")
    assert len(load(f"DTD?root={tmp_path}&val_split=test", 16).val) == 2
    assert len(load(f"DTD?root={tmp_path}&split=test", 16).train) == 2


def test_an_image_that_cannot_be_read(tmp_path: Path, textures: Path) -> None:
    (textures / "images" / "banded" / "train_1.png").write_bytes(b"")
    spec = rf"torchvision:DTD\?root={tmp_path}"
    sentence = rf"^image 1 of {spec}, training part cannot be read as an image: .*skip-br"
    with pytest.raises(UsageError, match=sentence):
        load(f"DTD?root={tmp_path}", 16)
    found = load(f"DTD?root={tmp_path}", 16, memory=0).train[[0, 1]]
    with pytest.raises(UsageError, match=sentence):
        raise found  # type: ignore[misc]
    assert load(f"DTD?root={tmp_path}", 16, skip_broken=True).train.labels.tolist() == [0, 0, 1, 1, 1]


def test_refuses_parts_with_different_classes(tmp_path: Path, textures: Path) -> None:
    (textures / "labels" / "val1.txt").write_text("banded/val_0.png\n")
    with pytest.raises(UsageError, match="the part to train on and the one to measure on have different classes"):
        load(f"DTD?root={tmp_path}", 16)


def test_refuses_an_unknown_size(tmp_path: Path, textures: Path) -> None:
    with pytest.raises(UsageError, match=rf"DTD\?root={tmp_path} needs input_size: the model remembers no square"):
        load(f"DTD?root={tmp_path}")


def test_every_set_is_there_and_takes_its_options() -> None:
    import inspect

    from torchvision import datasets

    from nbcompile.training.data.torchvision import _BY_SPLIT, _BY_TRAIN

    for name in (*_BY_TRAIN, *_BY_SPLIT):
        parameters: Callable[..., object] = getattr(datasets, name)
        taken = set(inspect.signature(parameters).parameters)
        assert ("split" in taken) == (name in _BY_SPLIT or name == "EMNIST")
        if name in _BY_TRAIN and name != "EMNIST":  # EMNIST passes train= on
            assert "train" in taken


@pytest.mark.parametrize(
    "name", ["Country211", "DTD", "FGVCAircraft", "Food101", "GTSRB", "OxfordIIITPet", "RenderedSST2", "SVHN", "STL10"]
)
def test_every_part_has_a_name_that_torchvision_knows(tmp_path: Path, name: str) -> None:
    """An unknown split is refused before the files are looked for."""
    from torchvision import datasets

    from nbcompile.training.data.torchvision import _BY_SPLIT

    for part in _BY_SPLIT[name]:
        with pytest.raises(RuntimeError, match="not found"):
            getattr(datasets, name)(root=tmp_path, split=part)
        with pytest.raises(ValueError, match=r"Unknown value|No such|Dataset"):
            getattr(datasets, name)(root=tmp_path, split=f"{part}s")


@pytest.mark.parametrize(
    "name", ["CIFAR100", "MNIST", "SVHN", "STL10", "Flowers102", "OxfordIIITPet", "Food101", "USPS"]
)
def test_refuses_a_set_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(f"{name}?root={tmp_path}", 16)
    message = str(caught.value)
    assert message.startswith(f"'torchvision:{name}?root={tmp_path}': torchvision does not find {name} in {tmp_path}")
    assert message.endswith(
        f"nbcompile downloads nothing: torchvision.datasets.{name}('{tmp_path}', ..., download=True) does, where it can"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("CIFAR1000?root=x", "no 'CIFAR1000'; close to it: CIFAR100, CIFAR10; nbcompile takes CIFAR10, .*, USPS"),
        ("VOCDetection?root=x", "no 'VOCDetection'; nbcompile takes CIFAR10, "),
        ("CIFAR100", "needs the folder that the set is in: write torchvision:CIFAR100.root=DIR"),
        ("CIFAR100?root=x&download=True", "option 'download' is not taken: nbcompile chooses it, and downloads not"),
        ("CIFAR100?root=x&folds=3", "opening .* failed: TypeError: .*unexpected keyword argument 'folds'"),
        ("DTD?root=x&split=all", "opening .* failed: ValueError: Unknown value 'all' for argument split. Valid values"),
        ("DTD?root", "option 'root' is not key=value"),
    ],
)
def test_refuses(address: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load(address, 16)


def test_refuses_images_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import STL10

    home = tmp_path / "stl10_binary"
    home.mkdir()
    for name, count in (("train_X", 4), ("test_X", 4), ("unlabeled_X", 2)):
        (home / f"{name}.bin").write_bytes(bytes(count * 3 * 96 * 96))
    for name in ("train_y", "test_y"):
        (home / f"{name}.bin").write_bytes(bytes([1, 2, 1, 2]))
    (home / "class_names.txt").write_text("bird\ncar\n")
    (home / "fold_indices.txt").write_text("0\n")
    for files in ("train_list", "test_list"):
        monkeypatch.setattr(STL10, files, [[name, None] for name, _ in getattr(STL10, files)])
    data = load(f"STL10?root={tmp_path}")
    assert (len(data.train), data.shape, data.classes) == (4, (3, 96, 96), ("bird", "car"))
    with pytest.raises(UsageError, match="has images without a label: choose a split whose images all have one"):
        load(f"STL10?root={tmp_path}&split=train+unlabeled")


def test_a_folder_called_by_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "2024" / "food-101"
    (home / "meta").mkdir(parents=True)
    for part in ("train", "test"):
        names = {name: [f"{name}/{part}"] for name in ("pie", "soup")}
        (home / "meta" / f"{part}.json").write_text(json.dumps(names))
        for name in names:
            save_noise(home / "images" / name / f"{part}.png", 0)
            (home / "images" / name / f"{part}.png").rename(home / "images" / name / f"{part}.jpg")
    data = load("Food101?root=2024", 16)
    assert torch.isfinite(data.train[[0, 1]][0]).all()  # type: ignore[index]
