import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision  # before anything that loads TensorFlow  # noqa: F401
from PIL import Image
from torch import Tensor

from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.deploy.calibration import FEW, MOST, calibration
from nbcompile.deploy.calibration_images import inputs_of_bytes
from nbcompile.training.data.digits import load_digits
from nbcompile.training.data.imagefolder import load_imagefolder

GREY = {"scale": 1 / 255, "mean": [0.5], "std": [0.25], "size": 6}
INPUTS = (torch.zeros(2, 3, 6, 6),)


def images(folder: Path, count: int, size: tuple[int, int] = (13, 10), mode: str = "RGB") -> Path:
    """Noise in a nested folder, as ``torchvision.datasets.ImageFolder`` sorts it."""
    random = np.random.default_rng(0)
    for i in range(count):
        part = folder / f"class_{i % 2}"
        part.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(part / f"{i:03}.png")
    return folder


def batches(count: int, batch: int = 4) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(batch, 3, 6, 6), torch.zeros(batch)) for _ in range(count)]


def stacked(found: Any) -> Tensor:
    return torch.cat([x for (x,) in found.samples])


@pytest.mark.parametrize("size", [(13, 10), (10, 31), (6, 6), (4, 5)])
def test_images_are_those_that_training_measures_on(size: tuple[int, int], tmp_path: Path) -> None:
    for part in ("train", "val"):
        images(tmp_path / part, 6, size)
    data = load_imagefolder(str(tmp_path), 6)
    wanted = data.val[list(range(6))][0]
    found = calibration(tmp_path / "val", INPUTS, data.preprocessing)
    assert torch.equal(stacked(found), wanted)


@pytest.mark.parametrize("size", [None, 13])
def test_digits_are_those_that_training_measures_on(size: int | None, tmp_path: Path) -> None:
    data = load_digits(size)
    wanted = data.val[list(range(40))][0]
    for i, pixels in enumerate(data.val.pixels[:40, 0]):
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{i:02}.png")
    found = calibration(str(tmp_path), (torch.zeros(1, *data.shape),), data.preprocessing)
    assert torch.equal(stacked(found), wanted)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_bytes_become_what_images_become(tmp_path: Path, mode: str, channels: int) -> None:
    """To the bit, for each of the 256: devices make inputs by this table."""
    prepared = {"scale": 1 / 255, "mean": [0.485, 0.456, 0.406][:channels], "std": [0.229, 0.224, 0.225][:channels]}
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(np.stack([pixels, pixels.T, pixels[::-1]], -1) if channels == 3 else pixels, mode).save(
        tmp_path / "x.png"
    )
    image = np.array(Image.open(tmp_path / "x.png")).reshape(16, 16, channels)
    inputs = (torch.zeros(1, channels, 16, 16),)
    ((x,),) = calibration(tmp_path, inputs, prepared).samples
    values = inputs_of_bytes(inputs, prepared)
    assert values is not None
    assert np.array_equal(values[np.arange(channels), image], x[0].permute(1, 2, 0).numpy())


def test_bytes_of_what_is_no_image_become_nothing() -> None:
    image, known = torch.zeros(1, 3, 6, 6), {"scale": 1.0, "mean": 0.5, "std": 1.0}
    values = inputs_of_bytes((image,), known)
    assert values is not None
    assert values.shape == (3, 256)
    for inputs, given in (
        ((image,), {}), ((image,), {"scale": 1.0, "mean": 0.5}), ((image, image), known), ((image.int(),), known),
        ((torch.zeros(1, 5, 6, 6),), known), ((torch.zeros(1, 3, 6),), known),
    ):  # fmt: skip
        assert inputs_of_bytes(inputs, given) is None
    with pytest.raises(UsageError, match="preprocessing: mean has 2 values, the network takes 3 channels"):
        inputs_of_bytes((image,), known | {"mean": [0.5, 0.5]})


