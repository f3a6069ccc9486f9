from pathlib import Path

import pytest
import torch

from nbcompile import UsageError
from nbcompile.training import TrainConfig
from nbcompile.training.data.base import Views
from nbcompile.training.data.digits import load_digits
from nbcompile.training.data.load import load_data
from nbcompile.training.data.subset import evenly
from nbcompile.training.loader import BatchOrder, Loader


def flat(order: BatchOrder) -> list[int]:
    return [index for batch in order for index in batch]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    first, second = (BatchOrder(100, 8, seed=3) for _ in range(2))
    first.epoch = second.epoch = 5
    torch.manual_seed(1)
    assert list(first) == list(second)
    second.epoch = 6
    assert list(first) != list(second)
    assert list(first) != list(BatchOrder(100, 8, seed=4))


def test_training_drops_the_incomplete_batch_and_measuring_keeps_it() -> None:
    assert [len(batch) for batch in BatchOrder(20, 8, seed=0)] == [8, 8]
    assert list(BatchOrder(20, 8, seed=None)) == [list(range(8)), list(range(8, 16)), list(range(16, 20))]


@pytest.mark.parametrize("seed", [0, None])
def test_processes_share_one_global_batch(seed: int | None) -> None:
    alone = list(BatchOrder(21, 8, seed=seed))
    shares = [list(BatchOrder(21, 8, seed=seed, rank=rank, world=4)) for rank in range(4)]
    assert sorted(index for share in shares for batch in share for index in batch) == sorted(
        index for batch in alone for index in batch
    )
    assert set(shares[0][0]) | set(shares[1][0]) | set(shares[2][0]) | set(shares[3][0]) == set(alone[0])


def test_digits_split_and_scale() -> None:
    data = load_digits()
    assert (len(data.train), len(data.val), data.shape) == (1437, 360, (1, 8, 8))
    assert data.classes == tuple("0123456789")
    images, labels = data.val[list(range(360))]  # type: ignore[misc]
    assert abs(images.mean()) < 0.05
    assert abs(images.std() - 1) < 0.05
    assert labels.bincount().min() >= 34  # stratified: 360 / 10 within the classes' own spread
    assert data.preprocessing["scale"] == 1 / 16
    raw = {tuple(image.flatten().tolist()) for image in data.train.pixels}  # type: ignore[attr-defined]
    assert len(raw) >= 1430, "the training part holds copies"


def test_digits_at_another_size() -> None:
    data = load_digits(12)
    assert data.shape == (1, 12, 12)
    images, _ = data.train[[0, 1, 2]]  # type: ignore[misc]
    assert images.shape == (3, 1, 12, 12)


@pytest.mark.parametrize(
    ("labels", "count", "picked"),
    [
        ([0, 0, 0, 0, 1, 1, 1, 1], 4, [0, 2, 4, 6]),
        ([1, 0, 1, 0, 1, 0, 1, 0], 4, [0, 1, 4, 5]),
        ([0] * 6 + [1] * 2, 4, [0, 2, 4, 6]),  # 3 of 6, 1 of 2
        ([0, 1, 2], 2, [0, 1]),  # of equals, the first
        ([0, 0, 0, 1, 3], 5, [0, 1, 2, 3, 4]),  # nobody has label 2
    ],
)
def test_images_are_chosen_in_proportion(labels: list[int], count: int, picked: list[int]) -> None:
    assert evenly(torch.tensor(labels), count).tolist() == picked


def test_train_images_are_the_same_for_every_seed() -> None:
    few = [load_data(TrainConfig(train_images=100, seed=seed)) for seed in (0, 1)]
    everything = load_digits()
    assert [len(data.train) for data in few] == [100, 100]
    assert len(few[0].val) == 360
    assert torch.equal(few[0].train.indices, few[1].train.indices)  # type: ignore[attr-defined]
    counts = few[0].train.labels.bincount()
    assert (counts - everything.train.labels.bincount() * 100 / 1437).abs().max() < 1
    torch.manual_seed(0)
    images, labels = few[0].train[[0, 99]]  # type: ignore[misc]
    torch.manual_seed(0)
    same, same_labels = everything.train[few[0].train.indices[[0, 99]].tolist()]  # type: ignore[misc, attr-defined]
    assert torch.equal(images, same)
    assert labels.tolist() == same_labels.tolist() == few[0].train.labels[[0, 99]].tolist()


def test_a_subset_has_the_views_of_the_whole() -> None:
    few, everything = load_data(TrainConfig(train_images=100)).train, load_digits().train
    assert isinstance(few, Views)
    assert isinstance(everything, Views)
    drawn = few.draw(2)
    images, _ = few.view([3, 99], drawn)  # type: ignore[misc]
    same, _ = everything.view(few.indices[[3, 99]].tolist(), drawn)  # type: ignore[misc, attr-defined]
    assert torch.equal(images, same)
    assert few.augmentation == everything.augmentation == "shifted by up to 1 px"


