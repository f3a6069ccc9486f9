import hashlib
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nbcompile import UsageError
from nbcompile.deploy.calibration_images import input_of
from nbcompile.training import TrainConfig
from nbcompile.training.data.base import Data
from nbcompile.training.data.in_memory import TensorImages
from nbcompile.training.data.load import load_data

CLASSES = ("cat", "dog")


def load(path: Path, **options: object) -> Data:
    return load_data(TrainConfig(data=f"cifar10:{path}", **options))  # type: ignore[arg-type]


def zipped(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder.parent / "images"), "zip", folder))


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """Two classes of noise, 32 × 32 pixels: 6 images to train on, 4 to measure on."""
    rng, root = np.random.default_rng(0), tmp_path / "cifar"
    for part, count in (("train", 3), ("test", 2)):
        for name in CLASSES:
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


@pytest.mark.parametrize("pack", [lambda folder: folder, zipped], ids=["folder", "zip"])
def test_a_folder_and_a_zip(cifar: Path, pack: Callable[[Path], Path]) -> None:
    data = load(pack(cifar))
    assert (len(data.train), len(data.val), data.classes, data.shape) == (6, 4, CLASSES, (3, 32, 32))
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert isinstance(data.train, TensorImages)
    assert data.train.mirror
    assert data.preprocessing["scale"] == 1 / 255
    with Image.open(cifar / "train" / "dog" / "0.png") as image:
        assert np.array_equal(data.train.pixels[3].permute(1, 2, 0), np.asarray(image))


def test_the_models_size_is_not_the_sets(cifar: Path) -> None:
    assert load_data(TrainConfig(data=f"cifar10:{cifar}"), 224).shape == (3, 32, 32)
    assert load_data(TrainConfig(data=f"cifar10:{cifar}", input_size=48), 224).shape == (3, 48, 48)


@pytest.mark.parametrize("size", [None, 48])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_calibration_prepares_an_image_as_measuring_does(cifar: Path, size: int | None, mode: str) -> None:
    file = cifar / "test" / "dog" / ("1.tif" if mode == "CMYK" else "1.png")
    with Image.open(cifar / "test" / "dog" / "1.png") as image:
        image.convert(mode).save(file)
    (cifar / "test" / "dog" / "0.png").unlink()
    data = load(cifar, input_size=size)
    images, labels = data.val[[2]]  # type: ignore[misc]
    assert labels.tolist() == [1]
    assert torch.equal(images[0], input_of(file, data.shape, data.preprocessing)[0])


def test_torchvisions_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    rng = np.random.default_rng(0)
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()

    def write(name: str, content: object) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(count: int) -> dict[str, object]:
        pixels = rng.integers(0, 255, (count, 3072), dtype=np.uint8)
        return {"data": pixels, "labels": [i % 10 for i in range(count)]}

    first = batch(20)
    names = [f"class {i}" for i in range(10)]
    meta = dict(zip(("filename", "md5"), write("batches.meta", {"label_names": names}), strict=True))
    monkeypatch.setattr(CIFAR10, "train_list", [write("data_batch_1", first), write("data_batch_2", batch(10))])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch(10))])
    monkeypatch.setattr(CIFAR10, "meta", {"key": "label_names", **meta})
    data = load(tmp_path)
    assert (len(data.train), len(data.val), data.classes) == (30, 10, tuple(names))
    assert isinstance(data.train, TensorImages)
    assert data.train.mirror
    assert np.array_equal(data.train.pixels[19].flatten(), first["data"][19])  # type: ignore[index]
    assert data.train.labels[:12].tolist() == [*range(10), 0, 1]


def test_refuses_torchvisions_files_that_are_not_whole(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(UsageError, match=r"torchvision does not find CIFAR10 in .*download=True\) does, where it can$"):
        load(tmp_path)


def test_names_the_first_broken_image(cifar: Path) -> None:
    for name in ("1.png", "2.png"):
        (cifar / "train" / "dog" / name).write_bytes(b"")
    with pytest.raises(UsageError, match=rf"^{cifar}/train/dog/1.png cannot be read as an image: .*; --skip-broken"):
        load(cifar)
    archive = zipped(cifar)
    with pytest.raises(UsageError, match=rf"^{archive}/train/dog/1.png cannot be read as an image: .*; --skip-broken"):
        load(archive)


def test_leaves_broken_images_out_on_request(cifar: Path) -> None:
    (cifar / "train" / "cat" / "1.png").write_bytes(b"")
    data = load(cifar, skip_broken=True)
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert len(data.val) == 4


def test_refuses_a_class_of_broken_images_alone(cifar: Path) -> None:
    for file in (cifar / "train" / "cat").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UsageError, match=rf"^cifar10:{cifar}: no image of cat can be read$"):
        load(cifar, skip_broken=True)


@pytest.mark.parametrize("skip", [False, True])
def test_refuses_another_size(cifar: Path, skip: bool) -> None:
    Image.new("RGB", (33, 32)).save(cifar / "test" / "cat" / "0.png")
    sentence = rf"^{cifar}/test/cat/0.png has 33×32 pixels, not 32×32: imagefolder:DIR takes images of any size$"
    with pytest.raises(UsageError, match=sentence):
        load(cifar, skip_broken=skip)


def test_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path}/nowhere/train is missing: expected DIR/train/CLASS/"):
        load(tmp_path / "nowhere")


def test_refuses_no_zip(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_text("no archive")
    for name, reason in (("images.zip", "File is not a zip file"), ("missing.zip", ".*No such file")):
        with pytest.raises(UsageError, match=f"^{tmp_path}/{name} cannot be read as a .zip: {reason}"):
            load(tmp_path / name)


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [
        ("test/dog", r"the same classes; 2 images were found in test, of 1 classes$"),
        ("train", r"must hold train/CLASS/\*.jpg and test/CLASS/\*.jpg, .*; 0 images were found in train, of 0 "),
    ],
)
def test_refuses_a_zip_without_some_images(cifar: Path, lost: str, sentence: str) -> None:
    shutil.rmtree(cifar / lost)
    with pytest.raises(UsageError, match=sentence):
        load(zipped(cifar))


def test_refuses_a_zip_of_one_class(cifar: Path) -> None:
    for part in ("train", "test"):
        shutil.rmtree(cifar / part / "cat")
    with pytest.raises(UsageError, match="has 1 class, 'dog': training needs at least two"):
        load(zipped(cifar))


def test_refuses_a_damaged_member_of_a_zip(cifar: Path) -> None:
    archive = zipped(cifar)
    with zipfile.ZipFile(archive) as opened:
        at = opened.getinfo("train/cat/0.png").header_offset
    content = bytearray(archive.read_bytes())
    content[at + 200 : at + 220] = bytes(20)
    archive.write_bytes(content)
    with pytest.raises(UsageError, match=f"^{archive}/train/cat/0.png cannot be read as an image: "):
        load(archive)