def test_images_of_another_mode_and_size(tmp_path: Path) -> None:
    images(tmp_path, 2, (9, 7), mode="RGB")
    images(tmp_path / "grey", 1, (6, 6), mode="LA")
    (tmp_path / "notes.txt").write_text("no image")
    found = calibration(tmp_path, (torch.zeros(1, 1, 6, 6),), GREY)
    assert stacked(found).shape == (3, 1, 6, 6)
    assert -2 <= float(stacked(found).min()) < float(stacked(found).max()) <= 2
    assert found.notes[0] == "2 of 3 images were of another size than 6 × 6: resized"


def test_many_images_are_chosen_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbcompile.deploy.calibration.MOST", 4)
    images(tmp_path, 11, (6, 6))
    found = calibration(tmp_path, INPUTS, GREY)
    assert len(found.samples) == 4
    assert f"calibrated on 4 of the 11 images in {tmp_path}, evenly chosen" in found.notes


def test_images_that_cannot_be_used(tmp_path: Path) -> None:
    broken = images(tmp_path / "broken", 1) / "class_0" / "000.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(UsageError, match=f"{broken} cannot be read as an image: "):
        calibration(tmp_path / "broken", INPUTS, GREY)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UsageError, match=rf"calibration {tmp_path / 'empty'} holds no images; these count: .jpg, .jpeg, "
    ):
        calibration(tmp_path / "empty", INPUTS, GREY)
    images(tmp_path / "some", 1)
    with pytest.raises(
        UsageError, match=r"images fit one input .*, the network takes \(N, 4, 6, 6\); give an .npz or b"
    ):
        calibration(tmp_path / "some", (torch.zeros(1, 4, 6, 6),), GREY)
    with pytest.raises(
        UsageError, match=r"of the network's preprocessing mean, std is not known. `nbcompile train` rec"
    ):
        calibration(tmp_path / "some", INPUTS, {"scale": 1 / 255})
    with pytest.raises(UsageError, match="preprocessing: std has 2 values, the network takes 3 channels"):
        calibration(tmp_path / "some", INPUTS, GREY | {"std": [1, 2]})
    (tmp_path / "deep").mkdir()
    Image.fromarray(np.full((6, 6), 40_000, np.uint16)).save(tmp_path / "deep/000.png")
    with pytest.raises(UsageError, match=r"000.png has more than 8 bits per channel \(mode I;16\): convert it to 8"):
        calibration(tmp_path / "deep", INPUTS, GREY)
    with pytest.raises(
        UsageError, match=r"000.png has pixels up to 2\d\d, more than the 16 that the network takes for w"
    ):
        calibration(tmp_path / "some", INPUTS, GREY | {"scale": 1 / 16})


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"scale": "a"}, "preprocessing: scale='a' is no number, and no list of numbers"),
        ({"scale": None}, "preprocessing: scale=None is no number, and no list of numbers"),
        ({"mean": [0.5, [1]]}, "preprocessing: mean=[0.5, [1]] is no number, and no list of numbers"),
        ({"mean": [float("nan")]}, "preprocessing: mean=[nan] is not finite"),
        ({"std": [0.5, 0, 0.5]}, "preprocessing: std=[0.5, 0, 0.5] is not above 0"),
        ({"scale": 0}, "preprocessing: scale=0 is not above 0"),
        ({"scale": [1, 1, 1]}, "preprocessing: scale has 3 values, it is one number"),
        ({"crop": 0}, "preprocessing: crop=0 is not above 0"),
        ({"crop": 2}, "preprocessing: crop=2 is above 1, the whole of the shorter side"),
        ({"crop": "a"}, "preprocessing: crop='a' is no number, and no list of numbers"),
    ],
)
def test_preprocessing_that_makes_no_inputs(tmp_path: Path, wrong: dict[str, Any], sentence: str) -> None:
    images(tmp_path, 1)
    with pytest.raises(UsageError) as refused:
        calibration(tmp_path, INPUTS, GREY | wrong)
    assert str(refused.value) == sentence


