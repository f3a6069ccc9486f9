"""Masks of attention in int8: what softmax makes nothing of takes no scale from the rest."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from nbcompile.exporters.to_tflite.build import Samples, build_file, filed
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.options import Recipe
from nbcompile.exporters.to_tflite.file.ports import FloatModel
from nbcompile.exporters.to_tflite.lower.lowering import float_model
from nbcompile.exporters.to_tflite.quantize.masks import with_lifted_masks
from nbcompile.exporters.to_tflite.quantize.ranges import FADED, Ranges, measure_ranges
from tests.exporters.to_tflite.lowered import Net

TOKENS = 9


def causal(lowest: float) -> Tensor:
    return torch.full((TOKENS, TOKENS), lowest).triu(1)


def scores(x: Tensor) -> Tensor:
    return x @ x.mT * 0.3


NETWORKS: dict[str, Callable[..., Tensor]] = {
    "-inf": lambda x: (scores(x) + causal(-torch.inf)).softmax(-1) @ x,
    "-1e9": lambda x: (scores(x) + causal(-1e9)).softmax(-1) @ x,
    "-1e4 along rows": lambda x: (scores(x) + causal(-1e4)).softmax(-2) @ x,
    "where": lambda x: torch.where(causal(1.0) > 0, -torch.inf, scores(x)).softmax(-1) @ x,
    "beside biases": lambda x: (scores(x) - torch.arange(TOKENS) * 0.1 + causal(-3e38)).softmax(-1) @ x,
    "an input": lambda x, hidden: (scores(x) + hidden * -1e9).softmax(-1) @ x,
    "an input, turned": lambda x, hidden: (scores(x) + (hidden.mT * -1e9).reshape(1, 1, -1)).softmax(-1) @ x,
}


@pytest.fixture(scope="module")
def tokens() -> list[tuple[Tensor, Tensor]]:
    """And which of them are hidden."""
    torch.manual_seed(0)
    return [(torch.randn(1, TOKENS, 10), (torch.arange(TOKENS) > 2 + i % 6).float().view(1, 1, -1)) for i in range(24)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_attention_keeps_its_accuracy(name: str, tokens: list[tuple[Tensor, Tensor]]) -> None:
    network = Net(lambda layers, *inputs: NETWORKS[name](*inputs)).eval()
    given = tokens if name.startswith("an input") else [(x,) for x, _ in tokens]
    data = Samples.of(network, given[0], given[8:], given[:8])
    built = build_file(network, given[0], data, Recipe(), micro=True)
    for kernels in ("xnnpack", "reference", "micro"):
        assert data.agreement(built.model, built.content, kernels).sqnr > 25


def lifted(function: Callable[..., object], inputs: list[tuple[Tensor, ...]]) -> tuple[FloatModel, Ranges, Ranges]:
    model = float_model(Net(lambda layers, *inputs: function(*inputs)).eval(), inputs[0])
    before = measure_ranges(model, filed(model, inputs))
    return *with_lifted_masks(model, before), before


def test_a_mask_is_as_low_as_it_takes(tokens: list[tuple[Tensor, Tensor]]) -> None:
    model, after, before = lifted(NETWORKS["-1e9"], [(x,) for x, _ in tokens])
    file = read_file(model.content)
    (add,) = [op for op in file.ops if op.name == "ADD"]
    product, mask = add.inputs
    low, high = after.kept[product]
    assert np.unique(file.tensors[mask].data) == pytest.approx([low - high - FADED, 0])
    assert after == before  # of the sum, what softmax sees was kept anyway


def test_a_mask_that_is_computed_is_clipped(tokens: list[tuple[Tensor, Tensor]]) -> None:
    model, after, before = lifted(NETWORKS["an input"], tokens)
    (add,) = [op for op in read_file(model.content).ops if op.name == "ADD"]
    mask = next(i for i in add.inputs if before.kept[i][0] < -1e8)
    assert -200 < after.kept[mask][0] < -FADED
    model, after, before = lifted(lambda x, m: (scores(x) + (m * 1e9 - 1e9)).softmax(-1), tokens)
    (mask,) = [i for i, (low, high) in before.kept.items() if (low, high) == (-1e9, 0)]
    assert after.kept[mask] == before.kept[mask]  # no kernel could compute it in another scale


def test_what_others_read_keeps_its_numbers(tokens: list[tuple[Tensor, Tensor]]) -> None:
    """A constant gets a copy for the scores; what is computed stays, and the sum as wide as kernels can add it."""

    def both(x: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        mask = hidden * -1e9
        return (scores(x) + causal(-1e9)).softmax(-1), x @ x.mT + causal(-1e9), (scores(x) + mask).softmax(-1), mask

    model, after, before = lifted(both, tokens)
    file = read_file(model.content)
    lowest = sorted(float(t.data.min()) for t in file.tensors if t.data is not None and t.shape[-2:] == (9, 9))
    assert lowest[0] == -1e9
    assert -200 < lowest[-1] < -FADED
    (add,) = [op for op in file.ops if op.name == "ADD" if all(file.tensors[i].data is None for i in op.inputs)]
    (mask,) = [i for i in add.inputs if before.kept[i][0] == -1e9]
    assert after.kept[mask] == before.kept[mask]
    low, high = after.kept[add.outputs[0]]
    assert high - low == pytest.approx(1e9 / 2**18, rel=0.1)
