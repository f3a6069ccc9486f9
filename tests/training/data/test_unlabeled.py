"""Images without labels: where they come from, and that they are given out like the labelled ones."""

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from nbcompile import UsageError
from nbcompile.training import TrainConfig, train
from nbcompile.training.data.base import Data, Images
from nbcompile.training.data.cropped_images import MEAN, STD
from nbcompile.training.data.load import load_data
from nbcompile.training.data.unlabeled.load_unlabeled import load_unlabeled

PIXELS = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
FACTORY = """
import torch
from torch.utils.data import Dataset
from nbcompile.training.data.digits import load_digits


class Noise(Dataset):
    def __init__(self, side, channels, value):
        self.shape, self.value = (channels, side, side), value

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.full(self.shape, float(self.value)), index % 2


def noise(side=8, channels=3, value=1):
    return Noise(side, channels, value), Noise(side, channels, 0)


def whole_digits():
    return load_digits()
"""


def config(data: str, unlabeled: str, **options: Any) -> TrainConfig:
    return TrainConfig(method="mimic", teacher="giant.pt", data=data, unlabeled=unlabeled, **options)


def loaded(data: str, unlabeled: str, size: int | None = 16, **options: Any) -> tuple[Data, Images]:
    told = config(data, unlabeled, **options)
    found = load_data(told, size)
    return found, load_unlabeled(told, found)


