import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.graph.nodes import calls
from nbcompile.core.graph.owners import Owners
from nbcompile.core.layers import LayerSpec
from nbcompile.core.tracing.capture import capture
from nbcompile.core.tracing.observe import observe
from nbcompile.core.tracing.pieces import Piece, pieces
from nbcompile.passes.sites.absorbers import absorbers

X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A layer and its norm; ``also`` reads the layer past it."""

    def __init__(self, *, also: bool = False) -> None:
        super().__init__()
        self.layer, self.norm, self.also = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), also

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.norm(y) + y if self.also else self.norm(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("also", "keys"), [(False, ("norm.running_mean",)), (True, ())])
def test_a_captured_graph_is_its_own_proof(also: bool, keys: tuple[str, ...]) -> None:
    model = Net(also=also)
    gm = capture(model)
    assert absorbers(Owners(gm), LayerSpec.of(model.layer), calls(gm)[model.layer]) == keys


def test_one_run_needs_a_piece_that_says_the_same() -> None:
    model, other = Net(), Net(also=True)
    other.layer, other.norm = model.layer, model.norm
    gm, spec = observe(model, (X,)), LayerSpec.of(model.layer)
    nodes = calls(gm)[model.layer]
    (other_says,) = pieces(other, (X,))
    elsewhere = Piece("", capture(Net()), None)
    assert absorbers(Owners(gm), spec, nodes) == ()
    assert absorbers(Owners(gm), spec, nodes, [elsewhere]) == ()
    assert absorbers(Owners(gm), spec, nodes, [other_says]) == ()
    assert absorbers(Owners(gm), spec, nodes, [elsewhere, *pieces(model, (X,))]) == ("norm.running_mean",)
