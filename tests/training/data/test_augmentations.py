"""``--augment``: what each data set is given, and what it refuses."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from nbcompile import UsageError
from nbcompile.training import TrainConfig, train
from nbcompile.training.batch import MIXTURE, Batch
from nbcompile.training.data.augmentations import ALPHA, HURTS
from nbcompile.training.data.base import Data, Views
from nbcompile.training.data.load import load_data
from nbcompile.training.loader import BatchOrder, Loader
from nbcompile.training.methods import METHODS
from tests.slow import one_in

EVERYTHING = list(range(6))


def load(data: str, augment: str = "light", **options: Any) -> Data:
    return load_data(TrainConfig(data=data, augment=augment, **options), 16)


def said(data: Data) -> str:
    assert isinstance(data.train, Views)
    return data.train.augmentation


@pytest.fixture
def small_colour(tmp_path: Path) -> str:
    """Two classes of 32 × 32 colour images, as CIFAR-10 has them."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "c" / part / name).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "c" / part / name / f"{i}.png")
    return f"cifar10:{tmp_path / 'c'}"


def test_of_a_folder(folder: Path) -> None:
    name = f"imagefolder:{folder}"
    assert TrainConfig().augment == "light"
    assert said(load(name)) == "crops of 0.5 to 1 of the area, mirrored"
    assert said(load(name, "crops")) == "crops of 0.08 to 1 of the area, mirrored"
    assert said(load(name, "autoaugment")) == "crops of 0.5 to 1 of the area, mirrored, AutoAugment for imagenet"
    assert said(load(name, "none")) == said(load(name, "none", memory=0)) == "none"


def test_of_images_in_memory(small_colour: str) -> None:
    assert said(load(small_colour)) == "shifted by up to 4 px, mirrored"
    assert said(load(small_colour, "none")) == "none"
    assert said(load(small_colour, "autoaugment")) == "shifted by up to 4 px, mirrored, AutoAugment for cifar10"
    assert said(load("digits", "none")) == "none"
    plain = load(small_colour, "none")
    assert torch.equal(plain.train[EVERYTHING][0], plain.train[EVERYTHING][0])  # type: ignore[index]


@pytest.mark.parametrize("name", ["imagefolder", "cifar10"])
def test_autoaugment_is_seen_again(folder: Path, small_colour: str, name: str) -> None:
    data = load(f"imagefolder:{folder}" if name == "imagefolder" else small_colour, "autoaugment")
    train = data.train
    assert isinstance(train, Views)
    drawn = train.draw(6)
    state = torch.get_rng_state()
    first, again = (train.view(EVERYTHING, drawn)[0] for _ in range(2))  # type: ignore[index]
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state()), "the run's own random numbers are others after it"
    others = drawn.clone()
    others[:, -1] += 1
    changed = [bool((a != b).any()) for a, b in zip(first, train.view(EVERYTHING, others)[0], strict=True)]  # type: ignore[index]
    assert sum(changed) >= 3


@pytest.mark.parametrize("kind", sorted(ALPHA))
@pytest.mark.parametrize("name", ["imagefolder", "digits"])
def test_mixtures(folder: Path, name: str, kind: str) -> None:
    data = load(f"imagefolder:{folder}" if name == "imagefolder" else "digits", kind)
    torch.manual_seed(3)
    images, labels, more = data.train[EVERYTHING]  # type: ignore[misc]
    mixture, hard = more[MIXTURE], data.train.labels[EVERYTHING]
    assert mixture.shape == (6, len(data.classes))
    torch.testing.assert_close(mixture.sum(1), torch.ones(6))
    assert bool((mixture >= 0).all())
    assert torch.equal(labels, mixture.argmax(1))
    present = F.one_hot(hard, len(data.classes)) + F.one_hot(hard.roll(1), len(data.classes))
    assert bool(((mixture > 0) <= (present > 0)).all())
    assert 0 < float(mixture.max(1).values.min()) < 1
    torch.manual_seed(3)
    light = data.train.images[EVERYTHING][0]  # type: ignore[attr-defined]
    other = light.roll(1, 0)
    if kind == "mixup":
        (share,) = ((images - other).flatten() @ (light - other).flatten() / (light - other).square().sum()).view(1)
        torch.testing.assert_close(images, share * light + (1 - share) * other, rtol=0, atol=1e-5)
    else:
        own, others = (images == light).all(1), (images == other).all(1)
        assert bool((own | others).all())
        share = 1 - (~own).float().mean(0).gt(0).float().mean()  # images of one colour hide a part of it
    different = hard != hard.roll(1)
    found, slack = mixture[different, hard[different]], 0.2 if (name, kind) == ("digits", "cutmix") else 1e-4
    torch.testing.assert_close(found, share.expand(len(found)), rtol=0, atol=slack)


