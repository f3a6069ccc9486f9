"""Networks whose top cannot be traced, or whose parts cannot: expanded by rules, and contracted back."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import nbcompile
from nbcompile import zoo
from nbcompile.core.blocks import sites
from nbcompile.core.cost import cost
from nbcompile.core.errors import CheckpointError, PreconditionError, UsageError
from nbcompile.core.example import TensorSpec, origin_of
from nbcompile.core.numerics import relative_error
from nbcompile.testing import scramble_
from tests.slow import one_in

X = torch.randn(2, 4, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
IMAGES = [torch.rand(3, 24, 32), torch.rand(3, 32, 20)]


def giant_of(model: nn.Module, inputs: Any, where: Any = "all", **options: Any) -> nn.Module:
    """Expanded, with random norms and slopes of 1."""
    giant = scramble_(nbcompile.expand(model, inputs, where=where, **options), seed=1)
    for block in sites(giant).values():
        block.slope.fill_(1)
    return giant.eval()


def check_way_back(model: nn.Module, giant: nn.Module, inputs: tuple[Any, ...], limit: float = 1e-12) -> nn.Module:
    """The tiny network is the original's: class, keys, shapes, cost; it computes what the giant does."""
    tiny = nbcompile.fuse(giant)
    assert type(tiny) is type(model)
    shapes = [(key, value.shape) for key, value in model.state_dict().items()]
    assert [(key, value.shape) for key, value in tiny.state_dict().items()] == shapes
    assert cost(tiny) == cost(model, inputs)
    taken = copy.deepcopy(model).eval()
    taken.load_state_dict(tiny.state_dict())
    with torch.no_grad():
        assert relative_error(tiny(*inputs), giant(*inputs)) <= limit
        assert relative_error(taken(*inputs), tiny(*inputs)) == 0
    return tiny


class Block(nn.Module):
    """Two sites, each followed by its norm, with optional parameters; what else happens is given by name."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b, self.nb = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.how = how

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = F.relu(self.na(self.a(x)))
        if mask is not None:
            y = y * mask
        if self.how == "branch" and y.sum() > 1e9:
            return self.b(y)  # type: ignore[no-any-return]
        return F.relu(self.nb(self.b(y)))


class Top(nn.Module):
    """Control flow around a block, which is used in a way given by name."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.block, self.how = Block(how), how

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        y: Tensor = self.block(x)
        match self.how:
            case "twice":
                y = y + self.block(2 * x)
            case "both ways":
                y = y + self.block(x, x)
            case "passed by":
                y = y + self.block.na(self.block.a(x))
            case "layer read":
                y = y + self.block.a(x)
            case "norm shared":
                y = y + self.block.na(x)
            case "mean read":
                y = y + self.block.na.running_mean.view(4, 1, 1)
        return y


def forms(model: nn.Module) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {name: (block.spec.inner, block.spec.absorbers) for name, block in sites(model).items()}


@pytest.mark.parametrize("how", ["", "twice"])
@pytest.mark.parametrize("preserve", [False, True])
def test_a_piece_proves_who_takes_the_shift(how: str, preserve: bool) -> None:
    model = scramble_(Top(how)).double()
    giant = giant_of(model, X, preserve=preserve)
    assert forms(giant) == {
        "block.a": ("norm", ("block.na.running_mean",)),
        "block.b": ("norm", ("block.nb.running_mean",)),
    }
    check_way_back(model, giant, (X,))


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        ("both ways", ()),
        ("passed by", ()),
        ("layer read", ()),
        ("norm shared", ()),
        ("mean read", ("block.b",)),
        ("branch", ()),  # only one of two paths was seen
    ],
)
def test_without_proof_there_are_scales(how: str, kept: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    model = scramble_(Top(how)).double()
    with caplog.at_level(logging.WARNING, "nbcompile"):
        giant = giant_of(model, X)
    assert [name for name, form in forms(giant).items() if form[0] == "norm"] == list(kept)
    assert {form for name, form in forms(giant).items() if name not in kept} == {("scale", ())}
    assert "per-channel scales instead of norms" in caplog.text
    check_way_back(model, giant, (X,))


class Inside(nn.Module):
    """Can be traced but for its second part, which may share a layer with the first."""

    def __init__(self, shared: str = "") -> None:
        super().__init__()
        self.first, self.second = Block(), Top()
        for name in shared.split():
            setattr(self.second.block, name, getattr(self.first, name))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))  # type: ignore[no-any-return]


