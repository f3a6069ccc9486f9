"""Images that are held on a device: batches are those of the other way, to the bit where the device is the CPU."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

import nbcompile
from nbcompile import UsageError
from nbcompile.training import TrainConfig, train
from nbcompile.training.batch import ANSWERS, OTHER_VIEW
from nbcompile.training.data.base import Data, Images
from nbcompile.training.data.load import hold_images_on, hold_on, load_data
from nbcompile.training.data.two_views import TwoViews
from nbcompile.training.data.unlabeled.beside import with_unlabeled
from nbcompile.training.loader import BatchOrder, Loader, held_on
from nbcompile.training.stored.views import AnsweredViews, ShownView, packed
from tests.slow import one_in

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(scope="module")
def of_one_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise, 20 × 20 pixels: 22 images to train on, 10 to measure on."""
    root, rng = tmp_path_factory.mktemp("alike"), np.random.default_rng(0)
    for part, count in (("train", 11), ("val", 5)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(root / part / name / f"{i}.png")
    return root


def loaded(kind: str, folder: Path, **options: Any) -> Data:
    data = kind if kind == "digits" else f"imagefolder:{folder}"
    size = {} if kind == "digits" else {"input_size": 16}
    return load_data(TrainConfig(**{"data": data, "method": "vanilla", **size, **options}))


def batches(images: Images, seed: int | None = 3) -> list[Any]:
    torch.manual_seed(5)
    order = BatchOrder(len(images), 7, seed=seed)
    return list(Loader(images, order, 0, lambda batch: batch).epoch(1))


KINDS = [
    ("digits", {}),
    ("digits", {"train_images": 50}),
    ("folder", {}),
    ("folder", {"augment": "crops"}),
    ("folder", {"augment": "none"}),
    ("folder", {"train_images": 15}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_batches_are_the_same(kind: str, options: dict[str, Any], of_one_size: Path) -> None:
    data = loaded(kind, of_one_size, **options)
    there = copy.deepcopy(data)
    hold_on(there, CPU)
    assert held_on(data.train) is None
    assert held_on(there.train) == held_on(there.val) == CPU
    for here, moved, seed in ((data.train, there.train, 3), (data.val, there.val, None)):
        expected, found = batches(here, seed), batches(moved, seed)
        assert len(found) == len(expected) > 1
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.labels, b.labels)
    two, two_there = batches(TwoViews(data.train)), batches(TwoViews(there.train))
    assert torch.equal(two[0].more[OTHER_VIEW], two_there[0].more[OTHER_VIEW])
    assert not torch.equal(two[0].more[OTHER_VIEW], two[0].images) or options.get("augment") == "none"


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_nothing_is_left_behind_on_the_processor(kind: str, options: dict[str, Any], of_one_size: Path) -> None:
    """Fake tensors say where they are, and refuse to be mixed; no GPU is needed to see it."""
    data = loaded(kind, of_one_size, **options)
    answers = AnsweredViews(data.train, 4)  # type: ignore[arg-type]
    rows = packed(data.train.draw(len(data.train)), torch.randn(len(data.train), 4), 2)  # type: ignore[attr-defined]
    with FakeTensorMode(allow_non_fake_inputs=True):
        hold_on(data, CUDA)
        answers.show(rows)
        indices = torch.arange(5, device=CUDA)
        for images in (data.train, data.val, answers, TwoViews(data.train)):
            found: Any = images[indices]  # type: ignore[index]
            more = found[2].values() if len(found) > 2 else ()
            assert {x.device for x in (*found[:2], *more)} == {CUDA}
            assert found[0].shape == (5, *data.shape)
        drawn = data.train.draw(len(data.train))  # type: ignore[attr-defined]
        assert ShownView(data.train, drawn)[indices][0].device == CUDA  # type: ignore[arg-type]


def test_stored_answers_are_the_same(of_one_size: Path) -> None:
    data = loaded("folder", of_one_size)
    train_set: Any = data.train
    rows = packed(train_set.draw(len(train_set)), torch.randn(len(train_set), 4), 2)
    found = []
    for _ in range(2):
        answered = AnsweredViews(train_set, 4)
        answered.show(rows)
        found.append(batches(answered)[0])
        hold_on(data, CPU)
    assert torch.equal(found[0].images, found[1].images)
    assert torch.equal(found[0].more[ANSWERS], found[1].more[ANSWERS])


def test_resizing_goes_on(of_one_size: Path) -> None:
    data = loaded("folder", of_one_size)
    hold_on(data, CPU)
    assert data.resize is not None
    data.resize(12)
    assert batches(data.train)[0].images.shape == (7, 3, 12, 12)


@pytest.mark.parametrize("options", [{"memory": 0}, {"augment": "autoaugment"}, {"augment": "mixup"}])
def test_what_is_not_made_on_a_device(options: dict[str, Any], of_one_size: Path) -> None:
    data = loaded("folder", of_one_size, **options)
    with pytest.raises(UsageError, match=r"^device_images: those of imagefolder:.* cannot be made on a device: that "):
        hold_on(data, CPU)


def test_where_images_are_not_held(of_one_size: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^device_images: views are made on a CUDA GPU or the CPU, and the run is on 'm"
    ):
        hold_on(loaded("folder", of_one_size), torch.device("mps"))


def without_labels(folder: Path, unlabeled: str, device: torch.device | None) -> Images:
    """Those beside 15 labelled images of ``folder``, where both are held on ``device``."""
    told = {"method": "mimic", "teacher": "t.pt", "train_images": 15, "input_size": 16, "unlabeled": unlabeled}
    config = TrainConfig(data=f"imagefolder:{folder}", device_images=device is not None, **told)
    data = load_data(config)
    if device is not None:
        hold_on(data, device)
    fabric: Any = SimpleNamespace(world_size=1, global_rank=0, device=device)
    beside: Any = with_unlabeled(fabric, config, data, Loader(data.train, BatchOrder(15, 5, seed=3), 0, lambda x: x))
    return beside.beside._images


@pytest.mark.parametrize("unlabeled", ["rest", "imagefolder"])
def test_images_without_labels_are_held_there_too(unlabeled: str, of_one_size: Path) -> None:
    spec = unlabeled if unlabeled == "rest" else f"imagefolder:{of_one_size}"
    here, there = (without_labels(of_one_size, spec, device) for device in (None, CPU))
    assert (held_on(here), held_on(there)) == (None, CPU)
    for a, b in zip(batches(here), batches(there), strict=True):
        assert torch.equal(a.images, b.images)
    moved: Any = here
    with FakeTensorMode(allow_non_fake_inputs=True):
        hold_images_on(moved, spec, CUDA)
        assert moved[torch.arange(3, device=CUDA)][0].device == CUDA


def test_images_without_labels_that_cannot_be_held(of_one_size: Path, folder: Path) -> None:
    Image.new("RGB", (9, 31)).save(folder / "train" / "cat" / "0.png")
    with pytest.raises(UsageError, match=r"^device_images: those of unlabeled imagefolder:.* cannot be made on a devi"):
        without_labels(of_one_size, f"imagefolder:{folder}", CPU)


def test_images_of_several_sizes_stay(folder: Path) -> None:
    Image.new("RGB", (9, 31)).save(folder / "train" / "cat" / "0.png")
    with pytest.raises(UsageError, match="that takes images of one size, of at most 64 pixels, in memory"):
        hold_on(loaded("folder", folder), CPU)


@pytest.mark.parametrize("method", one_in(3, ["vanilla", "kd", "mimic"]))
def test_a_run_is_the_same(method: str, tmp_path: Path) -> None:
    results = []
    net = nbcompile.zoo.dscnn(num_classes=10, in_channels=1)
    for there in (False, True):
        options: dict[str, Any] = {"method": method, "device_images": there}
        if method == "kd":
            options |= {"teacher": "t.pt", "stored_labels": str(tmp_path / f"labels {there}")}
        if method == "mimic":
            options |= {"teacher": "t.pt", "unlabeled": "rest", "adversarial": 0.1}
        config = TrainConfig(data="digits", epochs=2, batch_size=100, train_images=300, accelerator="cpu", **options)
        teacher = net if method != "vanilla" else None
        results.append(train(net, config, tmp_path / f"{there}.pt", teacher=teacher))
    assert [epoch.loss for epoch in results[0].history] == [epoch.loss for epoch in results[1].history]
    assert results[0].accuracy == results[1].accuracy