def test_arrays_whose_memory_pytorch_cannot_share() -> None:
    x = np.random.default_rng(0).random((40, 3, 6, 6), np.float32)
    fixed = x.copy()
    fixed.flags.writeable = False
    for given, expected in ((x[::-1], x[::-1].copy()), (x.astype(">f4"), x), (fixed, x)):
        assert torch.equal(stacked(calibration([given], INPUTS)), torch.from_numpy(expected))
    with pytest.raises(UsageError, match="calibration data holds <U1, not numbers: give arrays of numbers"):
        calibration([np.array(["a"])], INPUTS)


def test_npz(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).random((40, 3, 6, 6)), np.zeros((40, 5), np.int64)
    np.savez(tmp_path / "one.npz", images=x)
    found = calibration(tmp_path / "one.npz", INPUTS)
    assert found.notes == ()
    assert torch.equal(stacked(found), torch.from_numpy(x).float())
    np.savez(tmp_path / "two.npz", images=x, tokens=y)
    two = calibration(tmp_path / "two.npz", (*INPUTS, torch.zeros(1, 5, dtype=torch.int64)))
    assert [tuple(one.shape) for one in two.samples[0]] == [(1, 3, 6, 6), (1, 5)]
    with pytest.raises(UsageError, match=r"two.npz has 2 arrays \(images, tokens\), the network takes 1 inputs"):
        calibration(tmp_path / "two.npz", INPUTS)


def test_arrays_are_taken_by_the_names_of_the_inputs(tmp_path: Path) -> None:
    """Two of one shape that are exchanged would be two ranges that are exchanged, and no error."""
    x, y = np.random.default_rng(0).random((2, 40, 3, 6, 6)).astype(np.float32)
    path, inputs = tmp_path / "two.npz", (*INPUTS, *INPUTS)
    np.savez(path, big=y, small=x)
    first, second = calibration(path, inputs, names=("small", "big")).samples[7]
    assert torch.equal(first[0], torch.from_numpy(x[7]))
    assert torch.equal(second[0], torch.from_numpy(y[7]))
    in_order = calibration(path, inputs, names=("other", "names")).samples[7]
    assert torch.equal(in_order[0][0], torch.from_numpy(y[7]))
    said = (
        r"two.npz has 'big' as array 1, and that is input 2 of the network: call all arrays as the inputs \(one, big\),"
        r" or write them in that order$"
    )
    with pytest.raises(UsageError, match=said):
        calibration(path, inputs, names=("one", "big"))


def test_paths_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UsageError, match=r"bad.npz cannot be read: "):
        calibration(tmp_path / "bad.npz", INPUTS)
    np.savez(tmp_path / "text.npz", words=np.array(["a"]))
    with pytest.raises(UsageError, match=r"text.npz cannot be read: can't convert np.ndarray of type"):
        calibration(tmp_path / "text.npz", INPUTS)
    with pytest.raises(UsageError, match=r"gone.npz cannot be read: .*No such file"):
        calibration(tmp_path / "gone.npz", INPUTS)
    with pytest.raises(UsageError, match=r"gone is not there: give a folder of images, or an .npz with arrays"):
        calibration(tmp_path / "gone", INPUTS)
    (tmp_path / "a.txt").touch()
    with pytest.raises(UsageError, match=r"a.txt is neither: give a folder of images, or an .npz"):
        calibration(tmp_path / "a.txt", INPUTS)


def test_a_tensor_is_taken_apart() -> None:
    x = torch.randn(33, 3, 6, 6, dtype=torch.float64)
    found = calibration(x, INPUTS)
    assert torch.equal(stacked(found), x.float())
    assert found.notes == ()
    assert torch.equal(stacked(calibration(x.numpy(), INPUTS)), x.float())


