import pytest
import torch
import torch.nn.functional as F

from nbcompile.training.data.in_memory import TensorImages, mirrored, shifted, statistics, tensor_data


def test_shift_moves_by_at_most_so_many_pixels() -> None:
    images = torch.zeros(200, 1, 8, 8)
    images[:, :, 4, 3] = 1
    moved = shifted(images, 1)
    assert moved.sum() == 200
    at = moved.flatten(1).argmax(1)
    assert {(int(i) // 8 - 4, int(i) % 8 - 3) for i in at} == {(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)}


def test_shift_moves_zeros_in() -> None:
    moved = shifted(torch.ones(100, 1, 3, 3), 1)
    assert set(moved.sum(dim=(1, 2, 3)).tolist()) == {4, 6, 9}


def test_shift_keeps_channels_and_images_together() -> None:
    images = torch.randint(1, 256, (20, 3, 5, 7), dtype=torch.uint8)
    moved = shifted(images, 2)
    padded = F.pad(images, (2, 2, 2, 2))
    for image, around in zip(moved, padded, strict=True):
        crops = (around[:, y : y + 5, x : x + 7] for y in range(5) for x in range(5))
        assert any(torch.equal(image, crop) for crop in crops)


def test_about_half_the_images_are_mirrored() -> None:
    images = torch.randint(0, 256, (400, 3, 4, 6), dtype=torch.uint8)
    flipped = mirrored(images)
    turned = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, images, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(turned, kept, strict=True))
    assert 150 < sum(turned) < 250


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
