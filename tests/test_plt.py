"""The schedule: exactly 1 at the end, saved with the giant, and never restarted by accident."""

import copy
import io
import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nbcompile
from nbcompile import PLT, zoo
from nbcompile.core.blocks import sites
from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.plt import block_ramps, linear_costs

Build = Callable[[], nn.Module]


def giant(where: str = "all") -> nn.Module:
    return nbcompile.expand(zoo.dscnn(), torch.randn(1, 1, 8, 8), where=where)


@pytest.fixture(scope="module")
def fresh() -> Build:
    """A new giant for every call, at the price of a copy."""
    torch.manual_seed(0)
    prototype = giant()
    return lambda: copy.deepcopy(prototype)


def slopes(model: nn.Module) -> set[float]:
    return {float(block.slope) for block in sites(model).values()}


def stepped(plt: PLT, times: int) -> PLT:
    for _ in range(times):
        plt.step()
    return plt


def test_ends_at_exactly_1_for_every_length() -> None:
    model = nbcompile.expand(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()), torch.randn(1, 1, 2, 2), where=["0"])
    for steps in (*range(1, 51), 97, 997, 7919):
        fresh = copy.deepcopy(model)
        plt, seen = PLT(fresh, steps), [0.0]
        for _ in range(steps):
            assert not plt.done
            plt.step()
            seen.append(plt.slope)
        assert plt.done
        assert (plt.slope, slopes(fresh)) == (1.0, {1.0})
        assert seen == sorted(set(seen))
        assert max(abs(s - i / steps) for i, s in enumerate(seen)) < 1e-12


def test_is_raised_uniformly_in_every_block(fresh: Build) -> None:
    model = fresh()
    assert len(sites(model)) > 1
    plt = PLT(model, steps=4)
    assert slopes(model) == {0.0}
    for wanted in (0.25, 0.5, 0.75, 1.0, 1.0, 1.0):
        plt.step()
        assert slopes(model) == {wanted}


def test_start_comes_before_the_ramp(fresh: Build) -> None:
    model = fresh()
    plt, seen = PLT(model, steps=2, start=3), []
    for _ in range(6):
        plt.step()
        seen.append(plt.slope)
    assert seen == [0, 0, 0, 0.5, 1, 1]
    assert slopes(model) == {1.0}


def test_also_is_set_and_not_averaged(fresh: Build) -> None:
    model, average, other = fresh(), fresh(), fresh()
    plt = PLT(model, steps=4, also=[average, other])
    for _ in range(4):
        plt.step()
        for block in sites(average).values():
            block.slope.mul_(0.9)  # what an average of slopes does
    plt.step()
    assert slopes(model) == slopes(average) == slopes(other) == {1.0}


def test_a_wrapped_giant_is_seen_through(fresh: Build) -> None:
    model = torch.optim.swa_utils.AveragedModel(nn.DataParallel(fresh()))
    assert stepped(PLT(model, steps=2), 2).done
    assert slopes(model) == {1.0}


def test_slopes_are_buffers_that_no_gradient_reaches(fresh: Build) -> None:
    model = fresh()
    keys = [key for key in model.state_dict() if key.endswith((".slope", ".ramp"))]
    assert len(keys) == 2 * len(sites(model))
    assert not any(key.endswith((".slope", ".ramp")) for key, _ in model.named_parameters())


def test_state_dict_round_trip(fresh: Build) -> None:
    plt = stepped(PLT(fresh(), steps=10, start=2), 5)
    assert plt.state_dict() == {"step": 5, "start": 2, "steps": 10}
    model = fresh()
    again = PLT(model, steps=1)
    again.load_state_dict(plt.state_dict())
    assert (again.slope, again.steps, again.start) == (plt.slope, 10, 2)
    assert slopes(model) == {float(torch.tensor(0.3))}
    assert stepped(again, 7).done


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("model_first", [True, False])
def test_restored_with_the_giant_mid_ramp(fresh: Build, with_state: bool, model_first: bool) -> None:
    """Weights loaded before PLT is made, or after; with PLT's own state, or without."""
    model = fresh()
    plt = stepped(PLT(model, steps=10, start=2), 5)
    saved = through_a_file({"model": model.state_dict(), "plt": plt.state_dict()})
    resumed = fresh()
    if model_first:
        resumed.load_state_dict(saved["model"])
    again = PLT(resumed, steps=10, start=2)
    if not model_first:
        resumed.load_state_dict(saved["model"])
    if with_state:
        again.load_state_dict(saved["plt"])
    assert again.slope == plt.slope == 0.3
    assert again.state_dict() == plt.state_dict()
    for _ in range(8):
        plt.step()
        again.step()
        assert slopes(resumed) == slopes(model) == {float(torch.tensor(again.slope))}
    assert again.done


