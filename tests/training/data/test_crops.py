import math

import pytest
import torch
from torchvision.transforms.v2 import functional

from nbcompile.training.data.crops import CROPS_AT_ONCE, RATIOS, SMALL, boxes, drawn_crops, filters, random_crops

SIDES = [(7, 5), (5, 7), (13, 29), (1, 1), (1, 9), (48, 48), (20, 33)]


def reference(image: torch.Tensor, box: list[int], mirror: bool, out: int) -> torch.Tensor:
    crop = functional.resized_crop(image.double(), *box, [out, out], antialias=True)
    return functional.horizontal_flip(crop) if mirror else crop


@pytest.mark.parametrize("out", [1, 4, 7, 32])
@pytest.mark.parametrize("sides", SIDES)
def test_crops_are_those_of_torchvision(sides: tuple[int, int], out: int) -> None:
    torch.manual_seed(out)
    count = CROPS_AT_ONCE + 3  # more than one turn
    images, drawn = torch.randint(0, 256, (count, 3, *sides), dtype=torch.uint8), drawn_crops(count)
    at = boxes(drawn, torch.tensor([sides]), 0.05)
    expected = [reference(*one, out) for one in zip(images, at.tolist(), (drawn[:, 4] == 1).tolist(), strict=True)]
    for taken in (images, list(images)):  # all at once, and one at a time
        found = random_crops(taken, drawn, 0.05, out)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double() / 255, torch.stack(expected) / 255, rtol=0, atol=1e-5)


def test_large_images_and_images_of_several_sizes() -> None:
    drawn = drawn_crops(4)
    large = torch.randint(0, 256, (4, 3, SMALL + 5, SMALL - 7), dtype=torch.uint8)
    several = [large[0], large[1, :, :9], large[2, :, :, :11], large[3]]
    for images in (large, several):
        found = random_crops(images, drawn, 0.3, 16)
        for i, image in enumerate(images):
            (box,) = boxes(drawn[i : i + 1], torch.tensor([image.shape[1:]]), 0.3).tolist()
            expected = reference(image, box, bool(drawn[i, 4]), 16)
            torch.testing.assert_close(found[i].double(), expected, rtol=0, atol=255e-5)


def test_filters_see_nothing_outside_the_crop() -> None:
    weights = filters(torch.tensor([3, 0]), torch.tensor([6, 11]), 11, 4)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 4))
    assert weights[0, :, :3].abs().max() == weights[0, :, 9:].abs().max() == 0
    same = filters(torch.tensor([2]), torch.tensor([5]), 9, 5)[0]
    torch.testing.assert_close(same, torch.eye(9)[2:7])  # nothing to resize


@pytest.mark.parametrize("least", [0.08, 0.5, 1.0])
@pytest.mark.parametrize("sides", [*SIDES, (30, 300), (300, 30)])
def test_boxes_lie_within_the_image_and_keep_ratio_and_area(sides: tuple[int, int], least: float) -> None:
    height, width = sides
    drawn = drawn_crops(500)
    drawn[:4, :4] = torch.tensor([[0] * 4, [(1 << 15) - 1] * 4, [0, (1 << 15) - 1, 0, 0], [(1 << 15) - 1, 0, 0, 0]])
    top, left, h, w = boxes(drawn, torch.tensor([sides]), least).unbind(1)
    assert min(top.min(), left.min()) >= 0
    assert min(h.min(), w.min()) >= 1
    assert int((top + h).max()) <= height
    assert int((left + w).max()) <= width
    half = 0.5  # pixels are whole
    assert bool(((w + half) / (h - half) >= RATIOS[0]).all())
    assert bool(((w - half) / (h + half) <= RATIOS[1]).all())
    largest = min(1.0, RATIOS[1] * height / width, width / height / RATIOS[0])
    assert bool(((h + half) * (w + half) >= min(least, largest) * height * width).all())


def test_areas_ratios_and_places_are_spread_evenly() -> None:
    torch.manual_seed(0)
    count, side = 20_000, 1000
    top, left, h, w = (x.double() for x in boxes(drawn_crops(count), torch.tensor([[side, side]]), 0.5).unbind(1))
    area = h * w / side**2
    shares = torch.histc(area, 10, 0.5, 1) / count
    assert float((shares - 0.1).abs().max()) < 0.01
    small = area < 0.75  # above, not every ratio fits
    ratios = torch.histc((w / h)[small].log(), 10, math.log(3 / 4), math.log(4 / 3)) / small.sum()
    assert float((ratios - 0.1).abs().max()) < 0.015
    for start, room in ((top, side - h), (left, side - w)):
        places = (start / room)[room > 20]
        assert abs(float(places.mean()) - 0.5) < 0.01
        assert abs(float(places.std()) - 12**-0.5) < 0.01


def test_what_is_drawn_fits_into_a_file() -> None:
    drawn = drawn_crops(5000)
    assert (drawn.shape, drawn.dtype) == ((5000, 5), torch.int16)
    assert int(drawn.min()) == 0
    assert drawn[:, 4].unique().tolist() == [0, 1]
    assert 2300 < int(drawn[:, 4].sum()) < 2700
