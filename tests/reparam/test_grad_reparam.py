"""A layer that learns by multiplied gradients, beside one that has the branches."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nbcompile
from nbcompile import PreconditionError, UsageError, grad_reparam
from nbcompile.reparam.branches import BRANCHES
from nbcompile.reparam.multipliers import GradReparam
from tests.reparam.real_branches import SCALES, Branches, with_branches

STEPS = 50
X = (2, 6, 7, 5)


def network() -> nn.Sequential:
    """Every kind of layer, the 0th to the last one with branches of its own."""
    return nn.Sequential(
        nn.Conv2d(6, 6, 3, padding=1, bias=False),  # 0: all branches
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 6, (5, 3), padding=(2, 1), groups=6),  # 2: depthwise
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2),  # 4: grouped, stride 2
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 1, bias=False),  # 6: pointwise
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4),  # 7: dilated
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 8),  # 11
        nn.Linear(8, 3),  # 12: nothing
    ).double()


REP = {
    "0": ("full", "center", "identity"), "2": ("full", "center", "identity"), "4": ("full", "center"),
    "6": ("full", "identity"), "7": ("full", "center", "identity"), "11": ("full", "identity"),
}  # fmt: skip
LAYERS: dict[str, dict[str, tuple[str, ...]]] = {
    "rep": REP,
    "dbb": dict.fromkeys(("0", "2", "4"), ("full", "center", "average")),
    "expand": {name: (*kinds, "rows", "columns") if "center" in kinds else kinds for name, kinds in REP.items()},
}


def scales_for() -> dict[str, Tensor]:
    return {kind: torch.tensor(scale, dtype=torch.float64) for kind, scale in SCALES.items()}


def sgd(model: nn.Module, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), **({"lr": 0.02, "momentum": 0.9, "weight_decay": 0.05} | options))


def batches(steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(X, generator=generator, dtype=torch.float64), torch.randint(3, X[:1], generator=generator))
        for _ in range(steps)
    ]


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[tuple[Tensor, Tensor]]) -> None:
    for images, labels in data:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def both(branches: str) -> tuple[nn.Sequential, nn.Sequential, GradReparam]:
    """A network with real branches, and the plain one that computes the same."""
    torch.manual_seed(0)
    plain, scales = network(), scales_for()
    kinds = LAYERS[branches]
    if branches == "dbb":
        plain[7] = nn.Identity()  # torch's average pooling knows no dilation
    real = with_branches(plain, kinds, scales)
    for name in kinds:
        block = real.get_submodule(name)
        assert isinstance(block, Branches)
        plain.get_submodule(name).weight.data.copy_(block.layer())  # type: ignore[operator,union-attr]
    torch.testing.assert_close(real(batches(1)[0][0]), plain(batches(1)[0][0]), rtol=1e-12, atol=1e-12)
    allowed = {kind: scale for kind, scale in SCALES.items() if kind in BRANCHES[branches]}
    return real, plain, grad_reparam(plain, branches, scales=allowed)


def farthest(real: nn.Sequential, plain: nn.Sequential, kinds: dict[str, tuple[str, ...]]) -> float:
    pairs = [(real.get_submodule(name), plain.get_submodule(name).weight) for name in kinds]
    return max(float((block.layer() - weight).detach().abs().max()) for block, weight in pairs)  # type: ignore[operator]


@pytest.mark.parametrize("branches", LAYERS)
@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_is_equal_to_sgd_on_real_branches(branches: str, nesterov: bool) -> None:
    """Momentum, weight decay, a rate that falls; strides, groups, depthwise, dilation, linear layers."""
    real, plain, reparam = both(branches)
    start = copy.deepcopy(plain)
    one, two = sgd(real, nesterov=nesterov), sgd(plain, nesterov=nesterov)
    reparam.attach(two)
    reparam.attach(two)  # changes nothing
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS) for optimizer in (one, two)]
    for batch in batches():
        for model, optimizer in ((real, one), (plain, two)):
            learn(model, optimizer, [batch])
        for schedule in schedules:
            schedule.step()
    assert farthest(real, plain, LAYERS[branches]) < 1e-10
    by_itself = start
    learn(by_itself, sgd(by_itself, nesterov=nesterov), batches())
    assert farthest(real, by_itself, LAYERS[branches]) > 1e-3, "the branches make no difference"


@pytest.mark.parametrize("branches", ["rep", "expand"])
def test_adamw_multiplies_the_update(branches: str) -> None:
    """Exact as far as eps is nothing beside the gradients; decoupled decay is that of every branch."""
    options: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1, "eps": 1e-40}
    real, plain, reparam = both(branches)
    one, two = (torch.optim.AdamW(model.parameters(), **options) for model in (real, plain))
    reparam.attach(two)
    for batch in batches():
        learn(real, one, [batch])
        learn(plain, two, [batch])
    assert farthest(real, plain, LAYERS[branches]) < 1e-10


def test_adamw_is_not_equal_where_eps_counts() -> None:
    """What the documentation says does not hold."""
    real, plain, reparam = both("rep")
    one, two = (torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-2) for model in (real, plain))
    reparam.attach(two)
    learn(real, one, batches())
    learn(plain, two, batches())
    assert farthest(real, plain, REP) > 1e-5


def twins(layer: nn.Module | None = None) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(
        layer or nn.Conv2d(6, 6, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    )
    model = model.double()
    return model, copy.deepcopy(model)


def test_a_scale_may_be_one_per_channel_and_of_one_layer() -> None:
    plain, _ = twins()
    own = torch.arange(1, 7) / 3
    scales: dict[str, Any] = {"center": 2.0, "0:center": own, "full": 0.5}
    assert isinstance(plain, nn.Sequential)
    kinds = {"0": ("full", "center", "identity")}
    real = with_branches(
        plain, kinds, {"full": torch.tensor(0.5), "center": own.double(), "identity": torch.tensor(1.0)}
    )
    plain[0].weight.data.copy_(real[0].layer())  # type: ignore[operator,union-attr]
    one, two = sgd(real), sgd(plain)
    grad_reparam(plain, scales=scales).attach(two)
    learn(real, one, batches())
    learn(plain, two, batches())
    assert farthest(real, plain, kinds) < 1e-10


def step(model: nn.Module, parts: int = 1, scaler: torch.amp.GradScaler | None = None) -> None:
    optimizer = sgd(model)
    grad_reparam(model, "expand").attach(optimizer)
    for images, labels in batches(3):
        for i in range(parts):
            x, y = images.chunk(parts)[i], labels.chunk(parts)[i]
            loss = F.cross_entropy(model(x), y) / parts
            (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()


def compiled(model: nn.Module) -> None:
    step(torch.compile(model, backend="aot_eager"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [
        lambda model: step(model, parts=2),
        lambda model: step(model, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10)),
        lambda model: step(model.to(memory_format=torch.channels_last)),
        compiled,
    ],
    ids=["accumulated", "scaled", "channels last", "compiled"],
)
def test_each_gradient_is_multiplied_once(other: Callable[[nn.Module], None]) -> None:
    one, two = twins()
    step(one)
    other(two)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_step_that_amp_skips_changes_nothing() -> None:
    model, before = twins()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1, fused=True)
    grad_reparam(model).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.full((1, 6, 3, 3), torch.inf, dtype=torch.float64)).sum()).backward()
    scaler.step(optimizer)
    assert all(map(torch.equal, model.parameters(), before.parameters()))


def test_the_network_stays_what_it_is() -> None:
    model, before = twins()
    optimizer = sgd(model)
    reparam = grad_reparam(model)
    reparam.attach(optimizer)
    assert list(model.state_dict()) == list(before.state_dict())
    assert all(map(torch.equal, model.parameters(), before.parameters())), "the given weights are the sum"
    average = copy.deepcopy(model)  # learns by itself
    reparam.detach()
    for other in (average, model, before):
        other(torch.ones(X, dtype=torch.float64)).sum().backward()
    grads = [[p.grad for p in other.parameters()] for other in (average, model, before)]
    for a, b, c in zip(*grads, strict=True):
        torch.testing.assert_close(a, c)
        torch.testing.assert_close(b, c)


def test_drawn_branches_begin_as_torchs_layers_do() -> None:
    """Variances add up: of a full kernel, a center (each 1 / 3 fan_in, as torch draws them) and an identity of 1."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False))
    given = model[0].weight.detach().clone()
    reparam = grad_reparam(model, scales={"center": 0.5})
    added = reparam.draw_(torch.Generator().manual_seed(3)) is reparam and model[0].weight.detach() - given
    center = added[:, :, 1, 1].clone()
    added[:, :, 1, 1] = 0
    assert not added.any()
    off = center[~torch.eye(64, dtype=torch.bool)]
    assert abs(float(off.var()) / (0.25 / (3 * 64)) - 1) < 0.1
    assert abs(float(center.diagonal().mean()) - 1) < 0.05
    again = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False))
    again[0].weight.data.copy_(given)
    grad_reparam(again, scales={"center": 0.5}).draw_(torch.Generator().manual_seed(3))
    assert torch.equal(again[0].weight, model[0].weight)


