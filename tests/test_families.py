"""Over-parameterised blocks and networks reach their own deploy form, by passes that do not know their names."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from timm.utils import reparameterize_model
from torch import Tensor, fx, nn

import nbcompile
from nbcompile.core.numerics import relative_error
from nbcompile.testing import scramble_
from tests.overparameterised import (
    DBB,
    OREPA,
    SESR,
    ACNet,
    Block,
    DepthConcat,
    ExpandConv,
    ExpandKernel,
    ExpandLinear,
    LargeKernel,
    MobileOne,
    RepGhost,
    RepMixer,
    RepVGG,
    RingPad,
    ShiftPad,
    WideConcat,
)

BLOCKS: dict[str, Callable[[], Block]] = {
    "repvgg": lambda: RepVGG(4, 4),
    "repvgg stride 2": lambda: RepVGG(4, 6, stride=2),
    "repvgg groups": lambda: RepVGG(4, 4, groups=2),
    "repvgg depthwise": lambda: RepVGG(4, 4, groups=4),
    "acnet": lambda: ACNet(3, 4),
    "acnet 5×5 stride 2": lambda: ACNet(4, 4, 5, stride=2, groups=2),
    "acnet dilation": lambda: ACNet(3, 4, dilation=2),
    "acnet cropped": lambda: ACNet(3, 4, padding=0),
    "dbb": lambda: DBB(4, 6, padder=ShiftPad),
    "dbb ring": lambda: DBB(4, 6, padder=RingPad),
    "dbb 5×5 stride 2": lambda: DBB(3, 4, 5, padder=ShiftPad, stride=2),
    "dbb groups": lambda: DBB(4, 6, padder=ShiftPad, groups=2),
    "dbb ring groups stride 2": lambda: DBB(4, 6, padder=RingPad, groups=2, stride=2),
    "dbb depthwise": lambda: DBB(4, 4, padder=ShiftPad, groups=4),
    "dbb ring depthwise stride 2": lambda: DBB(4, 4, padder=RingPad, groups=4, stride=2),
    "groups as a concatenation": lambda: DepthConcat(4, 6, groups=2, stride=2),
    "rows as a concatenation": lambda: WideConcat(3, 5, dilation=2),
    "mobileone": lambda: MobileOne(4, 4),
    "mobileone depthwise": lambda: MobileOne(4, 4, groups=4),
    "mobileone depthwise stride 2": lambda: MobileOne(4, 4, groups=4, stride=2),
    "mobileone pointwise": lambda: MobileOne(4, 4, 1),
    "mobileone pointwise, wider": lambda: MobileOne(4, 6, 1, branches=2),
    "expandnet cl": lambda: ExpandConv(3, 4),
    "expandnet cl bias stride 2": lambda: ExpandConv(3, 4, 5, bias=True, stride=2),
    "expandnet cl depthwise stride 2": lambda: ExpandConv(4, 4, groups=4, stride=2),
    "expandnet ck 5×5": lambda: ExpandKernel(3, 4, 5),
    "expandnet ck 7×7 stride 2": lambda: ExpandKernel(3, 4, 7, stride=2, padding=3),
    "expandnet fc": lambda: ExpandLinear(5, 4),
    "sesr": lambda: SESR(4, 4, wide=32),
    "sesr 5×5, other shape": lambda: SESR(3, 4, 5, wide=32),
    "orepa": lambda: OREPA(4, 5),
    "orepa stride 2 dilation": lambda: OREPA(4, 4, stride=2, dilation=2),
    "orepa groups": lambda: OREPA(4, 6, groups=2),
    "orepa depthwise": lambda: OREPA(4, 4, groups=4),
    "repghost": lambda: RepGhost(4, 4),
    "repmixer": lambda: RepMixer(4, 4),
    "repmixer 7×7": lambda: RepMixer(4, 4, 7),
    "large kernel": lambda: LargeKernel(4, 4, 7, groups=4),
}
GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
LINEAR = ("in_features", "out_features")


def sizes(block: Block) -> tuple[tuple[int, ...], ...]:
    if isinstance(block, ExpandLinear):
        return (2, block.inputs), (2, 3, block.inputs)
    return (2, block.inputs, 7, 5), (2, block.inputs, 8, 9)


def assert_is(layer: nn.Module, wanted: nn.Module) -> None:
    """Of the same class and geometry, as it deploys."""
    assert type(layer) is type(wanted)
    keys = LINEAR if isinstance(wanted, nn.Linear) else GEOMETRY
    assert {key: getattr(layer, key) for key in keys} == {key: getattr(wanted, key) for key in keys}
    assert (layer.bias is None) == (wanted.bias is None)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_becomes_its_layer(name: str) -> None:
    block = scramble_(BLOCKS[name]().double()).eval()
    assert isinstance(block, Block)
    inputs = [torch.randn(size, dtype=torch.float64) for size in sizes(block)]
    outputs = [block(x) for x in inputs]
    fused = nbcompile.fuse(block, example_input=inputs[0])
    for x, y in zip(inputs, outputs, strict=True):
        assert relative_error(fused(x), y) <= 1e-12
    single = nbcompile.fuse(block.float(), example_input=inputs[0].float())
    assert relative_error(single(inputs[0].float()), outputs[0]) <= 1e-6
    assert isinstance(fused, fx.GraphModule)
    nodes = [node for node in fused.graph.nodes if node.op not in ("placeholder", "output")]
    assert [node.op for node in nodes] == ["call_module"], fused.code
    deploy = block.deploy()
    assert_is(fused.get_submodule(str(nodes[0].target)), deploy)
    ours, theirs = (nbcompile.cost(model, inputs[0]) for model in (single, deploy))
    assert (ours.macs, ours.params, len(ours.layers)) == (theirs.macs, theirs.params, 1)


def counts(model: nn.Module, x: Tensor) -> dict[str, int]:
    cost = nbcompile.cost(model, x)
    return {
        "layers": sum(layer.macs > 0 for layer in cost.layers),
        "norms": sum(layer.norm_elements > 0 for layer in cost.layers),
        "macs": cost.macs,
        "params": cost.params,
    }


@pytest.mark.parametrize(
    "name",
    [
        "repghostnet_050",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("mobileone_s0", "repvgg_a0", "fastvit_t8", "repvit_m0_9")
        ),
    ],
)
def test_a_network_reaches_the_deploy_form_of_its_library(name: str) -> None:
    model = scramble_(timm.create_model(name, num_classes=10)).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = model(x)
    before = copy.deepcopy(model.state_dict())
    ours = nbcompile.fuse(model, example_input=x)
    assert relative_error(ours(x), expected) <= 1e-12
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    theirs = nbcompile.fuse(reparameterize_model(model.float()), example_input=x.float())
    assert counts(ours, x) == counts(theirs, x.float())
