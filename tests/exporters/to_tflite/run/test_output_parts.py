"""Outputs that hold values of very different size are judged part by part."""

import numpy as np
import pytest
import torch
from torch import nn

from nbcompile.exporters.to_tflite.lower.lowering import float_model
from nbcompile.exporters.to_tflite.run.agreement import compared, share_as_good
from nbcompile.exporters.to_tflite.run.output_parts import output_parts, sources_of
from tests.exporters.to_tflite.lowered import Net, lowered
from tests.exporters.to_tflite.networks_tflite import network, samples

random = np.random.default_rng(0)


def test_what_was_joined_is_found_wherever_it_was_moved_to() -> None:
    def detector(layers, x):  # type: ignore[no-untyped-def]
        y = layers[0](x).flatten(2)
        boxes, scores = y[:, :4].exp() * 30, y[:, 4:].sigmoid()
        return torch.cat([boxes, scores], 1).transpose(1, 2)[:, 1:], y.softmax(1)

    model, _ = lowered(Net(detector, torch.nn.Conv2d(3, 7, 1)), torch.randn(1, 3, 2, 3))
    joined, probabilities = sources_of(model)
    assert (joined.layers, joined.whole) == (("mul", "sigmoid"), (False, True))
    assert joined.numbers.shape == (1, 5, 7)
    assert (joined.numbers == [0, 0, 0, 0, 1, 1, 1]).all()
    assert probabilities.whole == (True,)
    y = random.standard_normal((3, *joined.numbers.shape))
    assert [part.name for part in output_parts(y, joined)] == ["'mul'", "'sigmoid'"]
    small = y * np.where(joined.numbers == 1, np.geomspace(1, 1e-6, 7), 1)  # of scores, that one is rare is no fault
    assert [part.name for part in output_parts(small, joined)] == ["'mul'", "'sigmoid'"]


def groups(y: np.ndarray) -> dict[str, list[int]]:
    return {part.name: np.flatnonzero(part.where.ravel()).tolist() for part in output_parts(y)}


def test_channels_are_grouped_where_there_is_a_gap() -> None:
    y = random.uniform(-1, 1, (50, 1, 6))
    assert groups(y) == {"": [0, 1, 2, 3, 4, 5]}
    assert groups(y * np.geomspace(1, 1e5, 6)) == {"": [0, 1, 2, 3, 4, 5]}  # 10 times each: no gap
    assert groups(y * [500, 1, 500, 500, 500, 1]) == {"4 channels (0 and others)": [0, 2, 3, 4],
                                                      "2 channels (1 and others)": [1, 5]}  # fmt: skip
    assert groups(y * [0, 500, 500, 500, 1, 1]) == {"channels 0 to 3": [0, 1, 2, 3], "channels 4 to 5": [4, 5]}
    assert groups(y * [1, 1, 1, 1, 1, 0] + [0, 0, 0, 0, 0, 900]) == {"channels 0 to 4": [0, 1, 2, 3, 4],
                                                                     "channel 5": [5]}  # fmt: skip
    assert groups(y[:1]) == {"": [0, 1, 2, 3, 4, 5]}


def test_sequences_have_channels_first_or_last() -> None:
    y = random.uniform(-1, 1, (5, 1, 40, 3))
    for turned in (y * [1, 100, 1], (y * [1, 100, 1]).transpose(0, 1, 3, 2)):
        assert [part.name for part in output_parts(turned)] == ["channel 1", "2 channels (0 and others)"]


def test_the_least_part_counts_and_its_worst_sample_is_known() -> None:
    content = network("mobile", int8=False)
    given = samples((1, 17, 13, 3))
    expected = [np.array([[1000.0, 900, 800, 1, 2]]) * scale for scale in (0.2, 0.4, 0.6, 0.8)]
    found = compared(content, given, [(y.astype(np.float32),) for y in expected])
    large, small = found.parts
    assert (large.name, small.name) == ("channels 0 to 2", "channels 3 to 4")
    assert found.sqnr == small.sqnr < large.sqnr
    assert found.least is small
    assert small.low < small.sqnr


@pytest.mark.parametrize(("count", "tried", "share"), [(1, 1, 0.05), (4, 1, 0.47), (16, 1, 0.83), (16, 5, 0.75)])
def test_how_sure_a_number_is(count: int, tried: int, share: float) -> None:
    """Of many sets of samples, 95 % have a worst one that at least this share of all others reach."""
    assert share_as_good(count, tried) == pytest.approx(share, abs=0.01)
    worst = np.random.default_rng(0).uniform(size=(20_000, count)).min(1)  # those above: 1 - worst
    assert np.mean(1 - worst >= share_as_good(count)) == pytest.approx(0.95, abs=0.01)


def test_whole_numbers_are_judged_by_how_many_are_the_same() -> None:
    def best(layers, x):  # type: ignore[no-untyped-def]
        return x.topk(2).indices

    model, _ = lowered(Net(best), torch.randn(1, 5))
    x = np.array([[0.1, 0.5, 0.3, 0.2, 0.0]], np.float32)
    same, half = (compared(model.content, [(x,)], [(np.array([[1, i]]),)]) for i in (2, 3))
    assert (same.sqnr, same.top1) == (float("inf"), 1.0)
    assert (half.sqnr, half.top1) == (pytest.approx(3.0, abs=0.1), 0.5)


def test_what_is_looked_up_at_computed_places_is_one_part() -> None:
    network = Net(lambda layers, x: layers[0](x.argmax(1)), nn.Embedding(6, 3)).eval()
    (found,) = sources_of(float_model(network, (torch.randn(1, 6, 5, 4),)))
    assert len(found.layers) == 1
    assert not found.numbers.any()
