from collections import OrderedDict
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import nbcompile
from nbcompile.core.errors import CaptureError, PreconditionError
from nbcompile.core.tracing.capture import opaque
from nbcompile.core.tracing.compiled_piece import CompiledPiece
from nbcompile.core.tracing.pieces import assemble, pieces

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def found(model: nn.Module, *inputs: Any) -> list[str]:
    return [piece.name for piece in pieces(model, inputs or None)]


def conv(inputs: int = 3, outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.ReLU())


class Choice(nn.Module):
    """Control flow around its children, whatever they are."""

    def __init__(self, *children: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(children)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        for part in self.parts:
            x = part(x)
        return x


def test_a_model_that_can_be_traced_is_one_piece() -> None:
    model = nn.Sequential(conv(), conv())
    assert found(model) == found(model, X) == [""]
    assert found(nn.ReLU()) == [""]


@pytest.mark.parametrize("inputs", [(), (X,)])
def test_the_largest_parts_that_can_be_traced(inputs: tuple[Tensor, ...]) -> None:
    inside = Choice(conv(), nn.Sequential(nn.ReLU()), nn.Sequential(conv(), conv()))
    assert found(Choice(conv(), inside, nn.Conv2d(3, 3, 1)), *inputs) == [
        "parts.0",
        "parts.1.parts.0",
        "parts.1.parts.2",
    ]


@pytest.mark.parametrize("inputs", [(), (X,)])
def test_pieces_inside_what_is_opaque(inputs: tuple[Tensor, ...]) -> None:
    model = nn.Sequential(conv(), Choice(conv(), Choice(conv())))
    whole, *inner = pieces(model, inputs or None)
    assert list(opaque(whole.graph)) == ["1"]
    assert [piece.name for piece in (whole, *inner)] == ["", "1.parts.0", "1.parts.1.parts.0"]
    assert inner[0].graph.get_submodule("0") is model.get_submodule("1.parts.0.0")


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, flip: bool = False, hook: Any = None) -> Tensor:
        y: Tensor = self.conv(x)
        if mask is not None:
            y = y * mask
        return -y if flip else y