@pytest.mark.parametrize("model_first", [True, False])
def test_restored_before_the_ramp_has_started(fresh: Build, model_first: bool) -> None:
    """The slope is still 0 there, but the steps before the ramp count."""
    model = fresh()
    plt = stepped(PLT(model, steps=4, start=6), 5)
    resumed = fresh()
    again = None if model_first else PLT(resumed, steps=4, start=6)
    resumed.load_state_dict(model.state_dict())
    again = again or PLT(resumed, steps=4, start=6)
    assert again.state_dict() == plt.state_dict()


def test_loading_sets_the_copies_too(fresh: Build) -> None:
    model, resumed, average = fresh(), fresh(), fresh()
    stepped(PLT(model, steps=10), 4)
    plt = PLT(resumed, steps=10, also=[average])
    resumed.load_state_dict(model.state_dict())
    plt.step()
    assert slopes(resumed) == slopes(average) == {0.5}


def test_another_ramp_is_refused(fresh: Build) -> None:
    model = fresh()
    stepped(PLT(model, steps=10, start=2), 7)
    message = (
        r"PLT: the giant stands at slope 0\.5 of a ramp with start=2 and steps=10, not start=0 and steps=20: "
        "give PLT the same numbers"
    )
    with pytest.raises(UsageError, match=message):
        PLT(model, steps=20)
    other = fresh()
    plt = PLT(other, steps=20)
    other.load_state_dict(model.state_dict())
    with pytest.raises(UsageError, match=message):
        plt.step()


def test_another_ramp_is_taken_while_the_giant_is_at_0(fresh: Build) -> None:
    model = fresh()
    stepped(PLT(model, steps=10, start=5), 3)
    plt = PLT(model, steps=2)
    assert plt.state_dict() == {"step": 0, "start": 0, "steps": 2}
    assert stepped(plt, 2).done


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": -3}, "steps=-3"),
        ({"steps": 2.5}, r"steps=2\.5"),
        ({"steps": True}, "steps=True"),
        ({"steps": "10"}, "steps='10'"),
        ({"steps": 1, "start": -1}, "start=-1"),
        ({"steps": 1, "start": 0.5}, r"start=0\.5"),
    ],
)
def test_wrong_numbers(fresh: Build, numbers: dict[str, Any], said: str) -> None:
    least = 0 if "start" in numbers else 1
    with pytest.raises(UsageError, match=f"PLT: {said} must be a whole number of optimiser steps, at least {least}"):
        PLT(fresh(), **numbers)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({}, r"PLT\.load_state_dict: needs step, start and steps, found \[\]"),
        ({"step": 1, "start": 0}, r"PLT\.load_state_dict: needs step, start and steps, found \['start', 'step'\]"),
        ({"step": 1, "start": 0, "steps": 0.5}, r"steps=0\.5 must be a whole number of optimiser steps, at least 1"),
        ({"step": 1, "start": 0, "steps": 0}, "PLT: load_state_dict: steps=0 must be a whole number .* at least 1"),
        ({"step": 1, "start": -1, "steps": 4}, "PLT: load_state_dict: start=-1 must be a whole number .* at least 0"),
        ({"step": -1, "start": 0, "steps": 4}, "PLT: load_state_dict: step=-1 must be a whole number .* at least 0"),
        ({"step": True, "start": 0, "steps": 4}, "step=True must be a whole number"),
    ],
)
def test_a_wrong_state(fresh: Build, state: dict[str, Any], said: str) -> None:
    plt = stepped(PLT(fresh(), steps=4), 1)
    with pytest.raises(UsageError, match=said):
        plt.load_state_dict(state)
    assert plt.slope == 0.25
    assert plt.state_dict() == {"step": 1, "start": 0, "steps": 4}


def test_a_network_without_blocks(fresh: Build) -> None:
    with pytest.raises(PreconditionError, match="PLT: InvertedResidualNet has no expansion blocks; expand it first"):
        PLT(zoo.dscnn(), steps=1)
    with pytest.raises(PreconditionError, match="PLT: Linear has no expansion blocks; expand it first"):
        PLT(fresh(), steps=1, also=[nn.Linear(1, 1)])


def table(model: nn.Module) -> list[float]:
    return [float(block.slope) for block in sites(model).values()]


