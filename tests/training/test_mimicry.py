"""Mimicry of a giant on images without labels, against gradients made by hand in float64."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nbcompile
from nbcompile import UsageError
from nbcompile.core.blocks import sites
from nbcompile.core.copies import copied
from nbcompile.core.example import Origin, TensorSpec, remember
from nbcompile.training import TrainConfig, train
from nbcompile.training.batch import Batch
from nbcompile.training.compute import training_cost
from nbcompile.training.methods.adversary import Adversary, reversed_gradient, risen
from nbcompile.training.methods.features import Feature
from nbcompile.training.methods.mimicry import Mimic
from nbcompile.training.methods.passes import Passes
from tests.training.test_width_methods import Engine

GENERATOR = torch.Generator().manual_seed(0)
X, U = (torch.randn(n, 1, 7, 5, generator=GENERATOR, dtype=torch.float64) for n in (4, 8))
Y = torch.tensor([0, 1, 2, 0])
OPTIONS: dict[str, Any] = {
    "method": "mimic", "teacher": "giant.pt", "unlabeled": "imagefolder:more", "epochs": 4, "batch_size": 4,
    "unlabeled_batch": 8, "warmup_epochs": 0, "temperature": 4.0, "label_smoothing": 0.1,
}  # fmt: skip
STEPS = 5


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, (5, 3)), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    remember(model, Origin((TensorSpec((1, 1, 7, 5)),)))
    return model


def started(epoch: int = 2, **options: Any) -> tuple[Mimic, nn.Module]:
    """At the start of ``epoch``, in float64."""
    teacher = network(1).double().eval().requires_grad_(False)
    config = TrainConfig(**OPTIONS | options)
    one = config.method_row.start(config, STEPS, teacher)
    assert isinstance(one, Mimic)
    model = one.advance(one.prepare(network()), 0)
    one.attach(model, epoch)
    return one, model.double()


def learnt(one: Mimic, model: nn.Module, parts: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of a step on a batch, in so many parts."""
    model.train()
    losses = []
    for i, batch in enumerate(Batch(X, Y, {"unlabeled": U}).parts(parts)):
        passes = Passes(Engine(), model, 1 / parts, last=i == parts - 1)  # type: ignore[arg-type]
        loss, logits = one.learn(passes, batch)
        assert logits.shape == (len(batch.images), 3)
        losses.append(loss)
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return torch.stack(losses).sum(), grads


def by_hand(one: Mimic, net: nn.Module, discriminator: nn.Module | None, images: list[Tensor], weight: float) -> Any:
    """What the labels and the giant ask for, and what the discriminator does, of separate passes of ``images``.

    Returns:
        Two losses, and their gradients by parameter.
    """
    bottom, top = net[:3], net[3:]  # type: ignore[index]
    maps = [bottom(x) for x in images]
    logits = torch.cat([top(x) for x in maps])
    maps, x = torch.cat(maps), torch.cat(images)
    assert one.teacher is not None
    p = (one.teacher(x) / 4).softmax(1)
    kl = 16 * (p * (p.log() - (logits / 4).log_softmax(1))).sum(1).mean()
    targets = 0.9 * torch.eye(3, dtype=torch.float64)[Y] + 0.1 / 3
    task = -(targets * logits[:4].log_softmax(1)).sum(1).mean() + weight * kl
    told = 0 * maps.sum()
    if discriminator is not None:
        first, second = discriminator[0], discriminator[2]  # type: ignore[index]
        hidden = torch.einsum("nchw,oc->nohw", maps, first.weight[:, :, 0, 0]) + first.bias[:, None, None]
        z = torch.einsum("nchw,c->nhw", hidden.clamp_min(0), second.weight[0, :, 0, 0]) + second.bias
        told = -0.5 * (z[:4].sigmoid().log().mean() + (1 - z[4:].sigmoid()).log().mean())
    found = []
    for loss in (task, told):
        parameters = [*net.parameters(), *(discriminator.parameters() if discriminator is not None else ())]
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        found.append({q: g for q, g in zip(parameters, grads, strict=True) if g is not None})
    return (float(task.detach()), float(told.detach())), found


