import copy
import logging
from typing import Any, NamedTuple, cast

import pytest
import timm
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import nbcompile
from nbcompile import zoo
from nbcompile.core.blocks import sites
from nbcompile.core.cost import cost
from nbcompile.core.errors import PreconditionError, UsageError
from nbcompile.core.example import origin_of
from nbcompile.core.numerics import relative_error
from nbcompile.testing import scramble_
from tests.slow import one_in

NETWORKS = ("mobilenetv2_tiny", "mcunet", "mobilenetv2_50", "mobilenetv2_100")


@pytest.mark.parametrize(
    ("where", "macs", "params", "printed"),
    [
        ("uniform:0.5", 53_973_632, 998_200, "63.9M"),
        pytest.param("first:8", 54_222_128, 829_912, "65.0M", marks=pytest.mark.slow),
        pytest.param("middle:8", 42_301_520, 931_144, "49.6M", marks=pytest.mark.slow),
        pytest.param("last:8", 44_378_720, 1_250_392, "51.2M", marks=pytest.mark.slow),
    ],
)
def test_giants_cost_what_the_paper_says(where: str, macs: int, params: int, printed: str) -> None:
    """Table 5 of arXiv 2306.13586; its FLOPs are MACs plus 5 per norm element."""
    giant = nbcompile.expand(zoo.mobilenetv2_tiny(), torch.zeros(1, 3, 144, 144), where=where)
    counted = cost(giant)
    assert (counted.macs, counted.params) == (macs, params)
    assert f"{(counted.macs + 5 * counted.norm_elements) / 1e6:.1f}M" == printed


class Case(NamedTuple):
    network: str
    where: str
    block: str
    ratio: int
    preserve: bool
    pad_first: bool
    size: int
    statistics: str


GRID = {
    "network": NETWORKS,
    "where": ("uniform:0.5", "first:8", "middle:8", "last:8", "all"),
    "block": ("inverted-residual", "bottleneck", "basic"),
    "ratio": (2, 3, 4, 5, 6, 7, 8),
    "preserve": (False, True),
    "pad_first": (True, False),
    "size": (40, 33),
    "statistics": ("random", "own"),
}


def pairwise(grid: dict[str, tuple[Any, ...]]) -> list[Case]:
    """Cases that hold every pair of values of two options; each is grown from a pair not seen yet."""
    names = list(grid)
    open_pairs = [(a, x, b, y) for i, a in enumerate(names) for b in names[i + 1 :] for x in grid[a] for y in grid[b]]
    cases = []
    while open_pairs:
        a, x, b, y = open_pairs[0]
        case = {a: x, b: y}
        for name in names:
            if name not in case:
                case[name] = max(grid[name], key=lambda v: _met({**case, name: v}, open_pairs))
        cases.append(Case(**case))
        open_pairs = [(a, x, b, y) for a, x, b, y in open_pairs if (case[a], case[b]) != (x, y)]
    return cases


def _met(case: dict[str, Any], pairs: list[tuple[str, Any, str, Any]]) -> int:
    return sum(a in case and b in case and case[a] == x and case[b] == y for a, x, b, y in pairs)


def check(case: Case) -> None:
    """Expand, linearise, fuse; compare the last feature map and the logits, which the whole of it reaches.

    With random statistics a deep network hardly sees its input. With those of its own activations it does, but being
    untrained it amplifies rounding, so that in float32 the forward pass itself is off by 1e-5 to 1e-4: there the tiny
    network may be as far from the giant as the giant is from itself in float64.
    """
    options = case._asdict()
    network, size, statistics = (options.pop(key) for key in ("network", "size", "statistics"))
    original = scramble_(zoo.NETWORKS[network].factory(num_classes=10))
    x = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(1))
    giant = linear_(scramble_(nbcompile.expand(original, x, **options), seed=1))
    if statistics == "own":
        settle_(giant, x)
    tiny = nbcompile.fuse(giant)
    same_architecture(original, tiny, x)
    wide = copy.deepcopy(giant).double()
    x = x[:2]
    reference, found = outputs(wide, x.double()), outputs(giant, x)
    noise = relative_error(found, reference)
    assert relative_error(outputs(nbcompile.fuse(wide), x.double()), reference) <= 1e-12, case
    assert relative_error(outputs(tiny, x), found) <= (1e-6 if statistics == "random" else 4 * noise), case


def linear_(giant: nn.Module) -> nn.Module:
    for block in sites(giant).values():
        block.slope.fill_(1)
    return giant.eval()


