"""Giants in width in files, in other people's training loops, and in the verbs that are not for them."""

import copy
import io
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import nbcompile
from nbcompile import CheckpointError, PreconditionError, UsageError, VerificationError
from nbcompile.core.blocks import sites
from nbcompile.core.cost import cost
from nbcompile.core.record import decode_record, encode_record
from nbcompile.testing import enliven_
from nbcompile.wide.giants import giant_cost
from nbcompile.wide.widths import widths_of
from nbcompile.widening import at_width, widen, width_groups

X = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(0))
RECORD = "first.parametrizations.weight.0._extra_state"


class Net(nn.Module):
    """Two branches that are concatenated, a layer under two names, a depthwise one, a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 1, bias=False)
        self.norm = nn.BatchNorm2d(10)
        self.depth = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.scale = nn.Parameter(torch.ones(1, 10, 1, 1))
        self.mix = nn.Conv2d(10, 10, 1)
        self.again = self.mix
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(torch.cat([self.first(x), self.second(x)], 1)).relu()
        y = self.again(self.mix(self.depth(y) * self.scale).relu())
        out: Tensor = self.head(y.mean((2, 3)))
        return out


def network() -> nn.Module:
    torch.manual_seed(0)
    return cast(nn.Module, enliven_(Net(), X) or Net()).eval()


def giant_of(model: nn.Module, **options: Any) -> nn.Module:
    """Trained a little: all wide tensors are anything."""
    giant = widen(model, X, **options).train()
    torch.manual_seed(1)
    for p in giant.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    for width in ("widest", "own"):
        with at_width(giant, width):
            giant(X)
    return giant.eval()


@pytest.fixture(scope="module")
def prototype() -> nn.Module:
    return giant_of(network())


@pytest.fixture
def giant(prototype: nn.Module) -> nn.Module:
    return copy.deepcopy(prototype)


def same_at_all_widths(one: nn.Module, other: nn.Module) -> None:
    assert torch.equal(one(X), other(X))
    for seed in range(3):
        with at_width(one, rng=random.Random(seed)), at_width(other, rng=random.Random(seed)):
            assert torch.equal(one(X), other(X))


WRITERS: dict[str, Callable[[nn.Module, Path], object]] = {
    "save": nbcompile.save,
    "a plain dict": lambda giant, path: torch.save(giant.state_dict(), path),
    "a trainer's": lambda giant, path: torch.save(
        {"epoch": 3, "model": {f"module.{k}": v for k, v in giant.state_dict().items()}}, path
    ),
    "safetensors": lambda giant, path: safetensors.torch.save_file(
        {k: v for k, v in giant.state_dict().items() if not k.startswith("again.")}, path
    ),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_describes_itself(giant: nn.Module, tmp_path: Path, writer: str) -> None:
    path = tmp_path / ("giant.safetensors" if writer == "safetensors" else "giant.pt")
    WRITERS[writer](giant, path)
    read = nbcompile.load(path)
    assert torch.equal(read(X), giant(X))
    assert width_groups(read) == width_groups(giant)
    spent = giant_cost(read)
    assert spent is not None
    assert spent == giant_cost(giant)
    assert spent.params > cost(network(), X).params
    tiny = nbcompile.fuse(read)
    assert torch.equal(tiny(X), giant(X))
    mine = network()
    mine.load_state_dict(tiny.state_dict(), strict=True)
    assert nbcompile.verify(read, mine).passed
    assert torch.equal(mine(X), giant(X))
    for model in (network(), widen(network(), X), widen(network(), X, seed=3)):
        same_at_all_widths(nbcompile.load(path, model=model), giant)
    with pytest.raises(UsageError, match=r"^at_width: this giant was read without its code, and stands at its own"):
        at_width(read, "widest").__enter__()
    with at_width(read, "own"):
        assert torch.equal(read(X), giant(X))


def test_deeper_and_wider(tmp_path: Path) -> None:
    deep = nbcompile.expand(network(), X, where=["mix"], ratio=2, preserve=True)
    giant = giant_of(deep)
    nbcompile.save(giant, tmp_path / "giant.pt")
    read = nbcompile.load(tmp_path / "giant.pt")
    assert torch.equal(read(X), giant(X))
    for model in (network(), nbcompile.expand(network(), X, where=["mix"], ratio=2, preserve=True), giant_of(deep)):
        same_at_all_widths(nbcompile.load(tmp_path / "giant.pt", model=model), giant)
    with pytest.raises(PreconditionError, match="slope 0"):
        nbcompile.fuse(read)
    for block in sites(read).values():
        block.slope.fill_(1)
    tiny = nbcompile.fuse(read)
    assert tiny.state_dict().keys() == network().state_dict().keys()
    torch.testing.assert_close(tiny(X), read(X), atol=1e-4, rtol=1e-4)


def test_a_giant_that_a_module_holds() -> None:
    class Holder(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.model(x)
            return out

    giant = giant_of(network())
    holder = Holder(giant)
    with at_width(holder, "widest"):
        assert cast(nn.Linear, giant.get_submodule("head")).weight.shape[1] > 10
    fused = nbcompile.fuse(holder)
    assert torch.equal(fused(X), giant(X))
    assert [*fused.state_dict()] == [f"model.{key}" for key in network().state_dict()]


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update(factors=None), r"is of no giant in width: TypeError"),
        (lambda w: w.pop("layout"), r"is of no giant in width: KeyError: 'layout'"),
        (lambda w: w["layout"].pop("unit"), r"the record's widths are malformed: KeyError: 'unit'"),
        (lambda w: w["layout"]["spaces"][0].update(units=0), r"0 is no number of channels"),
        (lambda w: w["layout"]["spaces"][0].update(blocks=[]), r"a group without channels"),
        (lambda w: w["layout"].update(space=[[99, n] for _, n in w["layout"]["space"]]), r"a channel in no group"),
        (lambda w: w["layout"].update(unit=[[0, 3]]), r"not one number for each channel"),
        (lambda w: w["layout"]["wide"][0].__setitem__(2, [[1, 2**21], [1, 2**21]]), r"more than 4,194,304 positions"),
        (lambda w: w["layout"]["wide"][0].__setitem__(2, [[2**20, 4]]), r"a channel that is not listed"),
        (lambda w: w["layout"]["wide"][0].__setitem__(2, w["layout"]["wide"][0][2] * 2), r"the wide 'first\.weight'"),
        (lambda w: w.update(carrier="norm"), r"what is at 'first\..*' was made as 'norm\._extra_state'"),
        (lambda w: w["layout"].update(grouped={"depth.weight": [0, 1]}), r"0 is no number of channels"),
    ],
)  # fmt: skip
def test_a_record_that_does_not_fit(giant: nn.Module, tmp_path: Path, change: Change, message: str) -> None:
    state = giant.state_dict()
    content = decode_record(state[RECORD], RECORD)
    content.pop("format")
    change(content["width"])
    state[RECORD] = encode_record(content)
    torch.save(state, tmp_path / "giant.pt")
    with pytest.raises(CheckpointError, match=message):
        nbcompile.load(tmp_path / "giant.pt")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("head.parametrizations.weight.original", torch.zeros(5, 3), r"the wide 'head\.weight' has shape \(5, 3\)"),
        ("norm.wide_running_mean", torch.zeros(3), r"the wide 'norm\.wide_running_mean' needs shape \(25,\)"),
        ("norm.wide_running_mean", None, r"the wide 'norm\.wide_running_mean' needs .*; the file has nothing"),
        ("head.parametrizations.weight.original", None, r"lacks 'head\.weight'"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(
    giant: nn.Module, tmp_path: Path, key: str, value: Tensor | None, message: str
) -> None:
    state = {k: v for k, v in giant.state_dict().items() if k != key} | ({} if value is None else {key: value})
    torch.save(state, tmp_path / "giant.pt")
    with pytest.raises(CheckpointError, match=message):
        nbcompile.load(tmp_path / "giant.pt")


def test_a_damaged_record_is_not_needed_where_the_giant_is_at_hand(giant: nn.Module, tmp_path: Path) -> None:
    state = giant.state_dict()
    state[RECORD] = state[RECORD].clone()
    state[RECORD][-5] += 1
    torch.save(state, tmp_path / "giant.pt")
    with pytest.raises(CheckpointError, match="the checksum of the record"):
        nbcompile.load(tmp_path / "giant.pt")
    same_at_all_widths(nbcompile.load(tmp_path / "giant.pt", model=widen(network(), X)), giant)
    other = widen(network(), X, factors=(1, 3))
    with pytest.raises(CheckpointError, match="the weights do not fit Net"):
        nbcompile.load(tmp_path / "giant.pt", model=other)
    with pytest.raises(CheckpointError, match=r"^the loaded giant in width has another 'first\.weight': widen the"):
        other.load_state_dict(giant.state_dict())


def test_a_giant_that_was_changed_by_hand(giant: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nbcompile.save(giant, tmp_path / "giant.pt")
    assert not caplog.messages
    forward = giant.forward
    giant.forward = lambda x: forward(x) * 2  # type: ignore[method-assign]
    nbcompile.save(giant, tmp_path / "giant.pt")
    assert any("changed by hand after it was made" in said for said in caplog.messages)


def test_verbs_that_are_not_for_it(giant: nn.Module, tmp_path: Path) -> None:
    refused: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (PreconditionError, "PLT: Net is a giant in width: it has no slopes", lambda: nbcompile.PLT(giant, 5)),
        (PreconditionError, "collapse_: Net is a giant in width: weight space is", lambda: nbcompile.collapse_(giant)),
        (PreconditionError, "expand: Net is a giant in width: expand the network", lambda: nbcompile.expand(giant)),
        (PreconditionError, "export: Net is a giant in width: export what",
         lambda: nbcompile.export(giant, tmp_path / "giant.onnx")),
        (VerificationError, "verify: the candidate is a giant in width: fuse it first",
         lambda: nbcompile.verify(network(), giant, X)),
        (UsageError, "widen: the network is a giant in width already", lambda: widen(giant)),
    ]  # fmt: skip
    for kind, message, call in refused:
        with pytest.raises(kind, match=f"^{re.escape(message)}"):
            call()
    assert not [*tmp_path.iterdir()]
    tiny = nbcompile.fuse(giant)
    assert nbcompile.verify(giant, tiny).passed
    with torch.no_grad():
        tiny.get_parameter("head.weight").mul_(1.1)
    assert not nbcompile.verify(giant, tiny).passed


def test_widths_that_no_group_can_take() -> None:
    with pytest.raises(
        PreconditionError,
        match=r"no factor makes a group of channels a whole step wider$",
    ):
        widen(network(), X, factors=(1, 1.01), inner=(1,))


class Cut(nn.Module):
    """Its number of channels cuts what it is given, in it and in a part."""

    def __init__(self, part: bool = True) -> None:
        super().__init__()
        self.kept = 6 if part else 3
        if part:
            self.first, self.second, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(3, 5, 1)
            self.cut = Cut(part=False)

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "cut"):
            return x[:, : self.kept]
        y = self.first(x).relu()
        y = torch.cat([y, self.second(y)], 1)[:, : self.kept]
        out: Tensor = self.last(self.cut(y)).mean((2, 3))
        return out


def test_numbers_that_modules_keep(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Cut().eval()
    giant = widen(model, X)
    with at_width(giant, "widest"):
        assert (giant.kept, giant.get_submodule("cut").kept) == (17, 9)
        torch.testing.assert_close(giant(X), model(X))
    assert (giant.kept, giant.get_submodule("cut").kept) == (6, 3)
    nbcompile.save(giant, tmp_path / "giant.pt")
    read = nbcompile.load(tmp_path / "giant.pt")
    assert giant_cost(read) is None, "what was read has the numbers of its own width in its graph"
    spent = giant_cost(giant)
    assert spent is not None
    assert spent.macs > cost(model, X).macs
    assert torch.equal(nbcompile.fuse(read)(X), giant(X))
    same_at_all_widths(nbcompile.load(tmp_path / "giant.pt", model=Cut()), giant)


def test_statistics_that_all_widths_share(tmp_path: Path) -> None:
    giant = widen(network(), X, shared_statistics=True)
    y = giant(X)
    assert torch.equal(y, network()(X))
    giant.train()
    own, wide = (giant.get_buffer(f"norm.{kind}running_mean") for kind in ("", "wide_"))
    before = own.clone()
    with at_width(giant, "widest"):
        giant(5 + X)
    assert not torch.equal(own, before)
    places = widths_of(giant).layout.own[("norm.running_mean", 0)]  # type: ignore[index, union-attr]
    assert torch.equal(own, wide[places])
    giant(X)
    assert not torch.equal(own, wide[places])
    with at_width(giant, "widest"):
        assert torch.equal(wide[places], own)
    torch.optim.swa_utils.update_bn([X, X + 1], giant)
    kept = own.clone()
    nbcompile.save(giant.eval(), tmp_path / "giant.pt")
    read = nbcompile.load(tmp_path / "giant.pt", model=widen(network(), X))
    assert widths_of(read).shared  # type: ignore[union-attr]
    assert torch.equal(nbcompile.fuse(read).get_buffer("norm.running_mean"), kept)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, context: Any = None) -> None:
    x = torch.randn(4, 3, 7, 5, generator=torch.Generator().manual_seed(seed))
    y = torch.randint(5, (4,), generator=torch.Generator().manual_seed(seed))
    for width in ("own", "random"):
        with at_width(model, width, rng=random.Random(seed)):
            with context or torch.autocast("cpu", enabled=False):
                loss = nn.functional.cross_entropy(model(x), y)
            assert loss.isfinite()
            loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def check_fused(model: nn.Module) -> None:
    tiny, original = nbcompile.fuse(model), network()
    original.load_state_dict(tiny.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(original(X), copy.deepcopy(model).eval()(X))


@pytest.fixture
def _clean_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")  # another test turned torch's caches off
@pytest.mark.usefixtures("_clean_compiler")
def test_torch_compile_compiles_its_own_width_once(giant: nn.Module) -> None:
    graphs = []

    def backend(graph: Any, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph

    eager = copy.deepcopy(giant)
    compiled = cast(nn.Module, torch.compile(giant.train(), backend=backend))
    optimizers = sgd(giant), sgd(eager.train())
    for seed in range(4):
        step(compiled, optimizers[0], seed)
        step(eager, optimizers[1], seed)
    assert len(graphs) == 1
    for (key, found), wanted in zip(giant.state_dict().items(), eager.state_dict().values(), strict=True):
        torch.testing.assert_close(found, wanted, msg=key)
    check_fused(compiled)


def test_amp(giant: nn.Module) -> None:
    optimizer = sgd(giant.train())
    for seed in range(3):
        step(giant, optimizer, seed, torch.autocast("cpu", torch.bfloat16))
    assert {p.dtype for p in giant.parameters()} == {torch.float32}
    check_fused(giant.eval())


def test_averages(giant: nn.Module) -> None:
    averages = [ModelEmaV3(giant, decay=0.7), AveragedModel(giant, use_buffers=True)]
    optimizer = sgd(giant.train())
    for seed in range(3):
        step(giant, optimizer, seed)
        averages[0].update(giant)
        averages[1].update_parameters(giant)  # type: ignore[operator]
    for average in averages:
        check_fused(cast(nn.Module, average.module).eval())
        held, live = widths_of(cast(nn.Module, average.module)), widths_of(giant)
        assert held is not None
        assert live is not None
        assert torch.equal(held.record, live.record)


def test_resuming_is_bit_identical(giant: nn.Module) -> None:
    optimizer, file = sgd(giant.train()), io.BytesIO()
    for seed in range(4):
        if seed == 2:
            torch.save({"model": giant.state_dict(), "optimizer": optimizer.state_dict()}, file)
        step(giant, optimizer, seed)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = widen(network(), X).train()
    resumed.load_state_dict(saved["model"])
    optimizer = sgd(resumed)
    optimizer.load_state_dict(saved["optimizer"])
    for seed in range(2, 4):
        step(resumed, optimizer, seed)
    for (key, found), wanted in zip(resumed.state_dict().items(), giant.state_dict().values(), strict=True):
        assert torch.equal(found, wanted), key


@pytest.mark.parametrize("method", ["double", "bfloat16"])
def test_moved_to_another_dtype(giant: nn.Module, method: str) -> None:
    getattr(giant, method)()
    x = X.to(next(giant.parameters()).dtype)
    tiny = nbcompile.fuse(giant)
    assert torch.equal(tiny(x), giant(x))
    with at_width(giant, "widest"):
        assert giant(x).isfinite().all()