def test_layers_inside_what_is_opaque_are_candidates() -> None:
    model = scramble_(Inside()).double()
    giant = giant_of(model, X)
    names = ["first.a", "first.b", "second.block.a", "second.block.b"]
    assert [name for name, form in forms(giant).items() if form[0] == "norm"] == names
    check_way_back(model, giant, (X,))
    assert list(sites(nbcompile.expand(model, X, where=["second.*"]))) == names[2:]


@pytest.mark.parametrize("shared", ["a", "na", "a na"])
def test_what_is_read_inside_an_opaque_module_takes_no_shift(shared: str) -> None:
    model = scramble_(Inside(shared)).double()
    giant = giant_of(model, X)
    assert forms(giant)["first.a"] == ("scale", ())
    assert forms(giant)["first.b"][0] == "norm"
    check_way_back(model, giant, (X,))


class Detector(nn.Module):
    """A list of images of any size in, a list of dicts with as many boxes as score high out."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = zoo.dscnn(in_channels=3).features
        self.head = nn.ModuleList([nn.Conv2d(16, 5, 1), nn.Conv2d(16, 5, 3, padding=1)])

    def forward(self, images: list[Tensor], scales: dict[str, Tensor] | None = None) -> list[dict[str, Tensor]]:
        sizes = [tuple(image.shape[-2:]) for image in images]
        resized = [F.interpolate(image[None], (16, 16)) for image in images]
        features = self.backbone(torch.cat(resized))
        maps = sum(layer(features) for layer in self.head)
        found = []
        for (height, width), one in zip(sizes, maps.flatten(2), strict=True):
            boxes = one[:4].T * torch.tensor([height, width, height, width], dtype=one.dtype)
            found.append({"boxes": boxes[one[4] > 0], "scores": one[4][one[4] > 0]})
        if scales is not None:
            found = [{key: value * scales["all"] for key, value in one.items()} for one in found]
        return found


def detector() -> nn.Module:
    return scramble_(Detector().double())


@pytest.mark.parametrize("scaled", one_in(2, [False, True]))
def test_a_detector_is_expanded_and_comes_back(scaled: bool) -> None:
    model = detector()
    inputs: tuple[Any, ...] = ([image.double() for image in IMAGES],)
    inputs += ({"all": torch.full((1,), 2.0, dtype=torch.float64)},) if scaled else ()
    giant = giant_of(model, inputs, where="uniform:0.5")
    assert {form[0] for form in forms(giant).values()} == {"norm"}
    known = origin_of(giant)
    assert known is not None
    assert known.inputs[0] == [TensorSpec((3, 24, 32), torch.float64), TensorSpec((3, 32, 20), torch.float64)]
    tiny = check_way_back(model, giant, inputs)
    checked = nbcompile.verify(giant, tiny, inputs=[inputs])
    assert checked.passed, checked


def test_a_detectors_file_needs_its_code(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "nbcompile"):
        giant = nbcompile.expand(detector(), (IMAGES,), where="first:1")
    assert "files of this Detector will need its code (--model, or load(path, model=...))" in caplog.text
    nbcompile.save(giant, tmp_path / "giant.pt")
    with pytest.raises(CheckpointError, match="cannot be read without the model's code"):
        nbcompile.load(tmp_path / "giant.pt")
    back = nbcompile.load(tmp_path / "giant.pt", model=detector())
    assert list(back.state_dict()) == list(giant.state_dict())
    assert origin_of(back) == origin_of(giant)


def test_a_list_of_images_stands_inside() -> None:
    with pytest.raises(PreconditionError, match="Detector does not run on the example input: "):
        nbcompile.expand(detector(), IMAGES)
    with pytest.raises(UsageError, match=r"must be a tensor or a tuple of tensors, not \(Tensor, str\)"):
        nbcompile.expand(detector(), ([IMAGES[0], "image"],))
    with pytest.raises(UsageError, match=r"must be a tensor or a tuple of tensors, not \(nothing\)"):
        nbcompile.expand(detector(), ([],))
    with pytest.raises(UsageError, match=r"^example_input is a dict, and inputs are given by position: give a tuple"):
        nbcompile.expand(detector(), {"images": IMAGES[0]})  # type: ignore[arg-type]


class Odd(nn.Module):
    """Five layers of one pattern; all but the last are odd in a way of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.tied, self.twin = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4), nn.Linear(4, 4)
        self.read, self.kept, self.plain = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.hooked, self.strange, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.twin.weight = self.tied.weight
        self.outside = [self.kept]
        self.hooked.register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.frozen, self.tied, self.twin, self.read, *self.outside, self.plain, self.hooked):
            x = F.relu(layer(x))
        y: Tensor = self.out(F.mish(self.strange(x)))
        return y * self.read.weight.sum() if self.training else y