@pytest.mark.parametrize("branches", BRANCHES)
def test_drawn_branches_are_branches(branches: str) -> None:
    """What is added lies where a branch can reach, and of average pooling is the same all over the kernel."""
    model = nn.Sequential(nn.Conv2d(4, 6, (3, 5), padding=(1, 2), bias=False))
    before = model[0].weight.detach().clone()
    grad_reparam(model, branches).draw_()
    added = model[0].weight.detach() - before
    if branches == "dbb":
        added[:, :, 1, 2] = added[:, :, 0, 0]
        torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added))
    else:
        reached = torch.zeros(3, 5, dtype=torch.bool)
        reached[1, 2] = True
        if branches == "expand":
            reached[1], reached[:, 2] = True, True
        assert torch.equal(added.abs().amax((0, 1)) > 0, reached)


@pytest.mark.parametrize(
    ("layer", "kinds"),
    [
        (nn.Conv1d(4, 4, 3), ("full", "center", "identity")),
        (nn.Conv3d(4, 6, (3, 1, 3)), ("full", "center", "axes", "axes")),
        (nn.Conv2d(4, 4, (1, 3)), ("full", "center", "identity")),
        (nn.Conv2d(4, 4, 1, groups=2), ("full", "identity")),
        (nn.Linear(5, 5), ("full", "identity")),
        (nn.Conv2d(4, 4, 2), ()),  # has no center
        (nn.Conv2d(4, 4, 1, stride=2), ()),
        (nn.Conv2d(4, 4, 1, groups=4), ()),  # is an identity already
        (nn.ConvTranspose2d(4, 4, 3), ()),
        (nn.Linear(5, 4), ()),
        (nn.Conv2d(4, 4, 3).requires_grad_(False), ()),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), ()),
    ],
)
def test_which_branches_a_layer_can_have(layer: nn.Module, kinds: tuple[str, ...]) -> None:
    model = nn.Sequential(layer, nn.Linear(2, 2))
    assert grad_reparam(model, "expand").branches.get("0", ()) == kinds


