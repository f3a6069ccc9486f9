"""Two sets side by side: which images of the second come when."""

from collections import Counter

import pytest
import torch

from nbcompile.training.data.unlabeled.beside import Endless


def batches(epoch: int, **options: int) -> list[list[int]]:
    order = Endless(**({"length": 7, "batch_size": 4, "steps": 5, "seed": 3} | options))
    order.epoch = epoch
    assert len(order) == len(list(order)) == order.steps
    return list(order)


def test_every_image_comes_as_often_as_any_other() -> None:
    stream = [i for epoch in range(7) for batch in batches(epoch) for i in batch]
    assert len(stream) == 7 * 5 * 4
    passes = [stream[i : i + 7] for i in range(0, len(stream), 7)]
    assert all(sorted(one) == [*range(7)] for one in passes)
    assert len({tuple(one) for one in passes}) > 15, "passes are not shuffled anew"


def test_an_epoch_is_a_function_of_the_seed_and_its_number() -> None:
    assert batches(4) == batches(4)
    torch.rand(3)
    assert batches(4) == batches(4)
    assert batches(4) != batches(4, seed=4)
    assert batches(4) != batches(5)


@pytest.mark.parametrize("length", [3, 8, 1000])
def test_a_batch_may_be_more_than_there_are(length: int) -> None:
    found = batches(2, length=length, batch_size=8)
    counts = Counter(i for batch in found for i in batch)
    assert {len(batch) for batch in found} == {8}
    assert max(counts.values()) - min(counts.get(i, 0) for i in range(length)) <= 2
    assert max(counts) < length


def test_processes_divide_each_batch() -> None:
    whole = batches(1, batch_size=6)
    for rank in (0, 1, 2):
        mine = batches(1, batch_size=6, rank=rank, world=3)
        assert mine == [batch[rank::3] for batch in whole]
