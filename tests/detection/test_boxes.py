import torch

from nbcompile.detection.boxes import anchors_of, centre_form, corner_form, overlaps, size_overlaps


def test_both_forms_are_inverse() -> None:
    boxes = torch.rand(7, 5, 4, dtype=torch.float64)
    boxes[..., 2:] += boxes[..., :2]
    torch.testing.assert_close(corner_form(centre_form(boxes)), boxes)
    assert centre_form(torch.tensor([0.0, 0.25, 0.5, 1.0])).tolist() == [0.25, 0.625, 0.5, 0.75]


def test_overlaps_are_those_of_squares_that_are_counted() -> None:
    """Boxes on a grid of 9 × 9 squares: intersection and union are counted."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(0, 10, (6, 2, 2), generator=generator).sort(1).values
    boxes = edges.reshape(6, 4)
    filled = torch.zeros(6, 9, 9, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(filled, boxes.tolist(), strict=True):
        mask[top:bottom, left:right] = True
    shared = (filled[:, None] & filled[None]).flatten(2).sum(2)
    either = (filled[:, None] | filled[None]).flatten(2).sum(2)
    expected = shared / either.clamp_min(1)
    torch.testing.assert_close(overlaps(boxes.double(), boxes.double()), expected.double())


def test_overlaps_of_sizes_are_those_on_one_centre() -> None:
    sizes = torch.rand(5, 2, dtype=torch.float64) + 0.1
    centred = corner_form(torch.cat([torch.zeros(5, 2), sizes], 1))
    torch.testing.assert_close(size_overlaps(sizes, sizes), overlaps(centred, centred))


def test_anchors_find_the_sizes_there_are() -> None:
    kinds = torch.tensor([[0.1, 0.3], [0.3, 0.1], [0.5, 0.6]], dtype=torch.float64)
    sizes = kinds.repeat(20, 1) + 0.01 * torch.rand(60, 2, generator=torch.Generator().manual_seed(0))
    found = anchors_of(sizes, 3)
    assert bool((found.prod(1).diff() >= 0).all())
    assert float(size_overlaps(kinds, found).amax(1).min()) > 0.9
    assert torch.equal(found, anchors_of(sizes, 3))


def test_anchors_do_not_get_worse_by_the_rounds() -> None:
    sizes = torch.rand(200, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 2 + 0.01
    start = sizes[sizes.prod(1).argsort()][[25, 75, 125, 175]]
    assert size_overlaps(sizes, anchors_of(sizes, 4)).amax(1).mean() > size_overlaps(sizes, start).amax(1).mean()


def test_fewer_boxes_than_anchors() -> None:
    assert anchors_of(torch.tensor([[0.2, 0.3]]), 6).shape == (6, 2)
    assert bool((anchors_of(torch.tensor([[0.2, 0.3], [0.5, 0.5]]), 6) > 0.19).all())