def test_of_batches_with_labels_the_inputs_are_taken_and_that_is_said() -> None:
    given = batches(9)
    found = calibration(given, INPUTS)
    assert torch.equal(stacked(found), torch.cat([x for x, _ in given]))
    assert found.notes == ("calibration batches have 2 items: the first item was taken, the rest (labels) left",)
    alone = calibration([x for x, _ in given], INPUTS)
    assert alone.notes == ()
    assert torch.equal(stacked(alone), stacked(found))
    two = calibration([(x, x, y) for x, y in given], INPUTS * 2)
    assert two.notes == ("calibration batches have 3 items: the first 2 items were taken, the rest (labels) left",)


def test_of_an_endless_loader_the_first_samples_are_taken() -> None:
    def endless() -> Iterator[Tensor]:
        while True:
            yield torch.randn(100, 3, 6, 6)

    found = calibration(endless(), INPUTS)
    assert len(found.samples) == MOST
    assert found.notes == (f"calibrated on the first {MOST} samples; the rest was left",)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            torch.zeros(3, 6, 6),
            r"\(3, 6, 6\) does not fit .* \(2, 3, 6, 6\): it has no batch dimension; use x.unsqueez",
        ),
        (torch.zeros(5, 6, 6, 3), r"it is channels-last; use x.permute\(0, 3, 1, 2\)"),
        (torch.zeros(5, 1, 6, 6), "it has 1 channels instead of 3"),
        (torch.zeros(5, 3, 6, 7), "it is of another size; resize it as for training"),
        (torch.zeros(5, 3), "it is of another size; resize it as for training"),
        (torch.zeros(5, 3, 6, 6, dtype=torch.uint8), "it is uint8 instead of float32; make it into inputs as for tr"),
        ({"x": torch.zeros(5, 3, 6, 6)}, r"a calibration batch is \(dict\), the network takes 1 tensors: give batches"),
        ((), r"a calibration batch is \(nothing\), the network takes 1 tensors"),
    ],
)
def test_batches_that_do_not_fit(batch: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        calibration([batch], INPUTS)


def test_inputs_of_a_batch_must_be_as_many() -> None:
    with pytest.raises(UsageError, match="the inputs of a calibration batch have 2, 3 samples"):
        calibration([(torch.zeros(2, 3, 6, 6), torch.zeros(3, 3, 6, 6))], INPUTS * 2)


def test_what_is_no_source() -> None:
    with pytest.raises(
        UsageError, match=r"a calibration set cannot be of type int: give a folder of images, an .npz, "
    ):
        calibration(5, INPUTS)  # type: ignore[arg-type]
    for nothing in ([], torch.zeros(0, 3, 6, 6)):
        with pytest.raises(UsageError, match="the calibration set is empty: give some 100 samples as the network will"):
            calibration(nothing, INPUTS)
    with pytest.raises(UsageError, match="calibration needs a network whose inputs are tensors with a batch dimension"):
        calibration([], ([torch.zeros(3, 6, 6)],))


def test_values_that_are_not_finite() -> None:
    given = [x for x, _ in batches(3)]
    given[1][2, 0, 0, :2] = torch.inf
    with pytest.raises(PreconditionError, match=r"sample 6 \(counted from 0\) has 2 of 108 values that are NaN or inf"):
        calibration(given, INPUTS)


def test_doubts() -> None:
    (few,) = calibration(torch.randn(FEW - 1, 3, 6, 6), INPUTS).notes
    assert few.startswith(f"the calibration set has {FEW - 1} samples: with fewer than {FEW}, the network may meet ")
    assert calibration(torch.randn(1, 3, 6, 6), INPUTS).notes[0].startswith("the calibration set has 1 sample: with")
    some = torch.cat([torch.randn(30, 3, 6, 6), torch.randn(4, 3, 1, 1).expand(4, 3, 6, 6)])
    assert calibration(some, INPUTS).notes == (
        "4 of 34 calibration samples are constant: one value per channel, nothing to see",
    )
    assert calibration(torch.randn(1, 3, 6, 6).expand(40, 3, 6, 6), INPUTS).notes == (
        "all 40 calibration samples are the same",
    )


def _npy(path: Path, header: object, data: bytes, version: int = 1) -> Path:
    """An ``.npz`` whose one array says ``header`` of itself."""
    text = (header if isinstance(header, str) else repr(header)).encode().ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        size = len(text).to_bytes(2 if version == 1 else 4, "little")
        archive.writestr("x.npy", b"\x93NUMPY" + bytes([version, 0]) + size + text + data)
    return path


def _head(*shape: int, descr: str = "<f4", fortran: bool = False) -> dict[str, object]:
    return {"descr": descr, "fortran_order": fortran, "shape": shape}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (_head(10**9, 3, 4, 6), r"cannot be read: array 'x' is cut off: of 1,000,000,000 samples it has 2$"),
        (_head(10**9, 3, 4, 6, fortran=True), r"has 1,000,000,000 samples in Fortran's order, .* at most 513 are read"),
        (
            _head(2, 3, 10**5, 10**5),
            r"\(2, 3, 100000, 100000\) does not fit the network's input .*: it is of another size",
        ),
        (_head(2**62, 2**62), "cannot be read: "),
        (_head(-2, 3, 4, 6), r"cannot be read: an array of shape \(-2, 3, 4, 6\) is none$"),
        (_head(2, 3, 4, 6, descr="|O"), "holds Python objects, whose reading could run any code"),
        (_head(2, 3, 4, 6, descr="|V4"), "cannot be read: can't convert np.ndarray"),
        ("{'shape': (", "cannot be read: "),
        ("__import__('os').system('true')", "cannot be read: "),
    ],
)
def test_npz_that_says_what_is_not_so(tmp_path: Path, header: object, message: str) -> None:
    path = _npy(tmp_path / "x.npz", header, bytes(2 * 3 * 4 * 6 * 4))
    with pytest.raises(UsageError, match=message) as caught:
        calibration(path, (torch.zeros(1, 3, 4, 6),))
    assert "\n" not in str(caught.value)


