"""Methods that train a network as a part of wider ones, and beside a booster."""

import copy
import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nbcompile
from nbcompile import PreconditionError, UsageError
from nbcompile.core.example import Origin, TensorSpec, origin_of, remember
from nbcompile.testing import enliven_
from nbcompile.training import TrainConfig, train
from nbcompile.training.batch import Batch
from nbcompile.training.methods.base import Method
from nbcompile.training.methods.divergences import DIVERGENCES
from nbcompile.training.methods.passes import Passes
from nbcompile.training.methods.rocket import Launch
from nbcompile.training.weight_average import Average
from nbcompile.wide.order import most_important_first_
from nbcompile.wide.widths import Widths, giant_in_width, widths_of
from nbcompile.widening import at_width, widen, width_groups

X = torch.randn(6, 1, 7, 5, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


class Block(nn.Module):
    """An inverted residual."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(channels, hidden, 1), nn.BatchNorm2d(hidden)
        self.depth, self.norm2 = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden), nn.BatchNorm2d(hidden)
        self.project, self.norm3 = nn.Conv2d(hidden, channels, 1), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.depth(self.norm1(self.expand(x)).relu())).relu()
        return x + self.norm3(self.project(y))


class Net(nn.Module):
    """A stem, two blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 5, 3)
        self.blocks = nn.Sequential(Block(5, 10), Block(5, 15))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return out


def network() -> nn.Module:
    torch.manual_seed(0)
    model = Net().double()
    enliven_(model, X.double())
    remember(model, Origin((TensorSpec((1, 1, 7, 5), torch.float64),)))
    return model


def method(name: str, **options: Any) -> Method:
    config = TrainConfig(method=name, **{"epochs": 4, "warmup_epochs": 0, **options})
    return config.method_row.start(config, 3)


class Engine:
    """What a method needs of Lightning Fabric, without it."""

    def autocast(self) -> Any:
        return nullcontext()

    def no_backward_sync(self, model: nn.Module, enabled: bool) -> Any:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()


def learnt(one: Method, model: nn.Module, parts: int = 1) -> dict[str, Tensor]:
    """Gradients of a step on a batch, in so many parts."""
    model.train()
    for i, batch in enumerate(Batch(X.double(), Y).parts(parts)):
        passes = Passes(Engine(), model, 1 / parts, last=i == parts - 1)  # type: ignore[arg-type]
        loss, logits = one.learn(passes, batch)
        assert loss.ndim == 0
        assert logits.shape == (len(batch.images), 3)
    one.before_step(model)
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return grads


def started(one: Method, epoch: int = 0) -> tuple[nn.Module, Widths]:
    model = one.advance(one.prepare(network()), epoch)
    assert one.advance(model, epoch) is model
    one.attach(model, epoch)
    widths = widths_of(model)
    assert widths is not None
    return model, widths


