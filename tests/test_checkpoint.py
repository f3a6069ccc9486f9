"""Files of ours: what is saved is what is loaded, bit by bit, with the user's class and without it."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import nbcompile
from nbcompile import zoo
from nbcompile.core.blocks import sites
from nbcompile.core.errors import CaptureError, CheckpointError, PreconditionError, UsageError
from nbcompile.core.example import origin_of
from nbcompile.testing import scramble_
from tests.slow import one_in


def conv_bn(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Small(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, 2)
        self.body = conv_bn(8, 8)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.body(self.stem(x)).mean((2, 3)))
        return z


class Aliased(Small):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.body
        self.conv = self.stem[0]


class Shared(Small):
    """One module called twice."""

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.body(self.body(self.stem(x))).mean((2, 3)))
        return z


class Buffers(Small):
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(8, 1, 1), persistent=False)
        self.register_buffer("kept", torch.rand(8, 1, 1))
        self.constant = torch.rand(1, 8, 1, 1)
        self.unread = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self.stem(x)) * self.scale + self.kept + self.constant
        z: Tensor = self.head(y.mean((2, 3))) + torch.tensor(0.5)
        return z


class Tied(Small):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5, bias=False)
        self.second = nn.Linear(5, 5, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.second(self.first(super().forward(x)))
        return z


class Direct(Small):
    """Reads weights and statistics of layers that it calls, too."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.point(self.body(self.stem(x))))
        y = F.conv2d(y, self.point.weight) - self.norm.get_buffer("running_mean").view(1, -1, 1, 1)
        z: Tensor = self.head(y.mean((2, 3)))
        return z


class Keyword(Small):
    def forward(self, x: Tensor, *, scale: float = 2.0, skip: bool = False) -> Tensor:
        return super().forward(x) if skip else super().forward(x) * scale


class TwoInputs(Small):
    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"sum": super().forward(x) + super().forward(y), "first": super().forward(x)}


class Attention(Small):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.body(self.stem(x)).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        z: Tensor = self.head(mixed.mean(1))
        return z


class Recurrent(Small):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 8, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(self.body(self.stem(x)).flatten(2).transpose(1, 2))
        z: Tensor = self.head(y[:, -1, :8])
        return z


class Odd(nn.Module):
    """Children that are no Python names."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("my-stem", conv_bn(3, 8))
        self.add_module("2", conv_bn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.get_submodule("2")(self.get_submodule("my-stem")(x)).flatten(1)
        return z


MODELS = [Small, Aliased, Shared, Buffers, Tied, Direct, Keyword, TwoInputs, Attention, Recurrent, Odd]


def example(model: nn.Module, size: int = 16) -> tuple[Tensor, ...]:
    return tuple(torch.randn(2, 3, size, size) for _ in range(2 if isinstance(model, TwoInputs) else 1))


def linear(giant: nn.Module) -> nn.Module:
    for block in sites(giant).values():
        block.slope.fill_(1.0)
    return giant


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        made = model.eval()(*inputs)
    return list(made.values()) if isinstance(made, dict) else [made]


def same(one: nn.Module, other: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(outputs(one, inputs), outputs(other, inputs), strict=True))


def equal_states(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(mine[k], theirs[k]) for k in mine)


def check_round_trip(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, where: str = "uniform:0.5") -> None:
    """save → load → the same; twice over; → fuse → the original takes it back; and into the user's own class."""
    giant = linear(nbcompile.expand(model, inputs, where=where, preserve=True))
    nbcompile.save(giant, path)
    loaded = nbcompile.load(path)
    assert equal_states(loaded, giant)
    assert same(loaded, giant, inputs)
    nbcompile.save(loaded, path)
    loaded = nbcompile.load(path)
    assert equal_states(loaded, giant)
    assert same(loaded, giant, inputs)

    tiny, ours = nbcompile.fuse(loaded), nbcompile.fuse(giant)
    assert equal_states(tiny, ours)
    assert same(tiny, ours, inputs)
    own = nbcompile.load(path, model=model)
    assert own is model
    assert equal_states(own, giant)
    assert same(own, giant, inputs)
    fused = nbcompile.fuse(own)
    assert type(fused) is type(model)
    fused.load_state_dict(tiny.state_dict())
    assert same(fused, tiny, inputs)

    nbcompile.save(tiny, path)
    again = nbcompile.load(path)
    assert equal_states(again, tiny)
    assert same(again, tiny, inputs)


