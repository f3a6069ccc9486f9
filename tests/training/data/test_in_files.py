"""Folders of images: held in memory or read from files, the same is seen."""

import io
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from nbcompile import UsageError
from nbcompile.training import TrainConfig
from nbcompile.training.data.base import Data, Views
from nbcompile.training.data.cropped_images import MEAN, STD, CentredImages, CroppedImages, shrunk
from nbcompile.training.data.crops import boxes
from nbcompile.training.data.held import Held, InFiles
from nbcompile.training.data.in_memory import TensorImages
from nbcompile.training.data.load import load_data
from nbcompile.training.loader import BatchOrder, Loader

TRAIN, VAL = list(range(6)), list(range(4))


def smooth(path: Path, height: int, width: int, seed: int) -> None:
    """An image as photographs are: neighbours are alike, so that resizing twice is close to resizing once."""
    coarse = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def photographs(folder: Path) -> Path:
    for seed, path in enumerate(sorted(folder.rglob("*.png"))):
        smooth(path, 170 + 3 * seed, 150 + 9 * (seed % 3), seed)
    return folder


def load(folder: Path, size: int = 16, **options: object) -> Data:
    return load_data(TrainConfig(data=f"imagefolder:{folder}", **options), size)  # type: ignore[arg-type]


def seen(images: object, indices: list[int], drawn: Tensor) -> Tensor:
    assert isinstance(images, Views)
    found = images.view(indices, drawn)
    assert not isinstance(found, UsageError)
    return found[0]


@pytest.mark.parametrize("augment", ["light", "crops", "none", "autoaugment"])
def test_memory_and_files_show_the_same_views(folder: Path, augment: str) -> None:
    """Of images that are held as they are, and of what is measured, to the bit."""
    held, read = (load(folder, augment=augment, memory=memory) for memory in (1, 0))
    assert isinstance(held.train, Views)
    assert isinstance(read.train, Views)
    assert held.train.augmentation == read.train.augmentation
    drawn = held.train.draw(6)
    views = [seen(data.train, TRAIN, drawn) for data in (held, read)]
    rounding = 1.01 / 255 / min(STD) if augment == "autoaugment" else 1e-5  # what it changes are bytes
    torch.testing.assert_close(*views, rtol=0, atol=rounding)
    torch.testing.assert_close(*(data.val[VAL][0] for data in (held, read)), rtol=0, atol=1e-6)  # type: ignore[index]
    assert held.train.labels.tolist() == read.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert held.val.labels.tolist() == read.val.labels.tolist() == [0, 0, 1, 1]
    assert held.preprocessing == read.preprocessing


@pytest.mark.parametrize("augment", ["light", "crops", "none"])
def test_images_that_are_held_smaller_show_nearly_the_same(photographs: Path, augment: str) -> None:
    held, read = (load(photographs, 32, augment=augment, memory=memory) for memory in (1, 0))
    assert isinstance(held.train, Views)
    drawn = held.train.draw(6)
    views = [seen(data.train, TRAIN, drawn) for data in (held, read)]
    far = (views[0] - views[1]).abs() * torch.tensor(STD).view(-1, 1, 1)
    assert float(far.mean()) < 4 / 255  # a box is a whole number of pixels, of fewer pixels; another view: 40
    torch.testing.assert_close(*(data.val[VAL][0] for data in (held, read)), rtol=0, atol=1e-6)  # type: ignore[index]


def test_what_is_measured_is_the_centre_as_torchvision_takes_it(photographs: Path) -> None:
    centre = v2.Compose([
        v2.Resize(round(8 / 0.875)), v2.CenterCrop(8), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ])  # fmt: skip
    paths = sorted((photographs / "val").rglob("*.png"))
    expected = torch.stack([centre(Image.open(path).convert("RGB")) for path in paths])
    for memory in (1, 0):
        data = load(photographs, 8, memory=memory)
        torch.testing.assert_close(data.val[VAL][0], expected, rtol=0, atol=1e-6)  # type: ignore[index]
        plain = load(photographs, 8, memory=memory, augment="none")
        assert plain.train[TRAIN][0].shape == (6, 3, 8, 8)  # type: ignore[index]
        assert torch.equal(plain.train[TRAIN][0], plain.train[TRAIN][0])  # type: ignore[index]


def test_letters_are_not_mirrored(folder: Path) -> None:
    held = load(folder).train
    assert isinstance(held, CroppedImages)
    letters = CroppedImages(held.source, 16, 0.5, mirror=False)
    assert letters.augmentation == "crops of 0.5 to 1 of the area"
    assert letters.draw(50)[:, -1].tolist() == [0] * 50


@pytest.mark.parametrize("augment", ["light", "none"])
def test_other_images_are_given_out_alike(folder: Path, augment: str) -> None:
    data = load(folder, memory=0, augment=augment)
    train, val = data.train, load(folder, memory=0).val
    assert isinstance(train, CroppedImages | CentredImages)
    assert isinstance(val, CentredImages)
    others = train.over(val.source)
    drawn = train.draw(4)
    assert others.augmentation == train.augmentation
    assert others.labels.tolist() == [0, 0, 1, 1]
    assert seen(others, VAL, drawn).shape == (4, 3, 16, 16)
    again = others.over(train.source)  # type: ignore[arg-type]
    torch.testing.assert_close(seen(again, VAL, drawn), seen(train, VAL, drawn), rtol=0, atol=0)