@pytest.mark.parametrize("how", ["together", "apart"])
def test_the_adversarial_gradient_is_turned_for_the_network_alone(how: str) -> None:
    one, model = started(unlabeled_pass=how, adversarial=0.3, mimic_weight=0.7, feature="2")
    assert isinstance(model, Adversary)
    assert (model.feature.name, model.feature.shape) == ("2", (1, 6, 5, 3))
    images = [torch.cat([X, U])] if how == "together" else [X, U]
    losses, (task, told) = by_hand(one, model.network.train(), model.discriminator, images, 0.7)
    loss, found = learnt(one, model)
    strength = 0.3 * (2 / (1 + math.exp(-5)) - 1)  # half of the run is done
    assert float(loss) == pytest.approx(sum(losses), rel=1e-6)  # divergences are computed in float32
    for name, p in model.named_parameters():
        if name.startswith("discriminator"):
            expected = told[p]
            assert p not in task
        else:
            expected = task[p] - strength * told.get(p, 0.0)
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6, msg=name)
    first = told[model.network[0].weight]  # type: ignore[index]
    assert first.norm() > 1e-3, "the adversary asks for nothing"
    assert all(p not in told for p in model.network[3:].parameters()), "logits are aligned"  # type: ignore[index]


def test_a_feature_that_is_written_into_is_seen_as_it_was() -> None:
    _, model = started(adversarial=0.3, feature="1")  # what comes behind works in place
    assert isinstance(model, Adversary)
    _, told = model.train()(X)
    conv, norm = model.network[0], model.network[1]  # type: ignore[index]
    assert torch.equal(told, model.discriminator(norm(conv(X))))
    model.eval()
    assert torch.equal(model(X), model.network(X))


@pytest.mark.parametrize("given", [True, False])
def test_copies_look_at_themselves_and_what_is_kept_at_nothing(given: bool) -> None:
    adversary = Adversary(network(), Feature("map", "2" if given else "3", given, (1, 6, 5, 3))).double()
    other = copied(adversary)
    assert isinstance(other, Adversary)
    with torch.no_grad():
        other.network[0].weight.mul_(2)  # type: ignore[index]
    for one in (other, adversary):
        _, told = one.train()(X)
        assert torch.equal(told, one.discriminator(one.network[:3](X)))  # type: ignore[index]
    bare = other.bare()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in bare.modules())
    assert bare.state_dict().keys() == network().state_dict().keys()
    assert other.train()(X)[1].shape == (4, 1, 5, 3)


def test_the_turn_is_exact() -> None:
    x = torch.randn(3, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor(0.25, dtype=torch.float64)
    y = reversed_gradient(x, weight)
    assert torch.equal(y, x)
    (y.square() * 3).sum().backward()
    assert torch.equal(x.grad, -0.25 * 6 * x)  # type: ignore[arg-type]
    assert [risen(0), risen(1)] == pytest.approx([0, 1], abs=1e-4)
    assert risen(0.25) == pytest.approx(math.tanh(1.25))


@pytest.mark.parametrize("how", ["together", "apart"])
def test_mimicry_alone(how: str) -> None:
    one, model = started(unlabeled_pass=how, mimic_weight=0.5)
    images = [torch.cat([X, U])] if how == "together" else [X, U]
    losses, (task, _) = by_hand(one, model.train(), None, images, 0.5)
    loss, found = learnt(one, model)
    assert float(loss) == pytest.approx(losses[0], rel=1e-6)
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], task[p], rtol=1e-5, atol=1e-6, msg=name)


def test_parts_of_a_batch_take_their_share_of_both_sets() -> None:
    sums: dict[str, Tensor] = {}
    one, model = started(adversarial=0.3)
    for norm in (model.network[1], model.network[4]):  # type: ignore[attr-defined,index]
        norm.forward = lambda x: x  # it would see another batch
    loss, found = learnt(one, model, parts=2)
    model.zero_grad(set_to_none=True)
    whole, sums = learnt(one, model)
    torch.testing.assert_close(loss, whole)
    assert found.keys() == sums.keys()
    for name, g in sums.items():
        torch.testing.assert_close(found[name], g, msg=name)


def test_statistics_are_those_of_the_labelled_set_where_the_other_passes_apart() -> None:
    found = {}
    for how in ("together", "apart"):
        one, model = started(unlabeled_pass=how)
        learnt(one, model)
        found[how] = model[1].running_mean.clone()  # type: ignore[index]
    model = network().double().train()
    model(X)
    torch.testing.assert_close(found["apart"], model[1].running_mean)
    model = network().double().train()
    model(torch.cat([X, U]))
    torch.testing.assert_close(found["together"], model[1].running_mean)
    assert not torch.allclose(found["apart"], found["together"])