def test_a_rule_passes_over_odd_layers() -> None:
    model = Odd().double()
    x = torch.randn(3, 4, dtype=torch.float64)
    giant = giant_of(model, x, where="all")
    assert list(sites(giant)) == ["plain"]
    check_way_back(model, giant, (x,))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("frozen", "it is frozen, so its block would stay random"),
        ("tied", r"it shares a parameter with 'twin\.weight'"),
        ("read", "other code reads its weight directly"),
        ("hooked", "it carries hooks, which would be lost"),
        ("strange", r"the activation beside it, 'mish' \(mish\), cannot be linearised"),
        ("kept", "the model still calls the old layer"),
    ],
)
def test_to_name_an_odd_layer_is_an_error(name: str, reason: str) -> None:
    with pytest.raises(PreconditionError, match=f"'{name}' (cannot be expanded|was replaced).*({reason})"):
        nbcompile.expand(Odd(), torch.randn(3, 4), where=[name])


def test_where_all_layers_are_odd_the_first_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.PReLU())
    message = (
        r"no layer of this network can be expanded; not '0': the activation beside it, '1' \(PReLU\), cannot be linea"
    )
    with pytest.raises(PreconditionError, match=message):
        nbcompile.expand(model, X.float())
    with pytest.raises(UsageError, match=r"no pattern of layers to expand is in this network; .*none"):
        nbcompile.expand(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), X.float())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("ssdlite320_mobilenet_v3_large", "inverted-residual"),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", "inverted-residual"),
        ("retinanet_resnet50_fpn", "residual-bottleneck"),
        ("keypointrcnn_resnet50_fpn", "residual-bottleneck"),
        ("ssd300_vgg16", "conv-act"),
    ],
)
def test_torchvisions_detectors(name: str, pattern: str) -> None:
    """Compared where the order of equal scores of an untrained network plays no part."""
    sizes = {} if name.startswith("ssd") else {"min_size": 64, "max_size": 96}
    limits = {"box_detections_per_img": 2} if "rcnn" in name else {}
    builder = getattr(torchvision.models.detection, name)
    model = scramble_(builder(weights=None, weights_backbone=None, **sizes, **limits)).double().eval()
    images = [image.double() for image in IMAGES]
    giant = giant_of(model, (images,), where="uniform:0.5", ratio=1)
    assert {block.spec.pattern for block in sites(giant).values()} == {pattern}
    assert all(block.spec.inner == ("norm" if pattern != "conv-act" else "bias") for block in sites(giant).values())
    tiny = nbcompile.fuse(giant)
    shapes = [(key, value.shape) for key, value in model.state_dict().items()]
    assert [(key, value.shape) for key, value in tiny.state_dict().items()] == shapes
    model.load_state_dict(tiny.state_dict())
    with torch.no_grad():
        batch = model.transform(images)[0].tensors
        assert relative_error(tiny.backbone(batch), giant.backbone(batch)) <= 1e-12