def test_a_batch_is_a_function_of_the_seed(folder: Path) -> None:
    for memory in (1, 0):
        data, batches = load(folder, memory=memory), []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            batches.append(data.train[TRAIN][0])  # type: ignore[index]
        assert torch.equal(batches[0], batches[1])
        assert not torch.equal(batches[0], batches[2])


@pytest.mark.parametrize("least", [0.08, 0.5, 1.0])
def test_no_crop_needs_more_enlarging_than_from_its_file(least: float) -> None:
    for size in (1, 7, 32):
        for width, height in ((400, 300), (200, 200), (30, 500), (20, 20)):
            image = shrunk(Image.new("RGB", (width, height)), size, least)
            assert image.width <= width
            extremes = torch.cartesian_prod(
                torch.tensor([0, 32767]), torch.tensor([0, 32767]), *[torch.tensor([0])] * 2
            )
            if 3 / 4 <= width / height <= 4 / 3 and (image.width, image.height) != (width, height):
                sides = boxes(extremes, torch.tensor([[image.height, image.width]]), least)[:, 2:]
                assert int(sides.min()) >= size - 1  # a box is a whole number of pixels
            assert min(image.size) >= min(size, width, height)


def test_images_above_the_limit_are_read_from_files(photographs: Path) -> None:
    held = load(photographs)
    assert isinstance(held.train, CroppedImages)
    assert isinstance(held.train.source, Held)
    megabytes = (held.train.source.block.numel() + 4 * 3 * 16 * 16) / 1e6
    assert held.note == f"10 images, {megabytes:,.0f} MB, held in memory"
    read = load(photographs, memory=0)
    assert isinstance(read.train, CroppedImages)
    assert isinstance(read.train.source, InFiles)
    assert read.note == ""
    with pytest.raises(UsageError, match=r"^memory must be >= 0, not -1$"):
        load(photographs, memory=-1)


def test_the_limit_is_in_megabytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 6 * 3 * 20 * 30 + 4 * 3 * 16 * 16
    for megabyte, fits in ((taken, True), (taken - 1, False)):
        monkeypatch.setattr("nbcompile.training.data.in_files.MEGABYTE", megabyte)
        assert bool(load(folder, memory=1).note) == fits


def test_images_of_one_size_are_one_tensor(folder: Path, photographs: Path) -> None:
    several = load(photographs).train
    assert isinstance(several, CroppedImages)
    assert isinstance(several.source, Held)
    assert several.source.stacked is None
    for seed, path in enumerate(sorted(folder.rglob("*.png"))):
        smooth(path, 21, 20, seed)
    alike = load(folder).train
    assert isinstance(alike, CroppedImages)
    assert isinstance(alike.source, Held)
    assert alike.source.stacked is not None
    for index, path in enumerate(sorted((folder / "train").rglob("*.png"))):
        pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
        assert torch.equal(alike.source.stacked[index], pixels)


def test_worker_processes_share_what_is_held(folder: Path) -> None:
    """Forked ones do so anyway; those that are spawned get a handle, not the bytes."""
    for path in folder.rglob("*.png"):
        smooth(path, 90, 100, 0)
    data = load(folder, 64)
    for images in (data.train, data.val, load(folder, 64, augment="none").train):
        stream = io.BytesIO()
        ForkingPickler(stream).dump(images)
        assert len(stream.getvalue()) < 4_000
    assert isinstance(data.train, CroppedImages)
    assert isinstance(data.train.source, Held)
    assert data.train.source.block.is_shared()
    assert isinstance(data.val, TensorImages)
    assert data.val.pixels.is_shared()
    alone, shared = (
        list(Loader(data.train, BatchOrder(6, 2, seed=0), workers, lambda batch: batch).epoch(3)) for workers in (0, 1)
    )
    assert [batch.labels.tolist() for batch in alone] == [batch.labels.tolist() for batch in shared]


def test_the_checksum_is_that_of_the_images(folder: Path) -> None:
    def checksum(**options: object) -> str:
        train = load(folder, **options).train
        assert isinstance(train, Views)
        return train.checksum()

    first = checksum()
    assert checksum(memory=0) == checksum(augment="crops") == checksum(input_size=12) == first
    broken = folder / "train" / "dog" / "1.png"
    smooth(broken, 20, 30, 0)
    changed = checksum()
    assert changed != first
    assert checksum(train_images=4) not in (changed, first)
    broken.write_bytes(b"")
    with pytest.raises(UsageError, match=rf"^{broken} cannot be read"):
        checksum(memory=0)


def test_an_epoch_from_memory_opens_no_file(folder: Path) -> None:
    data = load(folder)
    for path in folder.rglob("*.png"):
        path.unlink()
    assert data.train[TRAIN][0].shape == (6, 3, 16, 16)  # type: ignore[index]
    assert data.val[VAL][0].shape == (4, 3, 16, 16)  # type: ignore[index]
