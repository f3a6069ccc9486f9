"""The drawing of a block shows what the block computes."""

from itertools import product

import pytest
import torch
from torch import nn

from nbcompile.core.activations import Activation
from nbcompile.core.blocks import Expanded
from nbcompile.core.layers import LayerSpec
from nbcompile.core.site_spec import BLOCKS, SiteSpec
from nbcompile.report.opened_block import opened_block
from nbcompile.testing import scramble_

CONVOLUTIONS = product(BLOCKS, ("norm", "bias", "scale"), (False, True), ("convolution",))
LINEAR = product(BLOCKS, ("bias", "scale"), (False, True), ("linear",))


@pytest.mark.parametrize(("kind", "inner", "preserve", "what"), [*CONVOLUTIONS, *LINEAR])
def test_its_graph_computes_what_it_does(kind: str, inner: str, preserve: bool, what: str) -> None:
    layer: nn.Module = nn.Linear(5, 6) if what == "linear" else nn.Conv2d(4, 8, 3, padding=1)
    spec = SiteSpec(
        name="site",
        layer=LayerSpec.of(layer),
        block=kind,
        ratio=2,
        preserve=preserve,
        activation=Activation("leaky_relu", 0.1),
        inner=inner,
    )
    block = scramble_(Expanded(spec, layer)).eval()
    if block.last_norm is None:
        nn.init.normal_(block.last.get_parameter("weight"))
    block.slope.fill_(0.3)
    gm, x = opened_block(block), torch.randn(2, 4, 7, 5)
    with torch.no_grad():
        torch.testing.assert_close(gm(x), block(x))  # the block runs some parts as one
    assert {id(p) for p in gm.parameters()} == {id(p) for p in block.parameters()}
    assert {n.target for n in gm.graph.nodes if n.op == "call_module"} == {
        name for name, part in block.named_modules() if name and not any(part.children())
    }


def test_a_collapsed_block_is_drawn_as_its_layers() -> None:
    layer = nn.Conv2d(4, 8, 3, padding=1)
    spec = SiteSpec(
        name="site",
        layer=LayerSpec.of(layer),
        block="basic",
        ratio=2,
        preserve=True,
        activation=Activation("relu"),
        inner="norm",
    )
    block = Expanded(spec, layer).eval()
    block.collapsed = True
    assert "original" in {node.target for node in opened_block(block).graph.nodes}
