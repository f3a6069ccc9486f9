from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from nbcompile.core.errors import ExportError
from nbcompile.core.memory.lifetimes import Lifetimes
from nbcompile.core.numerics import relative_error
from nbcompile.deploy.deploy_form import deploy
from nbcompile.deploy.fit_memory import Split, fit
from nbcompile.passes.even_padding import EvenPadding
from nbcompile.testing import enliven_
from nbcompile.zoo import mobilenetv2_35, mobilenetv2_tiny


def graph_of(model: nn.Module, x: Tensor) -> fx.GraphModule:
    graph = deploy(enliven_(model, x), (x,))
    assert isinstance(graph, fx.GraphModule)
    EvenPadding((x,))(graph)
    return graph


@pytest.fixture(scope="module")
def tiny() -> tuple[fx.GraphModule, tuple[Tensor]]:
    x = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    return graph_of(mobilenetv2_tiny().double(), x), (x,)


def modelled(graph: fx.GraphModule, inputs: tuple[Tensor]) -> int:
    return Lifetimes(graph, inputs).arena


def test_the_networks_of_the_paper_fit_as_was_measured() -> None:
    """MobileNetV2-0.35 at 144 px; TFLite Micro's own planner gives the same bytes for the int8 files (slow test)."""
    x = torch.randn(1, 3, 144, 144)
    graph = graph_of(mobilenetv2_35(), x)
    assert fit(graph, (x,), 311_040).chosen.parts == {}
    for budget, arena, parts in ((311_039, 196_992, 2), (192 * 1024, 171_072, 4)):
        found = fit(graph, (x,), budget)
        assert (found.plain.arena, found.chosen.arena) == (311_040, arena)
        assert list(found.chosen.parts.values()) == [parts]