def test_one_after_the_other_each_in_its_own_share(fresh: Build) -> None:
    model = fresh()
    names = list(sites(model))
    backwards = names[::-1]
    steps = 3 * len(names) + 1  # shares of unlike length
    plt, seen = PLT(model, steps=steps, start=2, order=backwards), []
    for _ in range(2 + steps):
        assert not plt.done
        plt.step()
        seen.append(table(model)[::-1])
        assert plt.slope == pytest.approx(sum(table(model)) / len(names), abs=1e-6)
    assert (plt.slope, slopes(model)) == (1.0, {1.0})
    assert seen[:2] == [[0.0] * len(names)] * 2
    for now, then in itertools.pairwise(seen[1:]):
        assert all(a <= b for a, b in zip(now, then, strict=True))
        assert sum(a != b for a, b in zip(now, then, strict=True)) == 1, "one block at a time"
        assert then == sorted(then, reverse=True), "the first is the furthest"


def test_shares_by_hand() -> None:
    names = ["a", "b", "c"]
    assert block_ramps(names, 7, 5, "together") == [(5, 7)] * 3
    assert block_ramps(names, 7, 5, "from-input") == [(5, 2), (7, 2), (9, 3)]
    assert block_ramps(names, 7, 5, ["c", "a", "b"]) == [(7, 2), (9, 3), (5, 2)]
    assert block_ramps(names, 2, 0, "from-input") == [(0, 1), (0, 1), (1, 1)]
    for steps in range(1, 20):
        assert max(start + length for start, length in block_ramps(names, steps, 4, "from-input")) == 4 + steps


def test_an_order_survives_with_the_giant_or_with_the_state(fresh: Build) -> None:
    model = fresh()
    order = sorted(sites(model), key=lambda name: name[::-1])
    plt = stepped(PLT(model, steps=11, start=1, order=order), 7)
    saved = through_a_file({"model": model.state_dict(), "plt": plt.state_dict()})
    resumed = fresh()
    resumed.load_state_dict(saved["model"])
    again = PLT(resumed, steps=11, start=1, order=order)
    other, average = fresh(), fresh()
    third = PLT(other, steps=1, also=[average])
    third.load_state_dict(saved["plt"])
    for _ in range(6):
        assert table(model) == table(resumed) == table(other) == table(average)
        assert plt.slope == again.slope == third.slope
        for one in (plt, again, third):
            one.step()
    assert plt.done
    assert again.done
    assert third.done


def test_another_order_is_refused_in_the_middle(fresh: Build) -> None:
    model = fresh()
    stepped(PLT(model, steps=10, order="from-input"), 4)
    with pytest.raises(
        UsageError, match=r"a ramp with start=\d and steps=\d in another order, not start=0 and steps=10"
    ):
        PLT(model, steps=10)
    fused = stepped(PLT(model, steps=10, order="from-input"), 6)
    assert fused.done


@pytest.mark.parametrize("order", ["sideways", "", ["a"], []])
def test_a_wrong_order(fresh: Build, order: Any) -> None:
    said = re.escape(f"PLT: order={order!r} must be together, from-input or a list of all of features.")
    with pytest.raises(UsageError, match=said):
        PLT(fresh(), steps=3, order=order)


def test_what_a_linear_block_costs() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(6, 3, 7, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
        nn.ReLU(), nn.Flatten(), nn.LazyLinear(4),
    ).double()  # fmt: skip
    network(x)
    model = nbcompile.expand(network, x, where=["0", "4"], ratio=2).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]

    def loss(giant: nn.Module) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(giant(x), y))

    def at(linear: str | None) -> float:
        """By hand: dropout off, statistics of the batch."""
        copied = copy.deepcopy(model).eval()
        for name, module in copied.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
            if name == linear:
                module.slope.fill_(1.0)
        return loss(copied)

    costs = linear_costs(model, loss)
    assert list(costs) == ["0", "4"]
    for name, cost in costs.items():
        assert cost == pytest.approx(at(name) - at(None), abs=1e-12)
        assert cost != 0
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    order = sorted(costs, key=costs.__getitem__)

    def fails(giant: nn.Module) -> float:
        raise KeyError

    with pytest.raises(KeyError):
        linear_costs(model, fails)
    assert [module.training for module in model.modules()] == modes
    stepped(PLT(model, steps=4, order=order), 3)
    with pytest.raises(UsageError, match="linear_costs: the giant stands at slope 1: ask before its slopes rise"):
        linear_costs(model, loss)
    with pytest.raises(PreconditionError, match="PLT: Linear has no expansion blocks; expand it first"):
        linear_costs(nn.Linear(1, 1), loss)


def test_slopes_of_their_own_end_exact() -> None:
    torch.manual_seed(0)
    model = giant().eval()
    x: Tensor = torch.randn(3, 1, 8, 8)
    stepped(PLT(model, steps=5, order="from-input"), 5)
    assert nbcompile.verify(model, nbcompile.fuse(model)).passed
    torch.testing.assert_close(nbcompile.fuse(model)(x), model(x), rtol=1e-4, atol=1e-5)
