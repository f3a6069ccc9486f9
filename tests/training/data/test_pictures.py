import logging
import struct
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from nbcompile import UsageError
from nbcompile.deploy.calibration_images import input_of
from nbcompile.training import TrainConfig
from nbcompile.training.data.base import Data
from nbcompile.training.data.load import load_data
from nbcompile.training.data.pictures import opened
from nbcompile.training.loader import BatchOrder, Loader

YCBCR = pytest.param(
    "YCbCr",
    marks=pytest.mark.skipif(PIL.__version__ < "13", reason="older Pillows do not read the YCbCr that they write"),
)


def load(folder: Path, **options: object) -> Data:
    return load_data(TrainConfig(data=f"imagefolder:{folder}", **options), 16)  # type: ignore[arg-type]


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("nbcompile"), "propagate", True)  # the command line stops it
    return caplog


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", YCBCR])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 5, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / "a.tif")
    found = opened(tmp_path / "a.tif", "a")
    assert (found.mode, found.size) == ("RGB", (5, 6))
    assert np.array_equal(found, image.convert("RGB"))


@pytest.mark.parametrize(("dtype", "suffix", "mode"), [(np.uint16, "png", "I;16"), (np.float32, "tif", "F")])
def test_refuses_more_than_8_bits(tmp_path: Path, dtype: type, suffix: str, mode: str) -> None:
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(np.full((4, 4), 1000, dtype=dtype)).save(file)
    sentence = rf"^it has more than 8 bits per channel \(mode {mode}\): convert it to 8 bits$"
    with pytest.raises(UsageError, match=sentence):
        opened(file, "it")


def test_refuses_a_size_that_cannot_be(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.bmp")
    content = bytearray((tmp_path / "a.bmp").read_bytes())
    content[18:26] = (40_000).to_bytes(4, "little") * 2  # width and height
    (tmp_path / "a.bmp").write_bytes(content)
    with pytest.raises(UsageError, match=r"^it cannot be read as an image: .*1600000000 pixels"):
        opened(tmp_path / "a.bmp", "it")


def test_refuses_a_place_of_pixels_that_is_a_fraction(tmp_path: Path) -> None:
    Image.new("RGB", (7, 5)).save(tmp_path / "a.tif")
    whole = (tmp_path / "a.tif").read_bytes()
    place, fraction = struct.pack("<HH", 273, 4), struct.pack("<HH", 273, 5)  # StripOffsets, of another type
    assert place in whole
    (tmp_path / "a.tif").write_bytes(whole.replace(place, fraction))
    with pytest.raises(UsageError, match=r"^it cannot be read as an image: .*IFDRational"):
        opened(tmp_path / "a.tif", "it")


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("shape", [(20, 30), (41, 17)])
def test_calibration_prepares_an_image_as_measuring_does(folder: Path, mode: str, shape: tuple[int, int]) -> None:
    file = folder / "val" / "dog" / "1.png"
    pixels = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file)
    data = load(folder)
    images, _ = data.val[[3]]  # type: ignore[misc]
    expected, _ = input_of(file, data.shape, data.preprocessing)
    torch.testing.assert_close(images[0], expected, rtol=0, atol=1e-6)  # v2 divides by 255, a rounding apart


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_leaves_broken_images_out_on_request(
    folder: Path, warnings: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    broken = folder / "train" / "cat" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60] if content is None else content)
    data = load(folder, skip_broken=True)
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert len(data.val) == 4
    (message,) = (record.getMessage() for record in warnings.records)
    assert message.startswith(f"imagefolder:{folder}, training part: 1 of 6 images are left out: {broken} cannot be")
    loader = Loader(data.train, BatchOrder(5, 2, seed=0), 0, lambda batch: batch)
    assert [len(batch.labels) for batch in loader.epoch(0)] == [2, 2]


def test_names_the_first_few(folder: Path, warnings: pytest.LogCaptureFixture) -> None:
    for i in range(20, 25):
        (folder / "val" / "dog" / f"{i}.png").write_bytes(b"")
    load(folder, skip_broken=True)
    assert "validation part: 5 of 9 images are left out" in warnings.text
    assert all(f"{i}.png" in warnings.text for i in (20, 21, 22))
    assert "23.png" not in warnings.text
    assert warnings.text.rstrip().endswith("; and 2 more")


def test_only_the_first_process_warns(
    folder: Path, warnings: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "val" / "dog" / "0.png").write_bytes(b"")
    monkeypatch.setenv("RANK", "1")
    assert len(load(folder, skip_broken=True).val) == 3
    assert warnings.text == ""


def test_whole_images_are_left_alone(folder: Path, warnings: pytest.LogCaptureFixture) -> None:
    assert load(folder, skip_broken=True).train.labels.tolist() == load(folder).train.labels.tolist()
    assert warnings.text == ""


def test_refuses_when_nothing_can_be_read(folder: Path) -> None:
    for file in (folder / "val").rglob("*.png"):
        file.write_bytes(b"")
    sentence = (
        f"^imagefolder:{folder}, validation part: none of its 4 images can be read; the first: {folder}/val/cat/0"
    )
    with pytest.raises(UsageError, match=sentence):
        load(folder, skip_broken=True)


def test_refuses_a_class_of_broken_images_alone(folder: Path) -> None:
    for file in (folder / "train" / "dog").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UsageError, match=f"^imagefolder:{folder}: no image of dog can be read$"):
        load(folder, skip_broken=True)


def test_train_images_of_a_folder(folder: Path) -> None:
    data = load(folder, train_images=4)
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    images, labels = data.train[[0, 3]]  # type: ignore[misc]
    assert images.shape == (2, 3, 16, 16)
    assert labels.tolist() == [0, 1]