def test_fits_in_as_few_parts_as_will_do(tiny: tuple[fx.GraphModule, tuple[Tensor]]) -> None:
    graph, inputs = tiny
    plain = modelled(graph, inputs)
    found = [fit(graph, inputs, budget) for budget in (plain, plain - 1, plain * 3 // 4)]
    assert [f.chosen.arena <= budget for f, budget in zip(found, (plain, plain - 1, plain * 3 // 4), strict=True)]
    assert found[0].chosen == found[0].plain == Split({}, plain, None, 0)
    moved = [f.chosen.moved for f in found]
    assert moved == sorted(moved)
    assert moved[1] > 0
    for one in found:
        assert modelled(one.gm, inputs) == one.chosen.arena
        assert relative_error(one.gm(*inputs), graph(*inputs)) <= 1e-12
        assert len({str(trial.parts) for trial in one.trials}) == len(one.trials)
    assert not [name for name, _ in graph.named_modules() if "part" in name]  # it was left as it was


def test_the_cost_is_what_is_read_again_and_copied() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8, stride=2, padding=1), nn.Conv2d(8, 2, 1))
    x = torch.randn(2, 3, 9, 9)
    found = fit(graph_of(model, x), (x,), 690)
    assert (found.chosen.parts, found.chosen.moved) == ({"0": 4}, 3 * 3 * 81 + 2 * 8 * 25)


def measure(extra: int, inputs: tuple[Tensor], asked: list[int]) -> Callable[[fx.GraphModule], int]:
    """What an interpreter keeps for itself comes on top of the values."""

    def arena(gm: fx.GraphModule) -> int:
        asked.append(modelled(gm, inputs))
        return asked[-1] + extra

    return arena


def test_what_is_measured_has_the_last_word(tiny: tuple[fx.GraphModule, tuple[Tensor]]) -> None:
    graph, inputs = tiny
    plain, asked = modelled(graph, inputs), list[int]()
    budget = plain + 10
    found = fit(graph, inputs, budget, measure(100, inputs, asked))
    assert found.plain.measured == plain + 100
    assert found.chosen.measured is not None
    assert found.chosen.measured <= budget
    assert found.chosen.parts
    assert max(asked) <= budget  # what the model says does not fit is not measured


def test_parts_that_are_not_needed_are_undone() -> None:
    """Two pairs are as tall, so both are split; one alone would do, as is measured."""
    pair = [nn.Conv2d(4, 32, 1), nn.Conv2d(32, 32, 3, 2, 1, groups=32), nn.Conv2d(32, 4, 1)]
    again = [nn.Conv2d(4, 32, 1), nn.Conv2d(32, 32, 3, 2, 1, groups=32), nn.Conv2d(32, 4, 1)]
    x = torch.randn(1, 4, 8, 8)
    graph = graph_of(nn.Sequential(*pair, nn.Upsample(scale_factor=2), *again), x)
    budget = modelled(graph, (x,))

    def arena(gm: fx.GraphModule) -> int:
        return budget if any(name == "0.part0" for name, _ in gm.named_modules()) else budget + 1

    found = fit(graph, (x,), budget, arena)
    assert [dict(trial.parts) for trial in found.trials] == [{}, {"0": 2, "4": 2}, {"4": 2}, {"0": 2}]
    assert found.chosen.parts == {"0": 2}


@pytest.mark.slow
def test_a_budget_that_cannot_be_met(tiny: tuple[fx.GraphModule, tuple[Tensor]]) -> None:
    graph, inputs = tiny
    with pytest.raises(ExportError) as caught:
        fit(graph, inputs, 5_000)
    message = str(caught.value)
    assert message.startswith("the network does not fit 5,000 bytes: the best that was reached is ")
    assert "At its peak it holds '" in message
    assert message.endswith("give it smaller inputs or these layers fewer channels, or allow more memory")
    asked = list[int]()
    with pytest.raises(
        ExportError, match=r"bytes.* \([\d,]+ for activations; the rest is the interpreter's, and less with 32"
    ):
        fit(graph, inputs, 5_000, measure(100, inputs, asked))
    assert len(asked) == 1  # the best


def test_nothing_to_split() -> None:
    x = torch.randn(1, 3, 8, 8)
    with pytest.raises(
        ExportError, match=r"reached is 384 bytes with no layer in parts\. At its peak it holds 'input' \("
    ):
        fit(graph_of(nn.Sequential(nn.Conv2d(3, 3, 1)), x), (x,), 383)


@pytest.mark.slow
def test_tflite_micro_says_the_same_and_outputs_stay_within_one_lsb() -> None:
    from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
    from nbcompile.exporters.to_tflite.lower.lowering import float_model
    from nbcompile.exporters.to_tflite.quantize.quantize import quantize
    from nbcompile.exporters.to_tflite.run.arena import measure_arena
    from nbcompile.exporters.to_tflite.run.interpreters import run_file

    x = torch.randn(10, 3, 144, 144)
    model = mobilenetv2_35()
    with torch.no_grad():
        model.train()(x)
    graph = deploy(model.eval(), (x[:1],))
    assert isinstance(graph, fx.GraphModule)
    files: list[bytes] = []
    for budget in (1 << 20, 311_040, 311_039, 192 * 1024):
        if files:
            EvenPadding((x[:1],))(graph)
        fitted = float_model(fit(graph, (x[:1],), budget).gm, (x[:1],))
        samples = [(fitted.inputs[0].to_file(image[None]),) for image in x]
        files.append(quantize(fitted, samples))
    assert [measure_arena(file).head for file in files] == [504_624, 311_040, 196_992, 171_072]
    assert [sum(op.name == "PAD" for op in read_file(file).ops) for file in files] == [4, 0, 0, 0]
    for kernels in ("reference", "micro"):
        plain, *others = ([y for (y,) in run_file(file, samples, kernels=kernels, raw=True)] for file in files)
        for other in others:
            assert max(np.abs(a.astype(int) - b).max() for a, b in zip(plain, other, strict=True)) <= 1