class Calling(nn.Module):
    """Calls its child in a way given by name, beside control flow."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.part, self.how = Optional(), how

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        match self.how:
            case "plain":
                return self.part(x)  # type: ignore[no-any-return]
            case "mask":
                return self.part(x, x)  # type: ignore[no-any-return]
            case "flip":
                return self.part(x=x, flip=True)  # type: ignore[no-any-return]
            case "twice":
                return self.part(x) + self.part(2 * x)  # type: ignore[no-any-return]
            case "both":
                return self.part(x) + self.part(x, x)  # type: ignore[no-any-return]
            case "object":
                return self.part(x, hook=print)  # type: ignore[no-any-return]
            case "passed by":
                return self.part(x) + self.part.conv(x)  # type: ignore[no-any-return]
        return x


@pytest.mark.parametrize(
    ("how", "tensors"), [("plain", ["x"]), ("mask", ["x", "mask"]), ("flip", ["x"]), ("twice", ["x"])]
)
def test_optional_parameters_are_as_they_are_used(how: str, tensors: list[str]) -> None:
    model = Calling(how).eval()
    (piece,) = pieces(model, (X,))
    assert piece.name == "part"
    assert [node.name for node in piece.graph.graph.find_nodes(op="placeholder")] == tensors
    if how != "twice":
        assert torch.equal(piece.graph(*[X] * len(tensors)), model(X))


@pytest.mark.parametrize("how", ["both", "object", "passed by"])
def test_refuses_what_is_called_in_several_ways_or_passed_by(how: str) -> None:
    with pytest.raises(CaptureError, match=r"Calling cannot be traced into a graph: .*test_pieces\.py:\d+ in forward"):
        pieces(Calling(how), (X,))


def test_without_inputs_a_part_is_called_as_in_a_run_that_was_guessed() -> None:
    (piece,) = pieces(Calling("mask"))
    assert (piece.name, [node.name for node in piece.graph.graph.find_nodes(op="placeholder")]) == (
        "part",
        ["x", "mask"],
    )


def test_a_part_that_the_run_did_not_call_is_a_piece_as_it_is_by_itself() -> None:
    """What has a default has it."""
    (piece,) = pieces(Calling("never"), (X,))
    assert (piece.name, [node.name for node in piece.graph.graph.find_nodes(op="placeholder")]) == ("part", ["x"])


class Structures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Body(), Head()

    def forward(self, x: Tensor) -> Any:
        if x.sum() > 1e9:
            return x
        return self.head(self.body(x), (3, 2.0, "sum"))


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(), conv()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.a(x)
        return OrderedDict([("low", y), ("high", self.b(y))])


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, features: dict[str, Tensor], how: tuple[int, float, str]) -> tuple[list[Tensor], dict[str, Any]]:
        n, scale, word = how
        made = [self.conv(y) * scale for y in features.values()]
        return made * n, {word: sum(made)}


def test_structures_of_tensors() -> None:
    model = Structures().eval()
    body, head = pieces(model, (X,))
    assert [node.name for node in head.graph.graph.find_nodes(op="placeholder")] == ["features_low", "features_high"]
    features = body.graph(X)
    (a, b, *_), sums = head.graph(*features.values())
    wanted, wanted_sums = model(X)
    assert torch.equal(a, wanted[0])
    assert torch.equal(b, wanted[1])
    assert torch.equal(sums["sum"], wanted_sums["sum"])
    assert found(model) == ["body", "head"]


def test_functions_count_as_layers() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.held.weight)

    assert found(Choice(Functional())) == ["parts.0"]


def test_a_shared_module_is_one_piece() -> None:
    part = conv()
    model = Choice(part, nn.ReLU(), part)
    assert found(model, X) == found(model) == ["parts.0"]


def test_parts_with_hooks_are_no_pieces() -> None:
    hooked = nn.Sequential(conv(), conv())
    hooked.register_forward_hook(lambda *_: None)
    assert found(Choice(hooked), X) == ["parts.0.0", "parts.0.1"]
    assert found(nn.Sequential(hooked), X) == ["", "0.0", "0.1"]
    assert found(hooked) == ["0", "1"]
    only = nn.Sequential(nn.Conv2d(3, 3, 1))
    only.register_forward_hook(lambda *_: None)
    with pytest.raises(CaptureError, match="nothing in Sequential can be captured: no part of it that holds a conv"):
        pieces(only)


def test_a_model_that_does_not_run() -> None:
    with pytest.raises(PreconditionError, match="Choice does not run on the example input: RuntimeError"):
        pieces(Choice(conv(5)), (X,))


def test_the_model_is_left_as_it_was() -> None:
    model = Choice(nn.Sequential(conv(), nn.BatchNorm2d(3), nn.Dropout()))
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    pieces(model, (X,))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("ssdlite320_mobilenet_v3_large", ["backbone", "head"]),
        (
            "fasterrcnn_mobilenet_v3_large_320_fpn",
            ["backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor"],
        ),
    ],
)
def test_detectors(name: str, wanted: list[str]) -> None:
    """Their parts: the whole chooses its way by sizes, and holds for those of the example only."""
    model = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None)
    assert found(model, [torch.rand(3, 48, 64), torch.rand(3, 64, 48)]) == wanted


class Listed(nn.Module):
    """Takes a list: as a graph, one tensor after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, images: list[Tensor], scale: float = 1.0) -> list[Tensor]:
        return [self.conv(image) * scale for image in images]


def test_a_whole_model_is_called_as_it_was() -> None:
    """One that takes tensors and nothing else is its graph; any other is dressed as itself."""
    listed, plain = Listed().eval(), conv().eval()
    for model, inputs in ((listed, ([X, X[:1]],)), (plain, (X,))):
        (piece,) = pieces(model, inputs)
        tree = assemble(model, {piece: piece.graph})
        assert isinstance(tree, CompiledPiece) is (model is listed)
        for got, wanted in zip(tree(*inputs), model(*inputs), strict=True):
            assert torch.equal(got, wanted)
    (piece,) = pieces(plain)
    assert assemble(plain, {piece: piece.graph}) is piece.graph


class AsksLayout(nn.Module):
    """Chooses by how its input lies in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = conv()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y + 1 if x.is_contiguous() else y * x.stride(1)


class Turned(nn.Module):
    """Reads a value, so that its parts are pieces; what these are called with is not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.part = conv(), AsksLayout()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x).transpose(2, 3)
        return self.part(y * float(y.max()))


def test_a_part_that_asks_how_its_input_lies_in_memory_is_no_piece() -> None:
    model = Turned().eval()
    assert found(model, X) == ["first", "part.inner"]
    fused = nbcompile.fuse(model, example_input=X)
    for x in (X, torch.randn(3, 3, 7, 5)):
        with torch.no_grad():
            torch.testing.assert_close(fused(x), model(x))
    assert found(AsksLayout(), X) == [""]  # by itself, the example tells