def test_mixtures_are_learnt_from_and_divided() -> None:
    torch.manual_seed(0)
    logits, mixture = torch.randn(6, 4), torch.rand(6, 4).softmax(1)
    batch = Batch(torch.rand(6, 1, 8, 8), mixture.argmax(1), {MIXTURE: mixture})
    assert torch.equal(torch.cat([part.targets for part in batch.parts(3)]), mixture)
    assert torch.equal(batch._replace(more={}).targets, batch.labels)
    config = TrainConfig(method="vanilla", label_smoothing=0.1)
    loss, _ = config.method_row.start(config, 1).loss(_Constant(logits), batch)
    soft = 0.9 * mixture + 0.1 / 4
    torch.testing.assert_close(loss, -(soft * logits.log_softmax(1)).sum(1).mean())


class _Constant(nn.Module):
    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits


def test_what_is_said_to_hurt_is_said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("nbcompile"), "propagate", True)  # the command line stops it
    for augment in ("light", "none"):
        load("digits", augment)
    assert caplog.text == ""
    load("digits", "mixup")
    messages = {record.getMessage() for record in caplog.records if record.name == "nbcompile"}
    assert messages == {
        "augment mixup is reported to cost tiny networks accuracy: NetAug, Cai et al. 2022, arXiv:2110.08890, fig. 2: "
        "MobileNetV2-Tiny falls from 52.4 to about 51.7 %"
    }
    assert set(HURTS) == {*ALPHA, "autoaugment"}


@pytest.mark.parametrize(
    ("data", "augment", "sentence"),
    [
        (
            "digits",
            "crops",
            "augment 'crops' needs images of any size, in files; those of digits are shifted by 'light'",
        ),
        (
            "digits",
            "autoaugment",
            "augment 'autoaugment' needs images of red, green and blue; those of digits are shi.*",
        ),
        ("digits", "heavy", "augment must be one of light, crops, mixup, cutmix, autoaugment, none, not 'heavy'"),
        ("a.module:factory", "none", "augment 'none': 'a.module:factory' augments its images itself"),
        ("a.module:factory", "crops", "augment 'crops': 'a.module:factory' augments its images itself"),
    ],
)
def test_refuses(data: str, augment: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=rf"^{sentence}$"):
        load(data, augment)


def test_refuses_crops_of_colour_images_in_memory(small_colour: str) -> None:
    with pytest.raises(UsageError, match=r"^augment 'crops' needs images of any size, in files; those of cifar10:"):
        load(small_colour, "crops")


def test_workers_mix_the_same_in_every_run(folder: Path) -> None:
    data = load(f"imagefolder:{folder}", "mixup")

    def epoch(number: int) -> list[Batch]:
        return list(Loader(data.train, BatchOrder(6, 3, seed=0), 1, lambda batch: batch).epoch(number))

    for one, two in zip(epoch(1), epoch(1), strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.targets, two.targets)


@pytest.mark.parametrize("method", one_in(3, ["netdistiller", "rocket", "vanilla"]))
def test_methods_learn_from_mixtures(net_for: Callable[..., nn.Module], tmp_path: Path, method: str) -> None:
    about: dict[str, Any] = {"where": "last:1"} if method == "rocket" else {}
    config = TrainConfig(
        method=method, epochs=1, batch_size=256, augment="cutmix", accelerator="cpu", train_images=512, accumulate=2,
        **about,
    )  # fmt: skip
    result = train(net_for(), config, tmp_path / "trained.pt")
    assert 0 < result.history[0].train_accuracy < 1
    assert METHODS[method].name == result.method
