"""Training in weight space: the expanded form's gradients, the original's layers, and nothing that a file can see."""

import copy
import logging
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, fx, nn
from torch.nn import functional as F

import nbcompile
from nbcompile import PLT, collapse_, zoo
from nbcompile.core.blocks import Expanded, sites
from nbcompile.core.errors import PostconditionError, PreconditionError
from nbcompile.core.example import Origin, TensorSpec, remember
from nbcompile.core.numerics import relative_error
from nbcompile.core.site_spec import BLOCKS
from nbcompile.testing import scramble_
from tests.slow import one_in
from tests.unchanged import arguments_unchanged

EVERYWHERE = ["*conv", "classifier"]
Build = Callable[[], nn.Module]


def linear(where: str | list[str] = "all", **options: Any) -> nn.Module:
    """A giant at the end of its ramp, with norms that are not the identity, in train mode."""
    torch.manual_seed(0)
    giant = scramble_(nbcompile.expand(scramble_(zoo.dscnn()), torch.randn(1, 1, 8, 8), where, **options))
    for block in sites(giant).values():
        if block.last_norm is None:
            nn.init.normal_(block.last.get_parameter("weight"), std=0.2)
    PLT(giant, steps=1).step()
    return giant


@pytest.fixture(scope="module")
def fresh() -> Build:
    """A new giant for every call, at the price of a copy."""
    prototype = linear(preserve=True)
    return lambda: copy.deepcopy(prototype)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 1, 9, 7, generator=generator), torch.randint(10, (8,), generator=generator)


def freeze_inner_(giant: nn.Module) -> nn.Module:
    """The expanded form that collapse_ is compared with: in train mode, but the blocks by their running statistics."""
    for block in sites(giant.train()).values():
        block.eval()
    return giant


