"""What a detector stands on: of any library, cut where the last maps are, the same numbers in both modes."""

import pytest
import torch
from torch import Tensor, nn

import nbcompile
from nbcompile.core.errors import UsageError
from nbcompile.detection.backbone import cut_backbone
from nbcompile.models import build
from nbcompile.testing import scramble_
from tests.boxes import Tower

IMAGES = torch.randn(2, 3, 96, 64)


@pytest.mark.parametrize(
    ("spec", "channels"),
    [
        ("nbcompile:mobilenetv2_35", (32, 112)),
        ("timm:mobilenetv2_035", (32, 112)),  # norms with activations in them
        ("torchvision:resnet18", (256, 512)),  # activations in place
        ("torchvision:shufflenet_v2_x0_5", (96, 192)),  # halves that go their own ways
        pytest.param("timm:mobilenetv3_small_050", (24, 48), marks=pytest.mark.slow),
        pytest.param("timm:mobilenetv1_100", (512, 1024), marks=pytest.mark.slow),
        pytest.param("torchvision:densenet121", (512, 1024), marks=pytest.mark.slow),
        pytest.param("nbcompile:mcunet", (48, 160), marks=pytest.mark.slow),
        pytest.param("timm:efficientnet_lite0", (112, 320), marks=pytest.mark.slow),
        pytest.param("timm:convnext_atto", (160, 320), marks=pytest.mark.slow),
    ],
)
def test_the_last_maps_are_read_and_the_rest_is_cut_off(spec: str, channels: tuple[int, int]) -> None:
    model = build(spec).model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    cut = cut_backbone(model, IMAGES)
    assert cut.channels == channels
    fine, coarse = cut.graph(IMAGES)
    assert fine.shape == (2, channels[0], 6, 4)
    assert coarse.shape == (2, channels[1], 3, 2)
    kept = cut.graph.state_dict()
    assert kept.keys() < model.state_dict().keys()
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(key.startswith(("classifier", "fc", "conv_head")) for key in kept)


def test_both_modes_are_those_of_the_classifier() -> None:
    """In training its norms use the batch, and note it; what it gives is what the classifier's layers give."""
    model = scramble_(Tower())
    cut = cut_backbone(model, IMAGES)
    for training in (True, False):
        model.train(training)
        cut.graph.train(training)
        expected = model.features[:30](IMAGES)
        torch.testing.assert_close(cut.graph(IMAGES)[1], expected)
    state = cut.graph.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items() if key in state)


def test_a_wider_map_at_the_end_is_passed_over() -> None:
    assert cut_backbone(Tower(), IMAGES).channels == (12, 16)


class Shortcut(nn.Module):
    """A map that a shortcut passes is not all that is known: the sum is read."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.fine = nn.Conv2d(3, 8, 16, 16), nn.Conv2d(8, 8, 1)
        self.again, self.inside = nn.Conv2d(8, 6, 2, 2), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(self.down(x))
        coarse = self.again(fine)
        return torch.relu(coarse + self.inside(coarse)).mean((2, 3))


def test_what_a_shortcut_passes_is_not_read() -> None:
    cut = cut_backbone(Shortcut(), IMAGES)
    assert cut.taps == ("fine", "relu")


def test_a_giant_stays_one() -> None:
    giant = nbcompile.expand(Tower().eval(), IMAGES, where="last:2", ratio=2)
    cut = cut_backbone(giant, IMAGES)
    from nbcompile.core.blocks import sites

    assert list(sites(cut.graph)) == list(sites(giant))[:1] or list(sites(cut.graph)) == list(sites(giant))


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("nbcompile:dscnn?in_channels=3", r"it has no map at stride 16, 6×4 of images of 96×64 \(its maps: 96×64, "),
        ("timm:vit_tiny_patch16_224", r"torch.fx cannot trace or run it \("),
    ],
)
def test_others_are_refused(spec: str, why: str) -> None:
    with pytest.raises(UsageError, match=rf"^a detector cannot stand on \w+: {why}"):
        cut_backbone(build(spec).model, IMAGES)
