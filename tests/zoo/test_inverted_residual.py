import pytest
import torch
import torchvision
from torch import fx, nn

from nbcompile import zoo
from nbcompile.core.cost import cost
from nbcompile.zoo import NETWORKS, InvertedResidual, InvertedResidualNet, inverted_residual

NAMES = [name for name in NETWORKS if name in inverted_residual.__all__]


def blocks(model: InvertedResidualNet) -> list[InvertedResidual]:
    return [block for block in model.features if isinstance(block, InvertedResidual)]


@pytest.mark.parametrize(
    ("name", "size", "macs", "params"),
    [
        ("mobilenetv2_tiny", 144, 23_499_152, 750_280),
        ("mcunet", 176, 81_785_520, 737_408),
        ("mobilenetv2_50", 160, 50_184_000, 1_968_680),
        ("mobilenetv2_100", 160, 154_083_200, 3_504_872),
    ],
)
def test_costs_what_the_paper_says(name: str, size: int, macs: int, params: int) -> None:
    network = NETWORKS[name]
    assert network.input_shape == (1, 3, size, size)
    counted = cost(network.factory(), torch.zeros(network.input_shape))
    assert (counted.macs, counted.params, counted.unread_params) == (macs, params, 0)


def test_tiny_has_the_papers_flops_with_norms() -> None:
    counted = cost(zoo.mobilenetv2_tiny(), torch.zeros(1, 3, 144, 144))
    assert counted.macs + 5 * counted.norm_elements == 29_400_072  # printed as 29.4M


@pytest.mark.parametrize(
    ("name", "width"), [("mobilenetv2_35", 0.35), ("mobilenetv2_50", 0.5), ("mobilenetv2_100", 1.0)]
)
def test_is_torchvisions_mobilenetv2_under_other_names(name: str, width: float) -> None:
    ours = NETWORKS[name].factory(num_classes=7).eval()
    theirs = torchvision.models.mobilenet_v2(width_mult=width, num_classes=7).eval()
    tensors = theirs.state_dict().values()
    ours.load_state_dict(dict(zip(ours.state_dict(), tensors, strict=True)))
    x = torch.randn(2, 3, 65, 49)
    assert torch.equal(ours(x), theirs(x))


def test_tiny_has_sixteen_blocks_with_expansion_after_the_first() -> None:
    first, *rest = blocks(zoo.mobilenetv2_tiny())
    assert first.expand is None
    assert len(rest) == 16
    assert all(block.expand is not None for block in rest)
    assert (rest[-1].expand.conv.in_channels, rest[-1].project.conv.out_channels) == (56, 112)


def test_mcunet_has_netaugs_blocks() -> None:
    first, *rest = blocks(zoo.mcunet())
    assert first.expand is None
    assert not first.shortcut
    assert [block.depthwise.conv.kernel_size[0] for block in rest] == [
        *(7, 3, 7, 5), *(5, 5, 5), *(3, 7, 5), *(5, 7, 3), *(3, 7, 3), 7,
    ]  # fmt: skip
    hidden = [block.depthwise.conv.out_channels for block in rest]
    assert hidden == [24, 80, 80, 64, 80, 120, 120, 120, 240, 160, 200, 240, 240, 288, 480, 384, 480]
    assert [block.shortcut for block in rest] == [
        *(False, True, True, True), *(False, True, True), *(False, True, True), *(False, True, True),
        *(False, True, True), False,
    ]  # fmt: skip


def test_dscnn_is_made_for_small_images() -> None:
    model = zoo.dscnn()
    assert 3_000 <= sum(p.numel() for p in model.parameters()) <= 8_000
    assert len(blocks(model)) == 5
    assert all(block.expand is not None for block in blocks(model))
    assert sum(conv.stride == (2, 2) for conv in model.modules() if isinstance(conv, nn.Conv2d)) == 2
    assert model.eval()(torch.randn(3, 1, 7, 7)).shape == (3, 10)
    assert model.features(torch.randn(1, 1, 8, 8)).shape == (1, 16, 2, 2)


@pytest.mark.parametrize("name", NAMES)
def test_any_classes_channels_and_sizes(name: str) -> None:
    model = NETWORKS[name].factory(num_classes=5, in_channels=2).eval()
    assert model(torch.randn(2, 2, 37, 50)).shape == (2, 5)


@pytest.mark.parametrize("name", NAMES)
def test_traces_and_has_plain_leaves(name: str) -> None:
    model = NETWORKS[name].factory().eval()
    x = torch.randn(NETWORKS[name].input_shape)
    assert torch.equal(fx.symbolic_trace(model)(x), model(x))
    leaves = [module for module in model.modules() if not list(module.children())]
    assert {type(leaf) for leaf in leaves} == {nn.Conv2d, nn.BatchNorm2d, nn.ReLU6, nn.AdaptiveAvgPool2d, nn.Linear}


def test_starts_as_torchvision_does() -> None:
    model = zoo.mobilenetv2_100()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert not module.bias.any()
    pointwise = model.features.head.conv.weight  # (1280, 320, 1, 1): fan out 1280
    assert pointwise.std().item() == pytest.approx((2 / 1280) ** 0.5, rel=0.02)
    depthwise = model.features.block16.depthwise.conv.weight  # (960, 1, 3, 3): fan out 960 * 9
    assert depthwise.std().item() == pytest.approx((2 / (960 * 9)) ** 0.5, rel=0.05)
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not model.classifier.bias.any()


def test_the_table_names_its_factories() -> None:
    assert all(getattr(zoo, name) is network.factory for name, network in NETWORKS.items())
    assert set(NETWORKS) <= set(zoo.__all__)