@pytest.mark.parametrize("cls", one_in(2, MODELS))
def test_round_trip(cls: type[nn.Module], tmp_path: Path) -> None:
    model = scramble_(cls())
    check_round_trip(model, example(model), tmp_path / "a.pt", "all")


@pytest.mark.parametrize("cls", [Aliased, Tied, Buffers, Direct])
def test_the_fused_stand_in_is_strict_for_the_original(cls: type[nn.Module], tmp_path: Path) -> None:
    model = cls()
    inputs = example(model)
    nbcompile.save(linear(nbcompile.expand(model, inputs, where="all")), tmp_path / "a.pt")
    tiny = nbcompile.fuse(nbcompile.load(tmp_path / "a.pt"))
    assert list(tiny.state_dict()) == list(model.state_dict())
    for constant in ("scale", "constant"):  # not in a state_dict: the file has them from the model that was expanded
        assert torch.equal(getattr(tiny, constant, torch.zeros(())), getattr(model, constant, torch.zeros(())))
    model.load_state_dict(tiny.state_dict())
    assert same(model, tiny, inputs)
    assert len(list(tiny.parameters())) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (partial(zoo.mobilenetv2_tiny, num_classes=7), 48),
        *(
            pytest.param(partial(build, *args), size, marks=pytest.mark.slow)
            for build, args, size in [
                (torchvision.models.mobilenet_v3_small, (), 48),
                (torchvision.models.shufflenet_v2_x0_5, (), 40),
                (timm.create_model, ("convnext_atto",), 40),
                (timm.create_model, ("tf_mobilenetv3_small_minimal_100",), 40),
                (zoo.mcunet, (7,), 48),
                (torchvision.models.resnet18, (), 40),
                (torchvision.models.swin_t, (), 64),
                (timm.create_model, ("mobilenetv3_small_050",), 48),
                (timm.create_model, ("tf_efficientnet_b0",), 40),
                (timm.create_model, ("deit_tiny_patch16_224",), 224),
            ]
        ),
    ],
    ids=lambda value: (value.args or (value.func.__name__,))[0] if isinstance(value, partial) else None,
)
@pytest.mark.slow
def test_real_networks(build: Callable[[], nn.Module], size: int, tmp_path: Path) -> None:
    model = scramble_(build())
    check_round_trip(model, (torch.randn(2, 3, size, size),), tmp_path / "a.pt", "first:2")