def test_refuses_more_images_than_there_are() -> None:
    assert len(load_data(TrainConfig(train_images=1437)).train) == 1437
    with pytest.raises(UsageError, match=r"^train_images 1438 is more than the 1437 training images of digits$"):
        load_data(TrainConfig(train_images=1438))


def load(folder: Path, size: int | None = 16) -> object:
    return load_data(TrainConfig(data=f"imagefolder:{folder}"), size)


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_imagefolder(folder: Path, held_out: str) -> None:
    (folder / "val").rename(folder / held_out)
    data = load_data(TrainConfig(data=f"imagefolder:{folder}"), 16)
    assert (len(data.train), len(data.val), data.classes, data.shape) == (6, 4, ("cat", "dog"), (3, 16, 16))
    images, labels = data.val[[0, 3]]  # type: ignore[misc]
    assert images.shape == (2, 3, 16, 16)
    assert labels.tolist() == [0, 1]
    assert torch.equal(images, data.val[[0, 3]][0])  # type: ignore[index]  # measuring draws nothing at random
    assert not torch.equal(data.train[[0]][0], data.train[[0]][0])  # type: ignore[index]


def test_input_size_wins_over_the_models(folder: Path) -> None:
    assert load_data(TrainConfig(data=f"imagefolder:{folder}", input_size=8), 16).shape == (3, 8, 8)


def test_workers_give_the_same_batches_in_every_run(folder: Path) -> None:
    data = load_data(TrainConfig(data=f"imagefolder:{folder}"), 16)

    def epoch(number: int) -> list[torch.Tensor]:
        loader = Loader(data.train, BatchOrder(6, 2, seed=0), 1, lambda batch: batch)
        return [batch.images for batch in loader.epoch(number)]

    assert all(map(torch.equal, epoch(1), epoch(1)))
    assert not any(map(torch.equal, epoch(1), epoch(2)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named(folder: Path, workers: int) -> None:
    broken = folder / "train" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    sentence = rf"^{broken} cannot be read as an image: .*; --skip-broken \(skip_broken=True\) passes over such images$"
    with pytest.raises(UsageError, match=sentence):
        load(folder)
    for augment in ("light", "none"):
        data = load_data(TrainConfig(data=f"imagefolder:{folder}", memory=0, augment=augment), 16)
        loader = Loader(data.train, BatchOrder(6, 2, seed=0), workers, lambda batch: batch)
        with pytest.raises(UsageError, match=sentence):
            list(loader.epoch(0))


def test_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"{tmp_path}/train is missing: expected DIR/train/CLASS/\*.jpg and"):
        load(tmp_path)


def test_refuses_a_missing_validation_part(folder: Path) -> None:
    (folder / "val").rename(folder / "elsewhere")
    with pytest.raises(UsageError, match=f"{folder}/test is missing"):
        load(folder)


def test_refuses_no_classes(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(UsageError, match=f"{tmp_path}/train cannot be used: Couldn't find any class folder"):
        load(tmp_path)


def test_refuses_an_empty_class(folder: Path) -> None:
    (folder / "train" / "eel").mkdir()
    with pytest.raises(UsageError, match="train cannot be used: Found no valid file for the classes eel"):
        load(folder)


def test_refuses_one_class(folder: Path) -> None:
    for part in ("train", "val"):
        (folder / part / "cat").rename(folder / f"{part}-cat")
    with pytest.raises(UsageError, match="train has one class, 'dog': training needs at least two"):
        load(folder)


def test_refuses_different_classes(folder: Path) -> None:
    (folder / "val" / "cat").rename(folder / "val" / "cow")
    with pytest.raises(UsageError, match="must have the same classes; only one has cat, cow"):
        load(folder)


def test_refuses_an_unknown_size(folder: Path) -> None:
    with pytest.raises(UsageError, match="needs input_size: the model remembers no square input"):
        load(folder, None)


KINDS = (
    r"data must be digits, cifar10:DIR, imagefolder:DIR, torchvision:NAME\?root=DIR, voc:DIR or package.module:factory"
)


@pytest.mark.parametrize("name", ["cifar", "imagefolder:", "cifar10:", "digits:8", "./images", "a.b:", ""])
def test_refuses_an_unknown_data_set(name: str) -> None:
    with pytest.raises(UsageError, match=rf"^{KINDS}, not '{name}'$"):
        load_data(TrainConfig(data=name))


def test_refuses_a_misspelt_kind() -> None:
    with pytest.raises(UsageError, match=rf"importing imagefoldr failed: .*; {KINDS}$"):
        load_data(TrainConfig(data="imagefoldr:images"))