def gradients(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    loss().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def entropy(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(X.double()), Y, label_smoothing=0.1)


def test_netaug_adds_the_gradients_of_a_wider_network() -> None:
    one = method("netaug", sort_epochs=0)
    model, widths = started(one)
    found = learnt(one, model)
    own = gradients(model, lambda: entropy(model))
    rng = random.Random("0 0")
    with at_width(model, "random", rng=rng):
        assert any(widths.steps)
        wide = gradients(model, lambda: entropy(model))
    assert found.keys() == own.keys() == wide.keys()
    for name in found:
        torch.testing.assert_close(found[name], own[name] + wide[name])
    assert [one.phase(epoch) for epoch in range(4)] == [*2 * ["train, all widths"], *2 * ["train, inner widths"]]
    one.attach(model, 2)
    rng = random.Random("0 2")
    for _ in range(5):
        with at_width(model, "random-inner", rng=rng):
            grown = [space.inner for space, k in zip(widths.layout.spaces, widths.steps, strict=True) if k]
            assert all(grown)


def test_each_part_of_a_batch_has_a_width_of_its_own() -> None:
    one = method("netaug", sort_epochs=0)
    model, _ = started(one)
    found, rng = learnt(one, model, parts=2), random.Random("0 0")
    expected: dict[str, Tensor] = {}
    for x, y in zip(X.double().chunk(2), Y.chunk(2), strict=True):
        for width in ("own", "random"):
            with at_width(model, width, rng=rng):
                some = gradients(model, lambda x=x, y=y: F.cross_entropy(model(x), y, label_smoothing=0.1) / 2)  # type: ignore[misc]
            expected = {name: expected.get(name, 0.0) + g for name, g in some.items()}
    for name, g in expected.items():
        torch.testing.assert_close(found[name], g)


def test_the_most_important_channels_become_the_networks_own() -> None:
    giant = widen(network(), X.double())
    found = giant_in_width(giant)
    assert found is not None
    torch.manual_seed(1)
    for p in giant.parameters():
        p.data.add_(torch.randn_like(p))
    giant.train()
    for _ in range(3):
        with at_width(giant, "widest"):
            giant(X.double())
    giant.eval()
    with at_width(giant, "widest"):
        before = giant(X.double())
    weights = {n: giant.get_parameter(f"blocks.{n}.project.parametrizations.weight.original") for n in (0, 1)}
    norms = {n: giant.get_submodule(f"blocks.{n}.norm2") for n in (0, 1)}
    whole = {n: norms[n].get_buffer("wide_running_var").clone() for n in (0, 1)}
    assert most_important_first_(*found) > 0
    assert most_important_first_(*found) == 0
    for n, hidden in ((0, 10), (1, 15)):
        ranked = weights[n].abs().sum((0, 2, 3)).argsort(descending=True)[:hidden].sort()[0]
        tiny = nbcompile.fuse(giant)
        kept = tiny.get_parameter(f"blocks.{n}.project.weight")
        (own,) = (o for s, o in found[1].layout.own.items() if s == (f"blocks.{n}.project.weight", 1))
        assert torch.equal(own, ranked)
        crossing = found[1].layout.own[(f"blocks.{n}.project.weight", 0)]  # type: ignore[index]
        assert torch.equal(kept, weights[n][crossing][:, ranked])
        new = ranked >= hidden
        assert new.any(), "nothing was sorted"
        assert torch.equal(tiny.get_buffer(f"blocks.{n}.norm2.running_var")[new], whole[n][ranked][new])
    with at_width(giant, "widest"):
        torch.testing.assert_close(giant(X.double()), before)
    state = giant.state_dict()
    again = widen(network(), X.double()).eval()
    again.load_state_dict(state)
    assert torch.equal(again(X.double()), giant(X.double()))


def test_an_average_has_the_channels_of_the_live_giant() -> None:
    giant = widen(network(), X.double())
    average = Average(giant, 0.5)
    for p in giant.parameters():
        p.data.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    found = giant_in_width(giant)
    assert found is not None
    assert most_important_first_(*found) > 0
    average.update(giant)
    mine = widths_of(average.model)
    assert mine is not None
    assert torch.equal(mine.layout.unit, found[1].layout.unit)
    average.follow(giant)
    average.model.load_state_dict(copy.deepcopy(average.model.state_dict()))


def test_what_is_against_the_networks_gradient_is_taken_from_the_widests() -> None:
    found, by_hand = {}, {}
    for surgery in ("widest", "none"):
        one = method("netdistiller", surgery=surgery, kd_weight=0.0)
        model, _ = started(one)
        torch.manual_seed(3)
        for p in model.parameters():
            p.data.add_(0.5 * torch.randn_like(p))
        found[surgery] = learnt(one, model)
        own = gradients(model, lambda model=model: entropy(model))  # type: ignore[misc]
        with at_width(model, "widest"):
            wide = gradients(model, lambda model=model: entropy(model))  # type: ignore[misc]
        by_hand[surgery] = own, wide
        measured = one.measured()
    own, wide = by_hand["none"]
    for name, g in found["none"].items():
        torch.testing.assert_close(g, own[name] + wide[name])
    dot = sum(float((own[n] * wide[n]).sum()) for n in own)
    assert measured["conflicts"] == float(dot < 0)
    assert -1 <= measured["cosine"] <= 1
    assert (measured["cosine"] < 0) == (dot < 0)
    square = sum(float(g.square().sum()) for g in own.values())
    for name, g in found["widest"].items():
        torch.testing.assert_close(g, own[name] + wide[name] - min(dot, 0.0) / square * own[name])


def test_two_in_conflict() -> None:
    """Gradients that are planted: opposite on what is shared."""
    one = method("netdistiller")
    model, _ = started(one)
    own = gradients(model, lambda: entropy(model))
    for name, p in model.named_parameters():
        p.grad = own[name].clone()
    one._of_widest = {p: -3 * own[n] + (own[n] == 0) for n, p in model.named_parameters()}  # type: ignore[attr-defined]
    one.before_step(model)
    assert one.measured()["conflicts"] == 1.0
    for name, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, own[name] + (own[name] == 0), atol=1e-9, rtol=1e-9)


