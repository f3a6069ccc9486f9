from pathlib import Path

import pytest
import torch
from torch import nn

from nbcompile.open_network import why_untrained
from nbcompile.testing import scramble_


def network(norm: bool = True) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2) if norm else nn.Identity()).eval()


def test_a_factory_that_loads_weights_is_believed() -> None:
    """Its batch normalizations have seen data; a network without any may have learned."""
    assert why_untrained("mine:factory", scramble_(network())) == ""
    assert why_untrained("mine:factory?depth=3", network(norm=False)) == ""


def test_a_factory_that_loads_none_is_not() -> None:
    assert why_untrained("mine:factory", network()) == "has batch normalizations that have seen no data"
    trained = network()
    trained.train()(torch.randn(3, 1, 5, 7))
    assert why_untrained("mine:factory", trained.eval()) == ""


@pytest.mark.parametrize("home", ["nbcompile:mcunet", "timm:resnet18", "torchvision:resnet18?weights=None"])
def test_networks_of_the_libraries_are_built_without_weights(home: str) -> None:
    assert why_untrained(home, scramble_(network())) == "is built without weights"
    assert why_untrained("timm:resnet18?pretrained=True", network()) == ""


def test_a_file_has_weights(tmp_path: Path) -> None:
    assert why_untrained(str(tmp_path / "trained.pt"), network()) == ""


FACTORY = """
import torch
from torch import nn
def make(trained=True):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    if trained:
        net(torch.randn(4, 1, 9, 7))
    return net.eval()
"""


@pytest.mark.parametrize("trained", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_fuse_says_so(run, trained: bool) -> None:
    name = f"weighted_{trained}".lower()
    Path(f"{name}.py").write_text(FACTORY)
    result = run("fuse", f"{name}:make?trained={trained}", "--input", "1x1x9x7", "-o", "tiny.onnx")
    assert result.code == 0, result.err
    assert ("exports an untrained network" in result.err) is not trained