def drawn(images: Images, indices: list[int]) -> Tensor:
    batch = images[indices]
    assert not isinstance(batch, UsageError), batch
    return batch[0]


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Five images of one grey each, and what is none."""
    (tmp_path / "flat").mkdir()
    for i in range(5):
        Image.new("RGB" if i else "L", (30, 20), (40 * i,) * 3 if i else 0).save(tmp_path / "flat" / f"{i}.png")
    (tmp_path / "flat" / "notes.txt").write_text("nothing")
    return tmp_path / "flat"


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """A .zip of 32 × 32 images: 3 of each of two classes to train on."""
    with zipfile.ZipFile(tmp_path / "cifar.zip", "w") as archive:
        for part, count in (("train", 3), ("test", 1)):
            for label, name in enumerate(("cat", "dog")):
                for i in range(count):
                    Image.new("RGB", (32, 32), (50 * i, 200 * label, 0)).save(tmp_path / "one.png")
                    archive.write(tmp_path / "one.png", f"{part}/{name}/{i}.png")
    return tmp_path / "cifar.zip"


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_here.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "made_here", raising=False)


def test_a_flat_folder_beside_a_folder_of_classes(folder: Path, flat: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, more = loaded(f"imagefolder:{folder}", f"imagefolder:{flat}")
    assert len(more) == 5
    images = drawn(more, [0, 4, 2])
    assert images.shape == (3, 3, 16, 16)
    for image, grey in zip(images, (0, 160, 80), strict=True):
        for channel, mean, std in zip(image, MEAN, STD, strict=True):
            torch.testing.assert_close(channel, torch.full((16, 16), (grey / 255 - mean) / std), atol=1e-5, rtol=0)
    assert caplog.text == ""
    torch.manual_seed(0)
    labelled = drawn(data.train, [0])
    Image.fromarray(np.asarray(Image.open(folder / "train" / "cat" / "0.png"))).save(flat / "0.png")
    torch.manual_seed(0)
    assert torch.equal(drawn(load_unlabeled(config("", f"imagefolder:{flat}"), data), [0]), labelled), "other crops"


def test_labels_are_ignored_and_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, more = loaded(f"imagefolder:{folder}", f"imagefolder:{folder}")
    assert len(more) == 6, "the validation images were taken"
    assert caplog.messages == [f"unlabeled imagefolder:{folder}: its labels are ignored"]
    _, more = loaded(f"imagefolder:{folder}", f"imagefolder:{folder / 'val'}")
    assert len(more) == 4


def test_files_beside_images_in_memory(cifar: Path, flat: Path) -> None:
    data, more = loaded(f"cifar10:{cifar}", f"imagefolder:{flat}", None)
    torch.manual_seed(0)
    images = drawn(more, [1] * 40)
    assert images.shape == (40, 3, 32, 32)
    shifted: Any = data.train
    values = {round(float(x), 4) for x in images[:, 0].unique()}
    seen = [(v / 255 - shifted.mean[0].item()) / shifted.std[0].item() for v in (0, 40)]
    assert values == {round(float(x), 4) for x in seen}, "grey, and the zeros that move in"
    Image.fromarray(PIXELS).save(flat / "2.png")
    source: Any = load_unlabeled(config("", f"imagefolder:{flat}"), data)
    middle = np.asarray(Image.fromarray(PIXELS[:, 5:25]).resize((32, 32), Image.Resampling.BILINEAR))
    found = source.pixels[2].permute(1, 2, 0).numpy()
    assert np.array_equal(found[:, 2:-2], middle[:, 2:-2])  # its sides see the pixels beside it


def test_images_in_memory_beside_files(folder: Path, cifar: Path) -> None:
    _, more = loaded(f"imagefolder:{folder}", f"cifar10:{cifar}")
    assert len(more) == 6
    images = drawn(more, [4])
    torch.testing.assert_close(images[0, 1], torch.full((16, 16), (200 / 255 - MEAN[1]) / STD[1]))


def test_images_in_memory_beside_others(factories: None) -> None:
    data, more = loaded("digits", "made_here:whole_digits", None)
    assert len(more) == len(data.train) == 1437
    torch.manual_seed(1)
    one = drawn(data.train, [3, 5])
    torch.manual_seed(1)
    assert torch.equal(drawn(more, [3, 5]), one)
    data, more = loaded("digits", "digits", None, input_size=16)
    assert drawn(more, [3]).shape == (1, 1, 16, 16)


def test_another_scale_of_pixels(tmp_path: Path, factories: None) -> None:
    import nbcompile.training.data.unlabeled.alike as alike

    pixels = torch.full((2, 1, 6, 6), 255, dtype=torch.uint8)
    resized = alike._resized(pixels, (8, 8), (1 / 255) / (1 / 16))
    assert resized.shape == (2, 1, 8, 8)
    assert resized.unique().tolist() == [16]


def test_what_is_left_out() -> None:
    data, more = loaded("digits", "rest", None, train_images=400)
    whole = load_data(TrainConfig(data="digits")).train
    chosen: Any = data.train
    rest: Any = more
    assert sorted([*chosen.indices.tolist(), *rest.indices.tolist()]) == [*range(len(whole))]
    assert len(more) == 1037
    torch.manual_seed(1)
    one = drawn(more, [7])
    torch.manual_seed(1)
    assert torch.equal(one, drawn(whole, [int(rest.indices[7])]))


def test_a_factory_beside_a_factory(factories: None) -> None:
    _, more = loaded("made_here:noise", "made_here:noise?value=3", None)
    assert drawn(more, [0, 1]).unique().tolist() == [3]


@pytest.mark.parametrize(
    ("data", "unlabeled", "sentence"),
    [
        ("digits", "imagefolder:FLAT", "unlabeled .*flat has images of 3 channels, those of digits have 1$"),
        ("imagefolder:FOLDER", "digits", "unlabeled digits has images of 1 channels, those of imagefolder:.* have 3$"),
        ("digits", "imagefolder:EMPTY", "unlabeled .*empty has no images: none of .jpg, .* in .*empty, or in"),
        ("digits", "imagefolder:MISSING", "unlabeled imagefolder:.*missing: .*missing is no folder$"),
        ("digits", "magic", "unlabeled: data must be digits, cifar10:DIR, .*, not 'magic'$"),
        ("digits", "rest", "unlabeled rest: train_images 1437 leaves no image of digits out$"),
        ("digits", "made_here:noise", "unlabeled made_here:noise has images of 3×8×8, those of digits are 1×8×8$"),
        (
            "made_here:noise",
            "imagefolder:FLAT",
            "unlabeled .*flat: the factory of made_here:noise normalizes its images itself, so those without labels "
            "must come from a factory, too$",
        ),
        ("made_here:noise", "digits", "unlabeled digits: the factory of made_here:noise normalizes"),
        ("cifar10:CIFAR", "imagefolder:BROKEN", ".*bad.png cannot be read as an image: .*; --skip-broken"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(
    folder: Path, flat: Path, cifar: Path, factories: None, tmp_path: Path, data: str, unlabeled: str, sentence: str
) -> None:
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bad.png").write_text("no image")
    Image.new("RGB", (9, 9)).save(tmp_path / "broken" / "good.png")
    for name in ("FOLDER", "FLAT", "CIFAR", "EMPTY", "MISSING", "BROKEN"):
        path = {"FOLDER": folder, "CIFAR": cifar}.get(name, tmp_path / name.lower())
        data, unlabeled = data.replace(name, str(path)), unlabeled.replace(name, str(path))
    options = {"train_images": 1437} if unlabeled == "rest" else {}
    with pytest.raises(UsageError, match=f"^{sentence}"):
        loaded(data, unlabeled, None if "made_here" in data else 16, **options)


@pytest.mark.parametrize("kind", ["imagefolder", "cifar10"])
def test_broken_images_are_passed_over_on_request(
    kind: str, folder: Path, flat: Path, cifar: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (flat / "bad.png").write_text("no image")
    data = f"imagefolder:{folder}" if kind == "imagefolder" else f"cifar10:{cifar}"
    _, more = loaded(data, f"imagefolder:{flat}", skip_broken=True)
    assert len(more) == 5
    assert "1 of 6 images are left out" in caplog.text


def test_a_broken_image_ends_a_run_with_a_sentence(
    net_for: Callable[..., nn.Module], folder: Path, flat: Path, tmp_path: Path
) -> None:
    (flat / "bad.png").write_text("no image")
    told = config(
        f"imagefolder:{folder}", f"imagefolder:{flat}", epochs=2, batch_size=6, input_size=16, warmup_epochs=0
    )
    net = net_for(2, 3)
    with pytest.raises(UsageError, match=r"bad\.png cannot be read as an image: .*; --skip-broken .* passes over"):
        train(net, told, tmp_path / "t.pt", teacher=net)
    assert not (tmp_path / "t.pt").exists()