def test_of_a_large_npz_no_more_is_read_than_is_taken(tmp_path: Path) -> None:
    """A kilobyte unpacks to the size of a disk; what is behind the last sample that is taken is not looked at."""
    path = _npy(tmp_path / "x.npz", _head(10**9, 3, 4, 6), np.arange(MOST + 2, dtype="f4").repeat(3 * 4 * 6).tobytes())
    found = calibration(path, (torch.zeros(1, 3, 4, 6),))
    assert [float(sample[0].max()) for sample in found.samples] == list(range(MOST))
    assert f"calibrated on the first {MOST} samples; the rest was left" in found.notes


@pytest.mark.parametrize(("descr", "fortran", "version"), [(">f4", False, 1), ("<f8", True, 1), ("<i2", False, 2)])
def test_npz_in_any_order(tmp_path: Path, descr: str, fortran: bool, version: int) -> None:
    x = np.arange(5 * 3 * 4 * 6).reshape(5, 3, 4, 6).astype(descr)
    path = _npy(
        tmp_path / "x.npz",
        _head(*x.shape, descr=descr, fortran=fortran),
        x.tobytes("A" if not fortran else "F"),
        version,
    )
    example = torch.zeros(1, 3, 4, 6, dtype=torch.int64 if descr == "<i2" else torch.float32)
    found = calibration(path, (example,))
    assert torch.equal(torch.cat([sample[0] for sample in found.samples]), torch.from_numpy(x.astype("f8")).to(example))


def test_a_damaged_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", np.ones((2, 3, 4, 6), np.float32))
    whole = bytearray((tmp_path / "x.npz").read_bytes())
    whole[300] ^= 1
    (tmp_path / "x.npz").write_bytes(whole)
    with pytest.raises(UsageError, match=r"x\.npz cannot be read: Bad CRC-32"):
        calibration(tmp_path / "x.npz", (torch.zeros(1, 3, 4, 6),))
