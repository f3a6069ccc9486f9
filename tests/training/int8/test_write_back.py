from collections.abc import Callable

import pytest
import torch
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import fx, nn

from nbcompile.core.copies import copied
from nbcompile.core.example import Origin, origin_of, remember, specs
from nbcompile.deploy.deploy_form import deploy
from nbcompile.exporters.to_tflite.quantize.learned import LearnedRange, LearnedRanges
from nbcompile.testing import scramble_
from nbcompile.training.int8.write_back import written_back

EXAMPLE = (torch.randn(1, 3, 7, 5),)
RANGES = LearnedRanges((LearnedRange("input", (1, 7, 5, 3), (-1.0, 2.0)),))


def branches() -> nn.Module:
    blocks = tuple(ByoBlockCfg(type="rep", d=1, c=6, s=s) for s in (1, 2))
    made: nn.Module = ByobNet(ByoModelCfg(blocks, stem_type="rep", stem_chs=6), num_classes=4)
    return made


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 5 * 3, 4),
    )  # fmt: skip


def dead() -> nn.Module:
    """A norm that lets nothing through one channel."""
    made = plain()
    with torch.no_grad():
        made[1].weight[2] = 0
    return made


def linear() -> nn.Module:
    """Two convolutions that merge into one: neither can take up what that learns."""
    return nn.Sequential(nn.Conv2d(3, 24, 1), nn.Conv2d(24, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 1))


def learnt(network: nn.Module) -> tuple[nn.Module, fx.GraphModule, dict[str, nn.Module]]:
    """A network, its deploy form, and layers of that with other weights."""
    torch.manual_seed(0)
    network = scramble_(network).eval()
    if isinstance(network, nn.Sequential) and isinstance(network[1], nn.BatchNorm2d):
        network[1].weight.data[2] *= float(network[1].weight.data[2] != 0)
    graph = deploy(network, EXAMPLE)
    assert isinstance(graph, fx.GraphModule)
    layers = {
        name: copied(module) for name, module in graph.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }
    with torch.no_grad():
        for layer in layers.values():
            for x in layer.parameters():
                x.add_(0.05 * torch.randn_like(x))
    return network, graph, layers


@pytest.mark.parametrize("make", [branches, plain, dead])
def test_the_network_takes_up_what_its_deploy_form_has_learnt(make: Callable[[], nn.Module]) -> None:
    network, graph, layers = learnt(make())
    found, missed = written_back(network, graph, layers, EXAMPLE, RANGES)
    assert missed is None
    assert type(found) is type(network)
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}
    wanted = copied(graph)
    for name, layer in layers.items():
        wanted.get_submodule(name).load_state_dict(layer.state_dict())
    x = torch.randn(4, 3, 7, 5)
    with torch.no_grad():
        assert torch.allclose(found(x), wanted(x), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(network(x), wanted(x), rtol=1e-2, atol=1e-2)


def test_what_no_layer_can_take_up_is_the_deploy_form() -> None:
    network, graph, layers = learnt(linear())
    found, missed = written_back(network, graph, layers, EXAMPLE, RANGES)
    assert missed == next(iter(layers))
    x = torch.randn(4, 3, 7, 5)
    for name, layer in layers.items():
        graph.get_submodule(name).load_state_dict(layer.state_dict())
    with torch.no_grad():
        assert torch.equal(found(x), graph(x))


def test_it_remembers_the_ranges() -> None:
    network, graph, layers = learnt(plain())
    remember(network, Origin(specs(EXAMPLE), preprocessing={"mean": [0.5]}))
    found, _ = written_back(network, graph, layers, EXAMPLE, RANGES)
    origin = origin_of(found)
    assert origin is not None
    assert (origin.preprocessing, LearnedRanges.from_json(origin.int8)) == ({"mean": [0.5]}, RANGES)