@pytest.mark.slow
def test_auxiliary_heads_are_kept(tmp_path: Path) -> None:
    model = scramble_(torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False))
    x = torch.randn(2, 3, 64, 64)
    giant = linear(nbcompile.expand(model, x, where=["inception3a.branch1.conv"]))
    nbcompile.save(giant, tmp_path / "a.pt")
    tiny = nbcompile.fuse(nbcompile.load(tmp_path / "a.pt"))
    assert list(tiny.state_dict()) == list(model.state_dict())
    model.load_state_dict(tiny.state_dict())
    assert same(model, tiny, (x,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    model = Small().to(dtype)
    x = torch.randn(2, 3, 8, 8, dtype=dtype)
    giant = linear(nbcompile.expand(model, x, where="all"))
    nbcompile.save(giant, tmp_path / "a.pt")
    loaded = nbcompile.load(tmp_path / "a.pt")
    assert equal_states(loaded, giant)
    assert same(loaded, giant, (x,))


def test_weights_cast_after_expanding(tmp_path: Path) -> None:
    giant = linear(nbcompile.expand(Small(), torch.randn(2, 3, 8, 8), where="all")).bfloat16()
    torch.save({"state_dict": {k: v.bfloat16() for k, v in giant.state_dict().items()}}, tmp_path / "a.pt")
    loaded = nbcompile.load(tmp_path / "a.pt")
    assert same(loaded, giant, (torch.randn(2, 3, 8, 8, dtype=torch.bfloat16),))


def test_giant_as_model(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 16, 16)
    trained = linear(nbcompile.expand(Small(), x, where="all"))
    nbcompile.save(trained, tmp_path / "a.pt")
    giant = nbcompile.expand(Small(), x, where="all")
    assert nbcompile.load(tmp_path / "a.pt", model=giant) is giant
    assert equal_states(giant, trained)


def test_a_giant_that_was_expanded_in_another_way_is_refused(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 16, 16)
    nbcompile.save(nbcompile.expand(Small(), x, where="all", block="basic"), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt: the loaded block differs from this one in block: expand"):
        nbcompile.load(tmp_path / "a.pt", model=nbcompile.expand(Small(), x, where="all"))


@pytest.mark.parametrize("damage", ["dropped", "changed"])
def test_the_expanded_model_needs_no_records(damage: str, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 16, 16)
    trained = nbcompile.expand(Small(), x, where="all")
    state = trained.state_dict()
    for key in [k for k in state if k.endswith("_extra_state")]:
        if damage == "dropped":
            del state[key]
        else:
            state[key][60] += 1
    torch.save({"model": state}, tmp_path / "a.pt")
    wanted = (
        r"describe no model.*--model" if damage == "dropped" else r"checksum of the record.*load\(path, model=giant\)"
    )
    with pytest.raises(CheckpointError, match=wanted):
        nbcompile.load(tmp_path / "a.pt")
    giant = nbcompile.expand(Small(), x, where="all")
    nbcompile.load(tmp_path / "a.pt", model=giant)
    assert equal_states(giant, trained)


def test_a_new_head_is_rebuilt_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(2, 3, 16, 16)
    giant = linear(nbcompile.expand(Small(), x, where="all"))
    giant.head = nn.Linear(8, 11)
    torch.save(giant.state_dict(), tmp_path / "a.pt")
    with caplog.at_level(logging.WARNING, "nbcompile"):
        loaded = nbcompile.load(tmp_path / "a.pt")
    assert "'head' was rebuilt to (11, 8), as the file holds it; the record has (5, 8)" in caplog.text
    assert same(loaded, giant, (x,))
    assert outputs(nbcompile.fuse(loaded), (x,))[0].shape == (2, 11)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")  # torch, of a file with a sparse tensor
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("head.bias"), r"lacks 'head\.bias' \(1 such\)"),
        (lambda s: s.update({"neck.weight": torch.zeros(3)}), r"has an unknown 'neck\.weight' \(1 such\)"),
        (
            lambda s: s.update({"body.1.bias": torch.zeros(9)}),
            r"do not fit the recorded model: size mismatch for body\.1\.bias",
        ),
        (
            lambda s: s.update({"body.0.last.weight": torch.zeros(3)}),
            r"do not fit.*size mismatch for body\.0\.last\.weight",
        ),
        (lambda s: s.update({"head.weight": torch.zeros(5, 8).to_sparse()}), r"'head\.weight' is no plain tensor"),
        (lambda s: s.update({"head.weight": torch.zeros(5, 8, device="meta")}), r"'head\.weight' is no plain tensor"),
        (
            lambda s: s.update({"head.weight": torch.zeros(1, 1).expand(2**13, 2**13)}),
            r"'head\.weight' is no plain tensor",
        ),
    ],
)
def test_other_layers_are_refused_by_name(change: Callable[..., object], message: str, tmp_path: Path) -> None:
    state = nbcompile.expand(Small(), torch.randn(2, 3, 16, 16), where="all").state_dict()
    change(state)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        nbcompile.load(tmp_path / "a.pt")


def test_blocks_where_the_users_class_has_no_layer(tmp_path: Path) -> None:
    nbcompile.save(nbcompile.expand(Small(), torch.randn(2, 3, 16, 16), where="all"), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"an expansion block at 'stem\.0', where Odd has no layer"):
        nbcompile.load(tmp_path / "a.pt", model=Odd())


def test_blocks_of_another_layer(tmp_path: Path) -> None:
    nbcompile.save(nbcompile.expand(Small(), torch.randn(2, 3, 16, 16), where="all"), tmp_path / "a.pt")
    model = Small()
    model.stem[0] = nn.Conv2d(3, 8, 5, 2, 2, bias=False)
    with pytest.raises(
        CheckpointError, match=r"block at 'stem\.0' replaced another layer than the Conv2d\(3, 8, kernel_size=\(5"
    ):
        nbcompile.load(tmp_path / "a.pt", model=model)
    assert not sites(model)


def test_plain_weights_need_the_model(tmp_path: Path) -> None:
    model = Small().eval()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"describe no model \(the first is 'stem\.0\.weight'\): say which it is"):
        nbcompile.load(tmp_path / "a.pt")
    loaded = nbcompile.load(tmp_path / "a.pt", model=Small())
    assert equal_states(loaded, model)
    with pytest.raises(CheckpointError, match=r"do not fit Odd: Missing key"):
        nbcompile.load(tmp_path / "a.pt", model=Odd())


