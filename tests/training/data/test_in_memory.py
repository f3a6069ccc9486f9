import pytest
import torch
import torch.nn.functional as F

from nbcompile.training.data.base import Views
from nbcompile.training.data.in_memory import TensorImages, mirrored, shifted, statistics, tensor_data


def test_shift_moves_by_at_most_so_many_pixels() -> None:
    images = torch.zeros(200, 1, 8, 8)
    images[:, :, 4, 3] = 1
    moved = shifted(images, 1, *torch.randint(0, 3, (2, 200)))
    assert moved.sum() == 200
    at = moved.flatten(1).argmax(1)
    assert {(int(i) // 8 - 4, int(i) % 8 - 3) for i in at} == {(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)}


def test_shift_moves_zeros_in() -> None:
    moved = shifted(torch.ones(100, 1, 3, 3), 1, *torch.randint(0, 3, (2, 100)))
    assert set(moved.sum(dim=(1, 2, 3)).tolist()) == {4, 6, 9}


def test_shift_keeps_channels_and_images_together() -> None:
    images = torch.randint(1, 256, (20, 3, 5, 7), dtype=torch.uint8)
    rows, columns = torch.randint(0, 5, (2, 20))
    moved = shifted(images, 2, rows, columns)
    padded = F.pad(images, (2, 2, 2, 2))
    for image, around, y, x in zip(moved, padded, rows, columns, strict=True):
        assert torch.equal(image, around[:, y : y + 5, x : x + 7])


def test_mirrors_those_that_are_told() -> None:
    images = torch.randint(0, 256, (4, 3, 4, 6), dtype=torch.uint8)
    which = torch.tensor([True, False, False, True])
    for image, mirror, was in zip(mirrored(images, which), which, images, strict=True):
        assert torch.equal(image, was.flip(2) if mirror else was)


@pytest.mark.parametrize("mirror", [True, False])
def test_a_view_can_be_drawn_once_and_seen_again(mirror: bool) -> None:
    pixels = torch.randint(0, 256, (400, 3, 16, 17), dtype=torch.uint8)
    part = (pixels, torch.arange(400) % 2)
    data = tensor_data("some", part, part, ("a", "b"), scale=1 / 255, size=None, mirror=mirror)
    train, everything = data.train, list(range(400))
    assert isinstance(train, Views)
    assert train.augmentation == "shifted by up to 2 px" + ", mirrored" * mirror
    torch.manual_seed(5)
    drawn = train.draw(400)
    assert (drawn.shape, drawn.dtype) == ((400, 2 + mirror), torch.int16)
    assert [x.unique().tolist() for x in drawn.unbind(1)] == [[*range(5)], [*range(5)], [0, 1]][: 2 + mirror]
    if mirror:
        assert 150 < drawn[:, 2].sum() < 250
    torch.manual_seed(5)
    images, labels = train[everything]  # type: ignore[misc]
    again, same_labels = train.view(everything, drawn)  # type: ignore[misc]
    assert torch.equal(images, again)
    assert labels.tolist() == same_labels.tolist()
    some, _ = train.view([7, 9], drawn[[7, 9]])  # type: ignore[misc]
    assert torch.equal(some, images[[7, 9]]), "a view depends on the others of its batch"


def test_what_is_not_augmented_has_one_view() -> None:
    part = (torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8), torch.arange(4) % 2)
    val = tensor_data("some", part, part, ("a", "b"), scale=1 / 255, size=None, mirror=True).val
    assert isinstance(val, Views)
    assert (val.augmentation, val.draw(3).shape) == ("none", (3, 0))
    assert torch.equal(val.view([1, 2, 0], val.draw(3))[0], val[[1, 2, 0]][0])  # type: ignore[index]


def test_statistics() -> None:
    pixels = torch.randint(0, 256, (3000, 2, 3, 5), dtype=torch.uint8)  # more than one chunk
    pixels[:, 1] //= 2
    mean, std = statistics(pixels, 1 / 255)
    scaled = pixels.double() / 255
    torch.testing.assert_close(mean, scaled.mean((0, 2, 3)).tolist())
    torch.testing.assert_close(std, scaled.std((0, 2, 3), correction=0).tolist())


def test_statistics_of_one_colour_do_not_divide_by_zero() -> None:
    _, std = statistics(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8), 1 / 255)
    assert std[0] > 0


@pytest.mark.parametrize("size", [None, 12])
def test_the_training_part_is_augmented_and_the_other_is_not(size: int | None) -> None:
    pixels = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    part = (pixels, torch.arange(50) % 2)
    data = tensor_data("some", part, part, ("a", "b"), scale=1 / 255, size=size, mirror=True)
    side = size or 8
    assert data.shape == (3, side, side)
    assert data.preprocessing["size"] == side
    images, labels = data.val[[7, 3]]  # type: ignore[misc]
    assert labels.tolist() == [1, 1]
    expected = pixels[[7, 3]].float() / 255
    if size:
        expected = F.interpolate(expected, size=(size, size), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(data.preprocessing[key]).view(-1, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(images, (expected - mean) / std)
    assert isinstance(data.train, TensorImages)
    everything = list(range(50))
    assert not torch.equal(data.train[everything][0], data.val[everything][0])  # type: ignore[index]
    assert torch.equal(data.train.pixels, pixels), "augmentation wrote into the set"


def test_augmentation_is_a_function_of_the_global_seed() -> None:
    pixels = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8)
    part = (pixels, torch.arange(20) % 2)
    data = tensor_data("some", part, part, ("a", "b"), scale=1 / 255, size=None, mirror=False)
    batches = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        batches.append(data.train[list(range(20))][0])  # type: ignore[index]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])