def train(model: nn.Module, steps: int = 3, lr: float = 0.02) -> list[float]:
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9), []
    for _ in range(steps):
        x, y = batch()
        loss = F.cross_entropy(model(x.to(next(model.parameters()).dtype)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def gradients(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    x, y = batch()
    output = model(x.double())
    names, parameters = zip(*model.named_parameters(), strict=True)
    return output.detach(), dict(zip(names, torch.autograd.grad(F.cross_entropy(output, y), parameters), strict=True))


@pytest.mark.parametrize("preserve", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("block", one_in(3, BLOCKS))
def test_a_networks_gradients_are_those_of_the_expanded_form(block: str, preserve: bool) -> None:
    giant = linear(EVERYWHERE, block=block, preserve=preserve).double()
    assert len(sites(giant)) == 17
    expanded = freeze_inner_(copy.deepcopy(giant))
    wanted_output, wanted = gradients(expanded)
    output, found = gradients(collapse_(giant))
    assert relative_error(output, wanted_output) < 1e-12
    largest = {name: float(gradient.abs().max()) for name, gradient in wanted.items()}
    least = 1e-3 * max(largest.values())  # a shift has none before a norm by batch statistics: only rounding is left
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).abs().max()) <= 1e-10 * max(largest[name], least), name
    for key, value in expanded.state_dict().items():
        assert torch.allclose(giant.state_dict()[key].double(), value.double(), rtol=1e-12), key


def test_outputs_in_eval_mode_stay_and_train_mode_gives_a_site_the_same(fresh: Build) -> None:
    giant, (x, _) = fresh().eval(), batch()
    with torch.no_grad():
        wanted = giant(x)
        assert relative_error(collapse_(giant)(x), wanted) < 1e-5
        for block in sites(giant).values():
            x = torch.randn(2, block.spec.layer.inputs, 7, 5)
            assert torch.equal(block.train()(x), block.eval()(x))


def test_inner_statistics_are_constants_and_everything_else_learns(fresh: Build) -> None:
    giant = collapse_(fresh())
    before = copy.deepcopy(giant)
    train(giant)
    train(giant.eval())  # before norms by batch statistics a shift does nothing and learns nothing
    inner = {name for site in sites(giant) for name, _ in giant.get_submodule(site).named_buffers(prefix=site)}
    assert sum(name.endswith("num_batches_tracked") for name in inner) == 3 * len(sites(giant))
    for name, buffer in before.named_buffers():
        assert torch.equal(giant.get_buffer(name), buffer) == (name in inner), name
    for name, parameter in before.named_parameters():
        assert not torch.equal(giant.get_parameter(name), parameter), name


def test_keys_stay_and_files_do_not_say_it(fresh: Build, tmp_path: Path) -> None:
    giant, (x, _) = fresh(), batch()
    state = copy.deepcopy(giant.state_dict())
    collapse_(giant)
    assert list(giant.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in giant.state_dict().items())
    train(giant)
    nbcompile.save(giant, tmp_path / "giant.pt")
    loaded = nbcompile.load(tmp_path / "giant.pt")
    assert not any(block.collapsed for block in sites(loaded).values())
    again = nbcompile.load(tmp_path / "giant.pt", model=collapse_(fresh()))
    assert all(block.collapsed for block in sites(again).values())
    with torch.no_grad():
        wanted = giant.eval()(x)
        assert relative_error(loaded(x), wanted) < 1e-5
        assert torch.equal(collapse_(loaded)(x), wanted)
        assert torch.equal(again(x), wanted)


def test_an_earlier_state_goes_on_as_a_ramp() -> None:
    torch.manual_seed(0)
    giant = nbcompile.expand(zoo.dscnn(), torch.randn(1, 1, 8, 8), "all")
    plt = PLT(giant, steps=4)
    plt.step()
    early = copy.deepcopy(giant.state_dict())
    for _ in range(3):
        plt.step()
    collapse_(giant)
    giant.load_state_dict(early)
    assert not any(block.collapsed for block in sites(giant).values())
    assert plt.slope == 0.25
    twin = copy.deepcopy(giant)
    x, _ = batch()
    assert torch.equal(giant(x), twin(x))


def test_fuse_takes_both_forms(fresh: Build) -> None:
    giant = fresh()
    train(collapse_(giant))
    plain = fresh()
    plain.load_state_dict(giant.state_dict())
    tiny, (x, _) = nbcompile.fuse(giant), batch()
    for key, value in nbcompile.fuse(plain).state_dict().items():
        assert torch.equal(tiny.state_dict()[key], value), key
    zoo.dscnn().load_state_dict(tiny.state_dict())
    with torch.no_grad():
        assert relative_error(tiny(x), giant.eval()(x)) < 1e-5
    nbcompile.verify(giant, tiny).raise_on_failure()
    assert all(block.collapsed for block in sites(giant).values())


def test_wrappers_are_seen_through_and_twice_is_fine(fresh: Build) -> None:
    giant = fresh()
    wrapped = torch.optim.swa_utils.AveragedModel(nn.DataParallel(giant))
    assert collapse_(wrapped) is wrapped
    assert all(m.collapsed for m in wrapped.modules() if isinstance(m, Expanded))
    assert not any(block.collapsed for block in sites(giant).values())  # the average was a copy
    assert collapse_(collapse_(giant)) is giant


def test_a_giant_that_is_not_linear_is_refused_whole(fresh: Build) -> None:
    giant = fresh()
    blocks = sites(giant)
    for name in list(blocks)[1:3]:
        blocks[name].slope.fill_(0.25)
    with pytest.raises(
        PreconditionError,
        match=r"collapse_: 2 of 5 sites are not linear yet: 'features\.block1\.expand\.conv' has slope 0\.25, not "
        r"1\.0, so its block is not one layer; train on with PLT until it is done",
    ):
        collapse_(giant)
    assert not any(block.collapsed for block in blocks.values())
    for block in blocks.values():  # averages round
        block.slope.copy_(torch.nextafter(torch.ones(()), torch.zeros(())))
    collapse_(giant)


def test_a_network_without_blocks_is_refused() -> None:
    message = "collapse_: InvertedResidualNet has no expansion blocks; expand it first"
    with pytest.raises(PreconditionError, match=message):
        collapse_(nn.DataParallel(zoo.dscnn()))


def test_amp_composes_in_float32(fresh: Build) -> None:
    """Only the layer on the feature map is cast."""
    block = next(iter(sites(collapse_(fresh())).values()))
    x = torch.randn(2, block.spec.layer.inputs, 7, 5)
    whole = block.merged(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
        assert torch.equal(y, F.conv2d(x, whole.weight, whole.bias))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert {p.grad.dtype for p in block.parameters() if p.grad is not None} == {torch.float32}
    assert all(p.grad is not None for p in block.parameters())


def test_amp_trains(fresh: Build) -> None:
    giant = collapse_(fresh())
    with torch.autocast("cpu", torch.bfloat16):
        losses = train(giant, steps=6)
    assert losses[-1] < losses[0]


class Counting:
    """A compiler that only counts what it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: fx.GraphModule, _: list[Tensor]) -> fx.GraphModule:
        self.graphs += 1
        return graph


@pytest.fixture
def _clean_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_clean_compiler")
@pytest.mark.slow
def test_torch_compile_takes_it_whole_and_compiles_once_more() -> None:
    backend, giant = Counting(), linear("first:2", preserve=True)
    eager = collapse_(copy.deepcopy(giant))
    compiled = torch.compile(freeze_inner_(giant), backend=backend, fullgraph=True)
    assert isinstance(compiled, nn.Module)
    compiled(batch()[0])
    assert backend.graphs == 1
    assert collapse_(compiled) is compiled
    giant.load_state_dict(eager.state_dict())
    with torch._dynamo.config.patch(recompile_limit=2):
        train(compiled)
    assert backend.graphs == 2
    train(eager)
    for (key, found), wanted in zip(giant.state_dict().items(), eager.state_dict().values(), strict=True):
        assert torch.equal(found, wanted), key


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch._prims_common.check` is deprecated:FutureWarning")  # by torch itself
@pytest.mark.usefixtures("_clean_compiler")
def test_torch_compile_by_inductor() -> None:
    giant = collapse_(linear("first:1"))
    eager = copy.deepcopy(giant)
    compiled = torch.compile(giant, fullgraph=True)
    assert isinstance(compiled, nn.Module)
    train(compiled)
    train(eager)
    for (key, found), wanted in zip(giant.state_dict().items(), eager.state_dict().values(), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4), key


def test_copies_are_collapsed_and_averages_fuse(fresh: Build) -> None:
    giant = collapse_(fresh())
    ema = ModelEmaV3(giant, decay=0.7)
    assert all(block.collapsed for block in sites(ema.module).values())
    for _ in range(3):
        train(giant, steps=1)
        ema.update(giant)
    x, _ = batch()
    with torch.no_grad():
        assert relative_error(nbcompile.fuse(ema.module)(x), ema.module.eval()(x)) < 1e-5


def test_frozen_blocks_stay_and_let_gradients_through(fresh: Build) -> None:
    giant = collapse_(fresh())
    frozen = next(iter(sites(giant).values())).requires_grad_(False)
    before = copy.deepcopy(frozen.state_dict())
    stem = giant.get_parameter("features.stem.conv.weight")
    old = stem.detach().clone()
    train(giant)
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())
    assert not torch.equal(stem, old)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("preserve", [True, False])
def test_the_memory_format_stays(memory_format: torch.memory_format, preserve: bool) -> None:
    """A network may ``view`` what it gets, and 1×1 kernels look like both formats."""
    giant = linear("first:1", preserve=preserve).to(memory_format=memory_format)
    (block,) = sites(collapse_(giant)).values()
    x = torch.randn(2, block.spec.layer.inputs, 7, 5)
    y = block(x.to(memory_format=memory_format))
    assert y.is_contiguous(memory_format=memory_format)
    assert y.is_contiguous() == (memory_format is torch.contiguous_format)
    assert torch.allclose(y, block(x), atol=1e-5)


def test_fused_in_the_middle_the_tiny_network_trains_on() -> None:
    """It starts where the giant stood: a shift in a running mean cancels in a norm by batch statistics."""
    torch.manual_seed(0)
    original = zoo.dscnn()
    giant = nbcompile.expand(original, torch.randn(1, 1, 8, 8), "all")
    plt = PLT(giant, steps=4)
    for _ in range(4):
        train(giant, steps=1)
        plt.step()
    collapse_(giant)
    train(giant, steps=2)
    tiny = nbcompile.fuse(giant)
    assert not tiny.training
    giant, tiny = giant.double().train(), tiny.double().train()
    x = batch()[0].double()
    with torch.no_grad():
        assert relative_error(tiny(x), giant(x)) < 1e-6  # of rounding the tiny network's weights to float32
        assert relative_error(tiny.eval()(x), giant.eval()(x)) < 1e-6  # and both went on averaging alike
        bent = copy.deepcopy(giant).train()
        for block in sites(bent).values():
            block.collapsed = False
        assert relative_error(tiny.train()(x), bent(x)) > 1e-2  # inner norms by batch statistics are no layer
    losses = train(tiny, steps=8)
    assert losses[-1] < 0.9 * losses[0]
    original.load_state_dict(tiny.state_dict())
    assert type(tiny) is type(original)


def test_no_mode_is_touched(fresh: Build) -> None:
    """Frozen are the statistics in the blocks, not the flags: the user's ``train`` and ``eval`` set those."""
    assert all(m.training for m in collapse_(fresh().train()).modules())
    assert not any(m.training for m in collapse_(fresh().eval()).modules())


def test_a_ramp_that_goes_back_ends_it() -> None:
    giant = nbcompile.expand(zoo.dscnn(), torch.randn(2, 1, 8, 8))
    plt = nbcompile.PLT(giant, steps=4)
    early = plt.state_dict()
    for _ in range(4):
        plt.step()
    nbcompile.collapse_(giant)
    assert all(block.collapsed for block in sites(giant).values())
    plt.load_state_dict(early)
    assert not any(block.collapsed for block in sites(giant).values())


# ---- the proof


def plant(monkeypatch: pytest.MonkeyPatch, fault: Callable[[Tensor], Tensor], only: str = "*block1.*") -> None:
    """What a block of one name computes as one layer goes through ``fault``."""
    right = Expanded.as_one_layer

    def wrong(block: Expanded, x: Tensor) -> Tensor:
        y = right(block, x)
        return fault(y) if fnmatch(block.spec.name, only) else y

    monkeypatch.setattr(Expanded, "as_one_layer", wrong)


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "weight": lambda y: y * 1.0001,
    "border": lambda y: torch.cat([y[..., :1] * 1.01, y[..., 1:]], -1),
    "one channel": lambda y: torch.cat([y[:, :-1], y[:, -1:] + 1e-3], 1),
    "another batch": lambda y: y * 1.01 if len(y) == 2 else y,
    "shape": lambda y: y[..., 1:],
    "infinite": lambda y: y / 0,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_collapse_is_refused_and_nothing_is_changed(
    fault: str, fresh: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    giant = fresh()
    plant(monkeypatch, FAULTS[fault])
    message = (
        r"^collapse_: what is to stand for 'features\.block1\.expand\.conv' "
        r"(is another function than the block: relative error (.*e-0[2-5]|inf), at most .*e-0\d is rounding|"
        r"does not do what the block does: PreconditionError: outputs of different shape .*)$"
    )
    with arguments_unchanged("collapse_", giant), pytest.raises(PostconditionError, match=message):
        collapse_(giant)
    assert not any(block.collapsed for block in sites(giant).values())
    assert all(block.collapsed for block in sites(collapse_(giant, proof=False)).values())


def test_the_first_block_that_runs_is_named(fresh: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda y: y * 1.01, only="*")
    first = next(iter(sites(fresh())))
    with pytest.raises(PostconditionError, match=f"stand for '{first}' is another"):
        collapse_(fresh())


@pytest.mark.parametrize("arrives", [0.0, 1e-30, torch.nan])
def test_what_arrives_at_a_block_need_not_show_its_faults(
    arrives: float, fresh: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead branch, say: the block is run on a drawn input, too."""
    giant = fresh()
    giant.register_forward_pre_hook(lambda _, args: (args[0] * 0 + arrives,))
    collapse_(copy.deepcopy(giant))
    right = Expanded.as_one_layer
    monkeypatch.setattr(
        Expanded, "as_one_layer", lambda block, x: right(block, x) + 0.01 * (right(block, x) - right(block, 0 * x))
    )
    with pytest.raises(PostconditionError, match=r"stand for '.*' is another function than the block"):
        collapse_(giant)


def test_what_is_collapsed_already_is_not_run_again(fresh: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    giant = collapse_(fresh())
    plant(monkeypatch, lambda y: y * 1.01)
    assert collapse_(giant) is giant


def test_half_precision_and_slopes_of_averages_are_equal_enough(fresh: Build) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        giant = fresh().to(dtype)
        for block in sites(giant).values():
            block.slope.fill_(1 - 2**-24)
        collapse_(giant)


def test_a_block_that_rounds_a_lot_is_measured_by_its_own_rounding(
    fresh: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    giant = fresh()
    for block in sites(giant).values():
        first, second = (block.get_submodule(f"stages.{i}") for i in range(2))
        first.get_parameter("norm.bias").data.add_(1e4)  # and taken off again, by numbers that cancel
        second.get_buffer("norm.running_mean").add_(1e4 * second.get_parameter("layer.weight").data.sum((1, 2, 3)))
    collapse_(copy.deepcopy(giant))
    monkeypatch.setattr("nbcompile.core.judging.compared.ROUNDINGS", 0)
    with pytest.raises(PostconditionError, match=r"relative error .*e-0\d, at most 1e-05 is rounding"):
        collapse_(giant)


class Picky(nn.Module):
    """Takes its own batch only, draws random numbers, counts its calls, and ranks what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.more = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, bias=False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.conv(x.view(2, 3, 7, 5)) + torch.rand(2, 8, 5, 3)
        return self.more(y).flatten().argsort()


def test_a_network_that_is_not_continuous_takes_one_batch_and_draws_is_proven() -> None:
    x = torch.randn(2, 3, 7, 5)
    giant = nbcompile.expand(Picky(), x, ["conv"], preserve=True, proof=False)
    PLT(giant, steps=1).step()
    calls, drawn = giant.get_buffer("calls").clone(), torch.get_rng_state()
    assert next(iter(sites(collapse_(giant)).values())).collapsed
    assert torch.equal(giant.get_buffer("calls"), calls)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_giant_that_does_not_run_is_refused(fresh: Build) -> None:
    giant = fresh()
    remember(giant, Origin((TensorSpec((2, 5, 8, 8)),)))
    with pytest.raises(
        PreconditionError,
        match=r"^collapse_: InvertedResidualNet does not run on the example input, on which its blocks are to be "
        r"proven \(proof=False leaves that out\): RuntimeError: .*5 channels",
    ):
        collapse_(giant)
    assert not any(block.collapsed for block in sites(giant).values())


def test_without_an_example_it_is_said(fresh: Build, caplog: pytest.LogCaptureFixture) -> None:
    giant = fresh()
    del giant.__dict__["_nbcompile_origin"]
    with caplog.at_level(logging.WARNING, "nbcompile"):
        collapse_(copy.deepcopy(giant), proof=False)
        assert not caplog.messages
        collapse_(giant)
    assert caplog.messages == ["collapse_: not proven by running it, for want of an example input"]


def test_what_is_not_finite_is_not_proven(fresh: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    giant = fresh()
    plant(monkeypatch, lambda y: y * 1.01)
    sites(giant)["features.block1.expand.conv"].last.get_parameter("weight").data[0] = float("nan")
    collapse_(giant)