def test_plain_network_remembers_its_inputs(tmp_path: Path) -> None:
    model = Small()
    nbcompile.save(model, tmp_path / "a.pt", torch.randn(2, 3, 16, 16))
    loaded = nbcompile.load(tmp_path / "a.pt")
    origin = origin_of(loaded)
    assert origin is not None
    assert origin.inputs[0].shape == (2, 3, 16, 16)
    assert not loaded.training
    own = nbcompile.load(tmp_path / "a.pt", model=Small())
    assert origin_of(own) == origin


class Untraceable(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class Foreign(Small):
    """Traces, but calls what no file may call."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).unsafe_chunk(1)[0]


@pytest.mark.parametrize("cls", [Untraceable, Foreign])
def test_what_cannot_be_described_is_said_at_once_and_read_with_the_model(
    cls: type[nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.randn(2, 3, 16, 16)
    with caplog.at_level(logging.WARNING, "nbcompile"):
        giant = linear(nbcompile.expand(cls(), x, where=["body.0"]))
    assert f"files of this {cls.__name__} will need its code (--model" in caplog.text
    nbcompile.save(giant, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"cannot be read without the model's code .*give the model \(--model"):
        nbcompile.load(tmp_path / "a.pt")
    loaded = nbcompile.load(tmp_path / "a.pt", model=cls())
    assert equal_states(loaded, giant)
    assert same(nbcompile.fuse(loaded), nbcompile.fuse(giant), (x,))


@pytest.mark.parametrize("name", ["graph", "code", "meta"])
@pytest.mark.parametrize("where", ["all", ["body.0"]])
def test_children_that_a_graph_module_cannot_have(name: str, where: str | list[str]) -> None:
    class Named(Small):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, conv_bn(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(getattr(self, name)(x))

    with pytest.raises(CaptureError, match=rf"Named has a child called '{name}', a name that .*: rename it"):
        nbcompile.expand(Named(), torch.randn(2, 3, 16, 16), where=where)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverged_weights_are_named(value: float, tmp_path: Path) -> None:
    giant = linear(nbcompile.expand(Small(), torch.randn(2, 3, 16, 16), where="all"))
    with torch.no_grad():
        sites(giant)["body.0"].last.get_parameter("weight")[0, 0, 0, 0] = value
    nbcompile.save(giant, tmp_path / "a.pt")
    with pytest.raises(PreconditionError, match=r"'body\.0\.last\.weight' holds NaN or Inf: training diverged"):
        nbcompile.fuse(nbcompile.load(tmp_path / "a.pt"))


def test_save_writes_torch_files_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"save writes torch's own format: name the file \.pt, not 'a\.safetensors'"):
        nbcompile.save(Small(), tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=r"the folder .*nowhere does not exist"):
        nbcompile.save(Small(), tmp_path / "nowhere" / "a.pt")


class Writes(nn.Module):
    """Writes in place, makes constants, and rounds sizes: all that a file may say of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.a(x)))
        y[:, :2] = y[:, :2] * 2
        y[:, 3].add_(1).mul_(torch.linspace(0.5, 1.0, 5))
        y += torch.arange(4.0).view(1, 4, 1, 1)
        y = F.normalize(F.leaky_relu_(y, 0.1)[:, torch.tensor([2, 1, 0, 3])], dim=1)
        z = torch.zeros(x.shape[0], 4, 1, 1)
        z.copy_(y.mean((2, 3), keepdim=True))
        y = F.interpolate(y, size=(round(y.shape[2] / 2) * 3, y.shape[3]))
        return self.b(y).sigmoid_() + z


def test_writes_and_constants_need_no_code(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = scramble_(Writes().eval())
    giant = nbcompile.expand(model, torch.randn(2, 3, 7, 5), where="all", preserve=True)
    assert not caplog.records
    nbcompile.save(giant, tmp_path / "giant.pt")
    x = torch.randn(3, 3, 7, 5)
    with torch.no_grad():
        torch.testing.assert_close(nbcompile.load(tmp_path / "giant.pt").eval()(x), model(x), rtol=0, atol=0)


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x.abs()).relu())
        return y


def test_a_giant_of_complex_inputs_is_read_again(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 7, 5, dtype=torch.complex64)
    giant = nbcompile.expand(Waves().eval(), x, where="all", preserve=True)
    nbcompile.save(giant, tmp_path / "giant.pt")
    with torch.no_grad():
        torch.testing.assert_close(nbcompile.load(tmp_path / "giant.pt").eval()(x), giant(x), rtol=0, atol=0)