def test_the_weight_rises_over_the_run_and_starts_where_an_epoch_does() -> None:
    one, model = started(epoch=0, adversarial=0.4, feature="2")
    assert isinstance(model, Adversary)
    weights = [float(model.weight)]
    for _ in range(4 * STEPS):
        one.after_step()
        weights.append(float(model.weight))
    assert weights == pytest.approx([0.4 * risen(i / (4 * STEPS)) for i in range(4 * STEPS + 1)])
    one.attach(model, 3)
    assert float(model.weight) == pytest.approx(0.4 * risen(3 / 4))
    assert one.phase(3) == "train, aligned at 2"
    assert one.measured() == {}


def test_what_the_discriminator_tells_is_measured() -> None:
    one, model = started(adversarial=0.4)
    assert isinstance(model, Adversary)
    with torch.no_grad():
        model.discriminator[2].weight.zero_()
        model.discriminator[2].bias.fill_(-1)  # everything is of the unlabelled set
    learnt(one, model)
    assert one.measured() == {"told_apart": 0.5}


class Seen(nn.Module):
    """A giant that keeps in which mode it answers, and what of it would change."""

    said: list[tuple[bool, bool]] = []  # noqa: RUF012
    copies: list[nn.Module] = []  # noqa: RUF012

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        self.said.append((self.training or any(m.training for m in self.inner.modules()), torch.is_grad_enabled()))
        self.copies.append(self)
        out: Tensor = self.inner(x)
        return out


RUN: dict[str, Any] = {
    "method": "mimic", "teacher": "giant", "unlabeled": "digits", "epochs": 2, "batch_size": 256, "train_images": 512,
    "warmup_epochs": 0, "accelerator": "cpu",
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"adversarial": 0.1, "unlabeled_batch": 128, "ema": 0.9}])
def test_a_run_leaves_the_giant_and_the_form_of_the_network_alone(
    net_for: Callable[[], nn.Module], tmp_path: Path, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    giant, model = Seen(net_for()), net_for()
    Seen.said.clear()
    Seen.copies.clear()
    before = {name: value.clone() for name, value in giant.state_dict().items()}
    result = train(model, TrainConfig(**RUN | options), tmp_path / "t.pt", teacher=giant)
    assert Seen.said[0] == (True, False), "check_fits asks first"
    assert set(Seen.said[1:]) == {(False, False)}
    assert len(Seen.said) > 4
    frozen = Seen.copies[-1]
    assert frozen is not giant
    assert not any(p.requires_grad for p in frozen.parameters())
    for state in (frozen.state_dict(), giant.state_dict()):
        assert all(torch.equal(state[name], value) for name, value in before.items())
    trained = nbcompile.load(tmp_path / "t.pt")
    shapes = {name: x.shape for name, x in model.state_dict().items()}
    for found in (result.model, trained):
        assert {name: x.shape for name, x in found.state_dict().items()} == shapes
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in found.modules())
    assert type(result.model) is type(model)
    net_for().load_state_dict(trained.state_dict())
    measured = [epoch.measured.get("told_apart") for epoch in result.history]
    assert [x is not None for x in measured] == [bool(options)] * 2
    checkpoint = torch.load(result.run_dir / "last.ckpt", weights_only=True)
    assert any(key.startswith("discriminator.") for key in checkpoint["model"]) == bool(options)
    assert "unlabeled digits: its labels are ignored" in caplog.text


@pytest.mark.slow
def test_netbooster_mimics_too(net_for: Callable[[], nn.Module], tmp_path: Path) -> None:
    options = {"method": "netbooster+mimic", "where": "all", "ratio": 2, "giant_epochs": 0, "plt_epochs": 1}
    result = train(net_for(), TrainConfig(**RUN | options), tmp_path / "t.pt", teacher=net_for())
    assert sites(result.model)
    assert result.fused_accuracy is not None
    assert nbcompile.fuse(result.model).state_dict().keys() == net_for().state_dict().keys()


@pytest.mark.slow
def test_compiled_it_learns_the_same(net_for: Callable[[], nn.Module], tmp_path: Path) -> None:
    losses = []
    for compile in (False, True):
        config = TrainConfig(**RUN | {"adversarial": 0.5, "ema": 0.9, "compile": compile, "lr": 0.05, "epochs": 2})
        result = train(net_for(), config, tmp_path / f"{compile}.pt", teacher=net_for())
        losses.append([epoch.loss for epoch in result.history])
    assert losses[0] == pytest.approx(losses[1], abs=2e-2)  # dropout draws other numbers