def test_a_weight_of_two_layers_is_multiplied_once() -> None:
    one, two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    two.weight = one.weight
    reparam = grad_reparam(nn.Sequential(one, two))
    assert list(reparam.branches) == ["0"]
    assert list(reparam.multipliers) == ["0.weight"]
    assert torch.equal(reparam.multipliers["0.weight"], 1 + torch.eye(4))


def test_refusals() -> None:
    model = nbcompile.zoo.dscnn()
    with pytest.raises(UsageError, match=r"^branches must be one of rep, dbb, expand, not 'acnet'$"):
        grad_reparam(model, "acnet")
    with pytest.raises(UsageError, match=r"^grad_reparam: no layer of Linear has more than one branch of 'dbb': there"):
        grad_reparam(nn.Linear(3, 3), "dbb")
    giant = nbcompile.expand(model, torch.zeros(1, 1, 8, 8))
    for larger in (giant, nbcompile.widen(model, torch.zeros(1, 1, 8, 8))):
        with pytest.raises(PreconditionError, match=r"is a giant: give the network that it came from$"):
            grad_reparam(larger)
    for scales, sentence in (
        ({"average": 1.0}, "there is no branch 'average' here, only full, center, identity"),
        ({"full": 0.0}, "'full' must be > 0"),
        ({"full": float("nan")}, "'full' must be > 0"),
        (
            {"features.stem.conv:full": torch.ones(3)},
            r"must be one number, or 8 for 'features.stem.conv', not of .*\(3,",
        ),
        ({"head:full": 1.0}, "head:full is no branch of a layer here; there are features.stem.conv, "),
    ):
        with pytest.raises(UsageError, match=rf"^scales: .*{sentence}"):
            grad_reparam(model, scales=scales)  # type: ignore[arg-type]


def test_optimizers_that_are_not_known_are_refused() -> None:
    model = nbcompile.zoo.dscnn()
    parameters = list(model.parameters())
    for optimizer in (torch.optim.RMSprop(parameters), torch.optim.Adam(parameters, weight_decay=0.1)):
        with pytest.raises(
            UsageError, match=r"^grad_reparam: what branches do under (RMSprop|Adam) is not known: SGD, A"
        ):
            grad_reparam(model).attach(optimizer)
    grad_reparam(model).attach(torch.optim.Adam(parameters))
    with pytest.raises(
        UsageError, match=r"^grad_reparam: branches with average pooling have no equal under AdamW: cho"
    ):
        grad_reparam(model, "dbb").attach(torch.optim.AdamW(parameters))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_optimizers_are_found_inside_of_others(kind: type[torch.optim.Optimizer]) -> None:
    accelerate = pytest.importorskip("accelerate")
    one, two = twins()
    for model, wrap in ((one, lambda x: x), (two, accelerate.Accelerator(cpu=True).prepare)):
        optimizer = wrap(kind(model.parameters(), lr=0.01))  # type: ignore[call-arg]
        grad_reparam(model).attach(optimizer)
        learn(model, optimizer, batches(3))
    assert all(map(torch.equal, one.parameters(), two.parameters()))
