"""What each method trains in which epoch, and what it learns from."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nbcompile
from nbcompile import UsageError
from nbcompile.core.blocks import sites
from nbcompile.core.example import Origin, TensorSpec, remember
from nbcompile.training.batch import Batch
from nbcompile.training.methods.base import Method
from nbcompile.training.methods.distillation import divergence
from nbcompile.training.options.config import TrainConfig

STEPS = 5  # an epoch
X = torch.randn(4, 1, 7, 5, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU6(),
        nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    remember(model, Origin((TensorSpec((1, 1, 7, 5)),)))
    return model


def method(foreign: nn.Module | None = None, **options: Any) -> Method:
    defaults = {"method": "netbooster", "epochs": 10, "warmup_epochs": 0, "where": "all", "ratio": 2}
    config = TrainConfig(**(defaults | options))
    return config.method_row.start(config, STEPS, foreign)


def trained(one: Method, epochs: int, model: nn.Module | None = None) -> tuple[list[nn.Module], list[float | None]]:
    """The network of every epoch, and the slope at its end."""
    model = one.prepare(network() if model is None else model)
    models, slopes = [], []
    for epoch in range(epochs):
        model = one.advance(model, epoch)
        assert one.advance(model, epoch) is model, "once more changes nothing"
        one.attach(model, epoch)
        for _ in range(STEPS):
            one.after_step()
        models.append(model)
        slopes.append(one.slope)
    return models, slopes


def test_plain_first_then_a_giant() -> None:
    one = method(plain_epochs=2, giant_epochs=3, plt_epochs=4, preserve=True)
    models, slopes = trained(one, 10)
    assert slopes == [None, None, 0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert [one.phase(epoch) for epoch in range(10)] == [*2 * ["plain"], *3 * ["giant"], *4 * ["plt"], "fine-tune"]
    assert [bool(sites(model)) for model in models] == [*2 * [False], *8 * [True]]
    before, giant = models[1].eval(), models[2].eval()
    for block in sites(giant).values():
        block.slope.zero_()
    torch.testing.assert_close(giant(X), before(X))


def test_a_decay_without_a_length_removes_the_activations_at_once() -> None:
    one = method(giant_epochs=2, plt_epochs=0)
    models, slopes = trained(one, 2)
    assert slopes == [0.0, 0.0]
    one.attach(models[-1], 2)
    assert one.slope == 1.0
    _, slopes = trained(method(giant_epochs=0, plt_epochs=0), 1)
    assert slopes == [1.0]


def test_a_cosine_decay_rises_slowly_at_both_ends() -> None:
    _, slopes = trained(method(giant_epochs=0, plt_epochs=4, decay="cosine"), 5)
    assert slopes == pytest.approx([0.5 - 0.5 * math.cos(math.pi * i / 4) for i in range(1, 5)] + [1.0])
    assert slopes[3] == 1.0


def test_contracted_at_the_end_of_the_decay() -> None:
    one = method(giant_epochs=1, plt_epochs=1, contract_at="decay")
    models, slopes = trained(one, 4)
    assert slopes == [0.0, 1.0, None, None]
    giant, tiny = models[1], models[2]
    assert models[2] is models[3]
    assert network().state_dict().keys() == tiny.state_dict().keys()
    torch.testing.assert_close(tiny.eval()(X), giant.eval()(X))
    assert one.fused(tiny) is None
    assert all(p.requires_grad for p in tiny.parameters())


def test_collapsed_at_the_end_of_the_decay() -> None:
    one = method(giant_epochs=1, plt_epochs=1, collapse=True)
    models, slopes = trained(one, 3)
    assert slopes == [0.0, 1.0, 1.0]
    assert models[1] is models[2]
    assert all(block.collapsed for block in sites(models[2]).values())
    fused = one.fused(models[2])
    assert fused is not None
    torch.testing.assert_close(fused(X), models[2].eval()(X))


def test_every_epoch_can_be_reached_from_nothing() -> None:
    """What a resumed run does: the same structure, on weights that it then replaces."""
    options = {"plain_epochs": 1, "giant_epochs": 1, "plt_epochs": 1, "preserve": True, "contract_at": "decay"}
    (*_, last), _ = trained(method(**options), 4)
    again = method(**options)
    model = again.prepare(network())
    for epoch in range(4):
        model = again.advance(model, epoch)
        again.attach(model, epoch)
    model.load_state_dict(last.state_dict())


def test_a_giant_that_is_given_is_trained_as_it_is() -> None:
    giant = nbcompile.expand(network(), X, where=["3"], ratio=3)
    models, _ = trained(method(giant_epochs=1, plt_epochs=1), 2, giant)
    assert models[0] is giant
    with pytest.raises(UsageError, match="plain_epochs 2 is for a network that is not expanded yet"):
        method(plain_epochs=2).prepare(nbcompile.expand(network(), X))


def test_inserted_layers_learn_at_their_own_rate() -> None:
    one = method(inserted_lr=0.5, inserted_weight_decay=0.0, preserve=True)
    giant = one.advance(one.prepare(network()), 0)
    groups = one.parameter_groups(giant)
    names = {id(p): name for name, p in giant.named_parameters()}
    found = {names[id(p)]: (g.get("lr_scale", 1.0), g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(found) == len(names)
    for name, pair in found.items():
        inserted = (".stages." in name or ".last" in name) and ".original" not in name
        decayed = not inserted and name.endswith("weight") and giant.get_parameter(name).ndim > 1
        assert pair == (0.5 if inserted else 1.0, 5e-4 if decayed else 0.0), name


def test_divergence_is_the_sum_over_classes_and_the_mean_over_the_batch() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    p, q = (b / 3).softmax(1), (a / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(divergence(a, b, 3.0).double(), expected, rtol=1e-5, atol=0)
    assert divergence(a, a, 3.0).abs() < 1e-6


def test_a_teacher_is_part_of_the_loss() -> None:
    teacher, labels = network().eval(), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        teacher[-1].weight.mul_(5)
    one = method(teacher, method="kd", teacher="nbcompile:dscnn", kd_weight=0.75, temperature=2.0)
    model = network().eval()
    loss, logits = one.loss(model, Batch(X, labels))
    own = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(loss, 0.25 * own + 0.75 * divergence(logits, teacher(X), 2.0))
    assert not torch.isclose(loss, own)


def test_a_giant_teaches_its_own_linearisation() -> None:
    one = method(method="netbooster+kd", teacher="self", giant_epochs=2, plt_epochs=2)
    model, labels = one.prepare(network()), torch.zeros(4, dtype=torch.int64)
    for epoch in range(3):
        model = one.advance(model, epoch)
        one.attach(model, epoch)
        assert (one.teacher is not None) == (epoch == 2)
        if epoch < 2:
            assert "teacher" not in one.state_dict()
            own: Tensor = F.cross_entropy(logits := model.eval()(X), labels, label_smoothing=0.1)
            torch.testing.assert_close(one.loss(model, Batch(X, labels)), (own, logits))
        for _ in range(STEPS):
            one.after_step()
    assert one.teacher is not None
    assert {float(block.slope) for block in sites(one.teacher).values()} == {0.0}
    assert one.slope == 0.5
    assert not any(p.requires_grad for p in one.teacher.parameters())

    again = method(method="netbooster+kd", teacher="self", giant_epochs=2, plt_epochs=2)
    trained(again, 3)
    state = one.state_dict()
    assert again.teacher is not None
    with torch.no_grad():
        again.teacher[-1].bias.add_(1)
    again.load_state_dict(state)
    assert torch.equal(again.teacher[-1].bias, one.teacher[-1].bias)