def test_what_it_costs() -> None:
    net = 15 * 6 * 9 + 8 * 6 * 15 + 24  # 5 × 3 places, then one
    discriminator = 15 * (6 * 64 + 64)
    x, giant = torch.zeros(1, 1, 7, 5), nn.Sequential(nn.Flatten(), nn.Linear(35, 3))
    for options, beside in (({}, 0), ({"adversarial": 0.1}, discriminator), ({"unlabeled_batch": None}, 0)):
        config = TrainConfig(**OPTIONS | options)  # type: ignore[arg-type]
        times = 2 if "unlabeled_batch" in options else 3  # eight images beside four
        spent = training_cost(network(), config, x, 100, giant)
        assert spent.network == 4 * 100 * 3 * times * (net + beside)
        assert (spent.giant, spent.teacher) == (0, 4 * 100 * times * 35 * 3)
        assert spent.plain_epoch == 100 * 3 * net
    phases: dict[str, Any] = {"giant_epochs": 1, "plt_epochs": 1, "where": ["3"], "ratio": 6}
    boosted = TrainConfig(**OPTIONS | phases | {"method": "netbooster+mimic"})
    plain = TrainConfig(**phases, method="netbooster", epochs=4, warmup_epochs=0)
    alone = training_cost(network(), plain, x, 100).giant
    assert training_cost(network(), boosted, x, 100, giant).giant == 3 * alone > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"teacher": None}, "method 'mimic' needs a teacher: a file or a MODEL; netbooster\\+kd can have 'self'"),
        ({"teacher": "self"}, "teacher 'self' is the giant before its slopes rise: it needs method netbooster\\+kd"),
        (
            {"teacher": "self", "method": "netbooster+mimic"},
            "method 'netbooster\\+mimic' mimics a giant that has learnt: teacher must be a file or a MODEL",
        ),
        ({"unlabeled": None}, "method 'mimic' needs images without labels: unlabeled, such as imagefolder:DIR"),
        ({"unlabeled": "rest"}, "unlabeled 'rest' is what train_images leaves out, and there is no train_images"),
        (
            {"method": "netbooster+mimic", "adversarial": 0.1},
            "adversarial goes with a network that stays the same, not with method 'netbooster\\+mimic'",
        ),
        ({"augment": "mixup"}, "augment 'mixup' would change the labelled images alone: it does not go"),
        ({"sizes": (16, 32)}, "sizes would change the labelled images alone"),
        ({"feature": "0"}, "feature is what adversarial aligns, and that is 0"),
        ({"unlabeled_batch": 7, "accumulate": 2}, "unlabeled_batch 7 must be a multiple of accumulate 2"),
        ({"unlabeled_batch": 0}, "unlabeled_batch must be > 0, not 0"),
        ({"adversarial": -1.0}, "adversarial must be >= 0, not -1.0"),
        ({"unlabeled_pass": "both"}, "unlabeled_pass must be one of together, apart, not 'both'"),
    ],
)
def test_bad_options(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=f"^{sentence}"):
        TrainConfig(**OPTIONS | options)


@pytest.mark.parametrize("method", ["kd", "vanilla", None])
def test_options_of_another_method(method: str | None) -> None:
    options = {"method": method, "teacher": "giant.pt" if method == "kd" else None}
    for name in ("unlabeled", "adversarial"):
        config = {**options, name: OPTIONS.get(name, 0.1)}
        takers = r"method mimic( or netbooster\+mimic)?, not with"
        with pytest.raises(UsageError, match=rf"^{name} goes with {takers} '?{method or 'vanilla'}"):
            TrainConfig(**config).for_network(giant=False)


def test_bad_features(net: nn.Module, tmp_path: Path) -> None:
    for name, sentence in (("nine", "is neither layer nor node, of Sequential"), ("9", r"has the shape \(1, 10\)")):
        config = TrainConfig(**RUN | {"adversarial": 0.1, "feature": name})
        with pytest.raises(UsageError, match=f"^feature '{name}' {sentence}"):
            train(net, config, tmp_path / "t.pt", teacher=net)
    assert not (tmp_path / "t-run").exists()