def settle_(giant: nn.Module, x: Tensor) -> None:
    """Give every norm the statistics of its own input."""
    norms = [m for m in giant.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        giant.train()(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    giant.eval()


def outputs(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        features = cast(zoo.InvertedResidualNet, model).features(x)
        return features, model(x)


def same_architecture(original: nn.Module, tiny: nn.Module, x: Tensor) -> None:
    """Class, keys in their order, shapes, cost layer by layer; and the original takes the weights."""
    assert type(tiny) is type(original)
    shapes = [(key, value.shape, value.dtype) for key, value in original.state_dict().items()]
    assert [(key, value.shape, value.dtype) for key, value in tiny.state_dict().items()] == shapes
    assert cost(tiny) == cost(original, x)
    taken = copy.deepcopy(original).eval()
    taken.load_state_dict(tiny.state_dict())
    with torch.no_grad():
        assert torch.equal(taken(x), tiny(x))


CASES = pairwise({**GRID, "ratio": (2, 5, 8)})


@pytest.mark.parametrize("case", one_in(20, CASES), ids=lambda c: "-".join(map(str, c)))
def test_giant_to_tiny(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("where", GRID["where"])
@pytest.mark.parametrize("block", GRID["block"])
def test_giant_to_tiny_the_whole_grid(network: str, where: str, block: str) -> None:
    for ratio in GRID["ratio"]:
        for preserve in (False, True):
            for pad_first in (True, False):
                for size, statistics in zip(GRID["size"], GRID["statistics"], strict=True):
                    check(Case(network, where, block, ratio, preserve, pad_first, size, statistics))


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "state": {key: value.clone() for key, value in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "ids": [id(module) for module in model.modules()],
        "grads": [p.requires_grad for p in model.parameters()],
    }


def test_expand_leaves_its_argument_and_the_random_state_alone() -> None:
    model = scramble_(zoo.dscnn())
    model.features[1].eval()
    model.classifier.requires_grad_(False)
    before, x = snapshot(model), torch.randn(2, 1, 8, 8)
    kept = x.clone()
    giant = nbcompile.expand(model, x, where="all", preserve=True)
    after = snapshot(model)
    state = before.pop("state")
    assert all(torch.equal(value, state[key]) for key, value in after.pop("state").items())
    assert before == after
    assert torch.equal(x, kept)
    assert not {id(p) for p in giant.parameters()} & {id(p) for p in model.parameters()}
    assert giant.training
    assert not giant.get_submodule("features.block0").training
    assert not giant.get_parameter("classifier.weight").requires_grad


def test_expand_draws_only_for_new_weights() -> None:
    """The seed decides the giant; running the probe moves no random state."""
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, 4, 1)), torch.randn(2, 3, 5, 5)
    torch.manual_seed(7)
    giant = nbcompile.expand(model, x, where=["0"])
    state = torch.get_rng_state()
    torch.manual_seed(7)
    again = nbcompile.expand(model, x, where=["0"])
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(giant.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("mobilenetv2_tiny", "inverted-residual"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("mobilenetv2_tiny", "basic"), ("mcunet", "bottleneck"))
        ),
    ],
)
def test_preserve_starts_as_the_original(name: str, block: str) -> None:
    model = scramble_(zoo.NETWORKS[name].factory(num_classes=5))
    x = torch.randn(3, 3, 48, 48)
    giant = nbcompile.expand(model, x, where="all", block=block, preserve=True, verify_each=True)
    for training in (True, False):
        a, b = copy.deepcopy(giant).train(training), copy.deepcopy(model).train(training)
        with torch.no_grad():
            assert torch.equal(a(x), b(x))