def test_the_network_learns_what_the_widest_answers() -> None:
    one = method("netdistiller", surgery="none", kd_weight=1.0, divergence="forward", temperature=2.0)
    model, _ = started(one)
    torch.manual_seed(3)
    for p in model.parameters():
        p.data.add_(0.5 * torch.randn_like(p))
    found = learnt(one, model)
    with at_width(model, "widest"):
        wide = gradients(model, lambda: entropy(model))
        target = (model(X.double()) / 2).softmax(1).detach()
    kl = gradients(model, lambda: 4 * F.kl_div((model(X.double()) / 2).log_softmax(1), target, reduction="batchmean"))
    for name, g in found.items():
        torch.testing.assert_close(g, wide[name] + kl[name])


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences(name: str) -> None:
    torch.manual_seed(0)
    scale = 0.3 if name == "adaptive" else 1.0  # there, no ratio is to reach the clip
    logits, teacher = (scale * torch.randn(5, 4, dtype=torch.float64) for _ in range(2))
    logits.requires_grad_()
    teacher.requires_grad_()
    p, q = teacher.detach().softmax(1), logits.softmax(1)
    there, back = (p * (p / q).log()).sum(1), (q * (q / p).log()).sum(1)
    surer = ((-q * q.log()).sum(1) < (-p * p.log()).sum(1)).double()
    left = (q * (q / p - 1) / 2).sum(1)
    expected = {
        "forward": there, "reverse": back, "balanced": ((1 + surer) * there + (2 - surer) * back) / 3,
        "adaptive": torch.maximum(left, there),
    }[name].mean()  # fmt: skip
    found = DIVERGENCES[name](logits, teacher)
    assert found >= 0
    assert DIVERGENCES[name](logits, logits.detach()).abs() < 1e-15
    (mine,) = torch.autograd.grad(found, logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(mine, theirs)
    assert teacher.grad is None


def test_a_ratio_counts_no_more_than_the_clip() -> None:
    logits = torch.tensor([[9.0, -9.0]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(DIVERGENCES["adaptive"](logits, -logits.detach()), logits)
    assert slope.isfinite().all()
    assert float(slope.abs().max()) < 5


def test_a_booster_shares_the_first_layers_and_gives_hints() -> None:
    one = method("rocket", where=["blocks.1.project"], ratio=2, hint_weight=0.5)
    launch = one.prepare(network())
    assert isinstance(launch, Launch)
    tiny, booster = launch.network, launch.booster
    assert booster.get_parameter("stem.weight") is tiny.get_parameter("stem.weight")
    assert booster.get_parameter("blocks.1.expand.weight") is tiny.get_parameter("blocks.1.expand.weight")
    assert booster.get_parameter("head.weight") is not tiny.get_parameter("head.weight")
    assert booster.get_parameter("blocks.0.norm1.weight") is not tiny.get_parameter("blocks.0.norm1.weight")
    found = learnt(one, launch)
    launch.train()
    logits, above = launch(X.double())
    hint = 0.5 * (logits - above.detach()).square().sum(1).mean()
    ce = [F.cross_entropy(x, Y, label_smoothing=0.1) for x in (logits, above)]
    launch.zero_grad()
    (hint + ce[0] + ce[1]).backward()
    for name, p in launch.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(found[name], p.grad)
    launch.zero_grad()
    F.cross_entropy(launch(X.double())[1], Y, label_smoothing=0.1).backward()
    torch.testing.assert_close(found["booster.head.weight"], booster.get_parameter("head.weight").grad)
    launch.eval()
    assert torch.equal(launch(X.double()), tiny(X.double()))
    assert one.kept(launch) is tiny
    assert one.fused(launch) is None


def test_what_rocket_and_widths_refuse() -> None:
    with pytest.raises(UsageError, match=r"^method 'rocket' makes the giant itself: give the network, not a giant$"):
        method("rocket").prepare(widen(network(), X.double()))
    with pytest.raises(
        UsageError,
        match=r"^rocket: the booster shares no layer with the network, for 'stem', the first, is expanded: expand",
    ):
        method("rocket", where=["stem"], ratio=2).prepare(network())
    with pytest.raises(UsageError, match=r"^1 must be among factors"):
        TrainConfig(method="netaug", factors=(2, 3))
    with pytest.raises(UsageError, match=r"^inner must be numbers from 1 to 64, not 1, 0.5$"):
        TrainConfig(method="netdistiller", inner=(1, 0.5))
    with pytest.raises(UsageError, match=r"^collapse goes with one width alone, not with method 'netbooster\+netaug'$"):
        TrainConfig(method="netbooster+netaug", collapse=True)


def test_what_a_step_costs() -> None:
    example = torch.zeros(1, 1, 7, 5, dtype=torch.float64)
    plain = nbcompile.cost(network(), example).macs
    one = method("netdistiller")
    model, _ = started(one)
    with at_width(model, "widest"):
        widest = nbcompile.cost(model, example).macs
    assert one.macs(model, example) == (plain, widest)
    one = method("netaug")
    model, _ = started(one)
    own, larger = one.macs(model, example)
    assert own == plain < larger < widest


@pytest.mark.slow
def test_a_giant_in_width_that_is_given(tmp_path: Path) -> None:
    torch.manual_seed(0)
    giant = widen(nbcompile.zoo.dscnn(), torch.zeros(1, 1, 8, 8), factors=(1, 2), inner=(1, 3))
    options: dict[str, Any] = {"epochs": 1, "train_images": 64, "batch_size": 32, "accelerator": "cpu"}
    with pytest.raises(
        UsageError, match=r"^method 'vanilla' does not train giants in width, as this network is: choose ne"
    ):
        train(giant, TrainConfig(method="vanilla", **options), tmp_path / "trained.pt")
    with pytest.raises(PreconditionError, match=r"^expand: InvertedResidualNet is a giant in width: expand"):
        train(giant, TrainConfig(method="netbooster+netaug", **options), tmp_path / "other.pt")
    with pytest.raises(PreconditionError, match=r"^new_head: InvertedResidualNet is a giant in width: fuse it, give"):
        train(giant, TrainConfig(new_head=True, **options), tmp_path / "other.pt")
    result = train(giant, TrainConfig(**options), tmp_path / "trained.pt")
    assert (result.method, result.fused_accuracy) == ("netaug", result.accuracy)
    read = nbcompile.load(tmp_path / "trained.pt")
    assert width_groups(read) == width_groups(giant)
    origin = origin_of(read)
    assert origin is not None
    assert origin.preprocessing
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(nbcompile.fuse(read)(x), nbcompile.fuse(result.model)(x))
