import copy
import pickle

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn

from nbcompile.core.numerics import relative_error
from nbcompile.core.tracing.capture import capture
from nbcompile.core.tracing.compiled_piece import CompiledPiece
from nbcompile.core.tracing.pieces import assemble, pieces
from nbcompile.testing import scramble_

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Encoder(nn.Module):
    out_channels = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.stride = 7

    def forward(self, x: Tensor, flip: bool = False) -> Tensor:
        y: Tensor = self.conv(x)
        return -y if flip else y

    def embed(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale  # type: ignore[no-any-return]


class Net(nn.Module):
    """Uses its encoder by calls of two kinds, attributes, a method, a child of its, and by asking what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.again = self.encoder
        self.blocks = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.everything = False

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9 or not isinstance(self.encoder, Encoder):
            raise ValueError
        y: Tensor = self.blocks(self.encoder(x)) + self.again(x)
        if self.everything:
            y = y * self.encoder.stride + self.encoder(x, flip=True) * self.encoder.out_channels
            y = y + self.encoder.embed(x) * self.encoder.conv.out_channels
            for block in self.blocks[:1]:
                y = block(y) * len(self.blocks)
        return y


def compiled(model: nn.Module, change: bool = False) -> nn.Module:
    """Every piece replaced by its graph; with ``change`` the graph's layers are not the model's and give zeros."""
    tree = copy.deepcopy(model).eval()
    tree.everything = False  # type: ignore[assignment]
    found = pieces(tree, (X,))
    for piece in found if change else ():
        for name, layer in list(piece.graph.named_modules()):
            if isinstance(layer, nn.Conv2d):
                zero = copy.deepcopy(layer)
                nn.init.zeros_(zero.weight)
                piece.graph.set_submodule(name, zero)
    return assemble(tree, {piece: piece.graph for piece in found})


def run(model: nn.Module, everything: bool = True) -> Tensor:
    model.everything = everything  # type: ignore[assignment]
    with torch.no_grad():
        return model(X)  # type: ignore[no-any-return]


def test_the_function_stays_whatever_else_is_asked_of_a_module() -> None:
    model = Net().eval()
    made = compiled(model)
    assert type(made) is Net
    assert type(made.encoder) is CompiledPiece
    assert made.again is made.encoder
    for everything in (False, True):
        assert torch.equal(run(made, everything), run(model, everything))


def test_calls_go_to_the_graph_and_all_else_to_the_original() -> None:
    model = Net().eval()
    made = compiled(model, change=True)
    zero = model.encoder.conv.bias.view(4, 1, 1).expand(2, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(made.encoder(X), zero)
        assert torch.equal(made.encoder(X, flip=True), model.encoder(X, flip=True))
        assert torch.equal(made.encoder.embed(X), model.encoder.embed(X))
        assert torch.equal(made.encoder.conv(X), model.encoder.conv(X))


def test_the_original_is_no_part_of_the_tree() -> None:
    model = Net()
    made = compiled(model, change=True)
    assert {key.replace("compiled.", "") for key in made.state_dict()} < set(model.state_dict())
    assert "encoder.compiled.conv.weight" in made.state_dict()
    assert "encoder.compiled.scale" not in made.state_dict()  # the graph does not read it
    with pytest.raises(AttributeError, match=r"^'Encoder' object has no attribute 'absent'$"):
        made.encoder.absent  # noqa: B018
    assert not hasattr(made.encoder, "__absent__")


@pytest.mark.parametrize("how", ["copy", "pickle", "cast", "twice"])
def test_copies_and_casts_are_of_both(how: str) -> None:
    model = Net().eval()
    made = [compiled(model), compiled(model, change=True)]
    match how:
        case "copy":
            kept, made = made, copy.deepcopy(made)
            assert not {id(p) for m in kept for p in m.parameters()} & {id(p) for m in made for p in m.parameters()}
        case "pickle":
            made = pickle.loads(pickle.dumps(made))
        case "cast":
            made = [m.double().float() for m in made]
        case "twice":
            made = [compiled(m) for m in made]
    same, zero = made
    assert [type(m.encoder) for m in made] == [CompiledPiece] * 2
    assert "encoder.compiled.conv.weight" in same.state_dict()
    assert torch.equal(run(same), run(model))
    with torch.no_grad():
        assert torch.equal(zero.encoder(X), model.encoder.conv.bias.view(4, 1, 1).expand(2, 4, 8, 8))
        assert torch.equal(zero.encoder.embed(X), model.encoder.embed(X))
        assert same.double()(X.double()).dtype == torch.float64
        assert zero.double().encoder.embed(X.double()).dtype == torch.float64


def test_modes_are_of_both() -> None:
    made = compiled(Net())
    assert made.train().encoder._original.training
    assert not made.eval().encoder._original.training


def test_a_compiled_piece_can_be_traced_and_finds_its_graph() -> None:
    made = nn.Sequential(compiled(Net()).encoder)
    gm = capture(made, (X,))
    (node,) = gm.graph.find_nodes(op="call_module")
    assert gm.get_submodule(str(node.target)) is made[0].compiled.conv


class Choice(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) if x.sum() < 1e9 else x  # type: ignore[no-any-return]


def test_pieces_inside_pieces() -> None:
    """The inner ones are in the graph of the outer, too."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Choice(Encoder())).eval()
    made = compiled(model, change=True)
    assert isinstance(made, fx.GraphModule)
    inner = made.get_submodule("1.part")
    assert type(inner) is CompiledPiece
    with torch.no_grad():
        assert torch.equal(made(X)[0, :, 0, 0], model[1].part.conv.bias)
        assert torch.equal(compiled(model)(X), model(X))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_detectors(name: str) -> None:
    model = scramble_(getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None)).eval()
    images = [torch.rand(3, 48, 64), torch.rand(3, 64, 48)]
    tree = copy.deepcopy(model)
    made = assemble(tree, {piece: piece.graph for piece in pieces(tree, (images,))})
    with torch.no_grad():
        assert relative_error(made(images), model(images)) == 0
    assert type(made.backbone) is CompiledPiece