def test_preserve_trains_every_parameter_of_the_block_within_two_steps() -> None:
    model, x = scramble_(zoo.dscnn()), torch.randn(8, 1, 8, 8)
    giant = nbcompile.expand(model, x, where="all", preserve=True).train()
    optimiser = torch.optim.SGD(giant.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        giant(x).square().mean().backward()
        optimiser.step()
    for name, block in sites(giant).items():
        for key, parameter in block.named_parameters():
            assert parameter.grad is not None
            assert float(parameter.grad.abs().max()) > 0, f"{name}.{key}"


def test_the_giant_remembers() -> None:
    x = torch.randn(2, 1, 8, 8)
    giant = nbcompile.expand(zoo.dscnn(), x)
    known = origin_of(giant)
    assert known is not None
    assert known.inputs[0].shape == (2, 1, 8, 8)
    assert isinstance(giant, zoo.InvertedResidualNet)
    assert origin_of(nbcompile.fuse(linear_(giant))) == known
    with pytest.raises(UsageError, match="expand needs an example_input: InvertedResidualNet does not remember"):
        nbcompile.expand(zoo.dscnn())


def test_wrappers_are_seen_through() -> None:
    model = torch.optim.swa_utils.AveragedModel(zoo.dscnn())
    assert isinstance(nbcompile.expand(model, torch.randn(1, 1, 8, 8)), zoo.InvertedResidualNet)


class Shared(nn.Module):
    """One layer under two names, and one called twice with two norms."""

    def __init__(self, *, calls: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.nested = nn.ModuleList([self.conv])
        self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.one(self.conv(x)))
        if self.calls == 2:
            y = F.relu(self.two(self.nested[0](y)))
        return y


@pytest.mark.parametrize("preserve", [False, True])
@pytest.mark.parametrize("calls", [1, 2])
def test_aliased_and_shared_layers(calls: int, preserve: bool) -> None:
    model = scramble_(Shared(calls=calls)).double()
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    giant = cast(Shared, nbcompile.expand(model, x, where=["conv"], preserve=preserve))
    assert giant.conv is giant.nested[0]
    linear_(scramble_(giant, seed=2))
    tiny = cast(Shared, nbcompile.fuse(giant))
    assert tiny.conv is tiny.nested[0]
    same_architecture(model, tiny, x)
    with torch.no_grad():
        assert relative_error(tiny(x), giant(x)) <= 1e-12


class Awkward(nn.Module):
    """Every way in which a layer or a model cannot be expanded."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.auxiliary = nn.Conv2d(4, 4, 1)
        self.how = how
        self.outside = [self.conv]

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "branches" and x.mean() > 1e9:
            return cast(Tensor, self.auxiliary(x))
        if self.how == "outside":
            return F.relu(self.norm(self.outside[0](x)))
        y = F.relu(self.norm(self.conv(x)))
        if self.training:
            y = self.auxiliary(y)
        if self.how == "weight in training" and self.training:
            y = y + self.conv.weight.sum()
        return cast(Tensor, y)


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_refuses_a_layer_kept_outside_the_tree() -> None:
    message = "'conv' was replaced, but the model still calls the old layer .*; name other layers with where="
    with pytest.raises(PreconditionError, match=message):
        nbcompile.expand(Awkward("outside"), X, where=["conv"])


def test_refuses_a_layer_whose_weight_is_read_in_training() -> None:
    message = "'conv' cannot be expanded: other code reads its weight directly .*no attribute 'weight'"
    with pytest.raises(PreconditionError, match=message):
        nbcompile.expand(Awkward("weight in training"), X, where=["conv"])


class InOneMode(nn.Module):
    """A branch that runs in training only, and there not on maps of less than 100 pixels."""

    def __init__(self, branch: str) -> None:
        super().__init__()
        self.conv, self.norm, self.branch = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), branch

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu(self.norm(self.conv(x)))
        if self.training:
            y = y + F.avg_pool2d(y, 100).mean()
            y = y + self.conv.weight.sum() if self.branch == "reads" else y
        return y


def test_what_runs_in_training_on_the_example_only_is_probed_there() -> None:
    """In eval mode it was seen to hold for smaller maps, too: that says nothing of training."""
    x = torch.randn(1, 3, 128, 128)
    sites(nbcompile.expand(InOneMode(""), x, where=["conv"]))
    with pytest.raises(PreconditionError, match="'conv' cannot be expanded: other code reads its weight directly"):
        nbcompile.expand(InOneMode("reads"), x, where=["conv"])


class Clamps(nn.Module):
    """Writes into a weight when it runs, as networks of binary weights do."""

    def __init__(self, in_training: bool, in_eval: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.in_mode = {True: in_training, False: in_eval}

    def forward(self, x: Tensor) -> Tensor:
        if self.in_mode[self.training]:
            self.last.weight.data.clamp_(-0.1, 0.1)
        y: Tensor = self.last(F.relu(self.norm(self.conv(x))))
        return y


@pytest.mark.parametrize("mode", [(True, False), (False, True), (True, True)])
def test_the_giant_starts_with_the_weights_of_its_original_whatever_a_run_writes(mode: tuple[bool, bool]) -> None:
    model = Clamps(*mode)
    giant: Any = nbcompile.expand(model, torch.randn(2, 3, 7, 5), where=["conv"])
    assert torch.equal(giant.last.weight, model.last.weight)
    assert giant.last.weight.abs().max() > 0.1


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("linear1", "other code reads its weight directly"),
        ("self_attn.out_proj", r"it is inside 'self_attn' \(MultiheadAttention\), which reads its weight directly"),
    ],
)
def test_refuses_what_torchs_transformer_reads(where: str, message: str) -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with pytest.raises(PreconditionError, match=f"'{where}' cannot be expanded: {message}"):
        nbcompile.expand(encoder, torch.randn(2, 5, 8), where=[where])
    with pytest.raises(PreconditionError, match=r"is inside '0' \(TransformerEncoderLayer\), which reads its weight"):
        nbcompile.expand(nn.Sequential(encoder), torch.randn(2, 5, 8), where=[f"0.{where}"])


def test_refuses_what_the_example_does_not_reach() -> None:
    message = "expand: 'auxiliary' cannot be expanded: it is not reached by the example input in eval mode"
    with pytest.raises(PreconditionError, match=message):
        nbcompile.expand(Awkward(), X, where=["aux*"])
    assert list(sites(nbcompile.expand(Awkward(), X, where=["*"]))) == ["conv"]


def test_refuses_what_matches_nothing() -> None:
    with pytest.raises(UsageError, match=r"no convolution or linear layer is called 'head\.\*'; candidates: features"):
        nbcompile.expand(zoo.dscnn(), torch.randn(1, 1, 8, 8), where=["head.*"])


def test_refuses_a_giant_and_a_model_that_cannot_be_copied() -> None:
    giant = nbcompile.expand(zoo.dscnn(), torch.randn(1, 1, 8, 8))
    with pytest.raises(PreconditionError, match="already has 3 expansion blocks"):
        nbcompile.expand(giant, torch.randn(1, 1, 8, 8))
    model = zoo.dscnn()
    model.register_buffer("graph", torch.ones(1, requires_grad=True) * 2)
    with pytest.raises(PreconditionError, match="'graph' is a tensor that remembers how it was computed: keep it det"):
        nbcompile.expand(model, torch.randn(1, 1, 8, 8))


def test_a_model_that_cannot_be_traced_is_expanded_at_named_layers() -> None:
    model = scramble_(Awkward("branches")).double()
    model.conv.bias = None
    giant = nbcompile.expand(model, X.double(), where=["conv"])
    block = sites(giant)["conv"]
    assert (block.spec.inner, block.spec.absorbers) == ("scale", ())
    linear_(scramble_(giant, seed=1))
    tiny = nbcompile.fuse(giant)
    same_architecture(model, tiny, X.double())
    with torch.no_grad():
        assert relative_error(tiny(X.double()), giant(X.double())) <= 1e-12
    with pytest.raises(PreconditionError, match="'auxiliary' cannot be expanded: it is not reached by the example inp"):
        nbcompile.expand(model, X.double(), where=["auxiliary"])
    with pytest.raises(PreconditionError, match="Awkward does not run on the example input: RuntimeError"):
        nbcompile.expand(model, torch.randn(1, 5, 6, 6), where=["conv"])


def test_blocks_without_norms_are_told(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 1))
    with caplog.at_level(logging.WARNING, "nbcompile"):
        nbcompile.expand(model, X, where=["*"])
    assert "expand: 1 of 2 blocks have per-channel scales instead of norms and biases" in caplog.text
    assert "(the first: '0')" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "resnet10t",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("mobilenetv3_small_050", "densenetblur121d", "deit_tiny_patch16_224")
        ),
    ],
)
def test_timms_networks_come_back(name: str) -> None:
    size = 224 if name.startswith("deit") else 32
    model = scramble_(timm.create_model(name)).double()
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    giant = linear_(scramble_(nbcompile.expand(model, x, where="uniform:0.05", ratio=2, preserve=True), seed=1))
    tiny = nbcompile.fuse(giant)
    with torch.no_grad():
        assert relative_error(tiny(x), giant(x)) <= 1e-12
    copy.deepcopy(model).load_state_dict(tiny.state_dict())


def test_channels_last_and_dtype_are_kept() -> None:
    model = zoo.dscnn().to(memory_format=torch.channels_last).bfloat16()  # type: ignore[call-overload]
    giant = nbcompile.expand(model, torch.randn(2, 1, 8, 8), where=["features.stem.conv"])
    block = sites(giant)["features.stem.conv"]
    assert block.last.weight.dtype == torch.bfloat16
    wide = next(p for p in block.parameters() if p.ndim == 4 and p.shape[1] > 1)
    assert wide.is_contiguous(memory_format=torch.channels_last)


def test_a_graph_module_is_a_model_too() -> None:
    gm = fx.symbolic_trace(zoo.dscnn().eval())
    giant = nbcompile.expand(gm, torch.randn(2, 1, 8, 8), where="all")
    assert len(sites(giant)) == 5
    linear_(giant)
    assert list(nbcompile.fuse(giant).state_dict()) == list(gm.state_dict())
