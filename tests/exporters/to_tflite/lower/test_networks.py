"""Whole networks in float: the outputs of LiteRT, and how many operators only move elements."""

from collections.abc import Callable

import pytest
import timm
import torch
import torchvision.models as tv
from torch import nn

from nbcompile import zoo
from tests.exporters.to_tflite.lowered import lowered, operators

pytestmark = pytest.mark.slow

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int, int]] = {  # with the size, PADs and TRANSPOSEs
    "mobilenetv2_35": (lambda: tv.mobilenet_v2(width_mult=0.35), 144, 4, 0),
    "mobilenetv2_tiny": (zoo.mobilenetv2_tiny, 144, 4, 0),
    "mobilenetv2_100": (zoo.mobilenetv2_100, 160, 5, 0),
    "mcunet": (zoo.mcunet, 176, 4, 0),
    "mobilenetv1_25": (zoo.mobilenetv1_25, 96, 0, 0),  # its padding is TensorFlow's
    "resnet8": (zoo.resnet8, 32, 0, 0),
    "mobilenet_v3_small": (tv.mobilenet_v3_small, 96, 5, 0),
    "shufflenet_v2": (tv.shufflenet_v2_x0_5, 96, 8, 0),
    "efficientnet_b0": (tv.efficientnet_b0, 64, 5, 0),
    "resnet18": (tv.resnet18, 64, 5, 0),
    "deit_tiny": (lambda: timm.create_model("deit_tiny_patch16_224"), 224, 0, 48),  # four a layer: heads
    "convnext_atto": (lambda: timm.create_model("convnext_atto"), 64, 0, 0),
    "tf_efficientnet_lite0": (lambda: timm.create_model("tf_efficientnet_lite0"), 64, 0, 0),
    "lraspp": (lambda: tv.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None), 65, 0, 0),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_litert_gives_what_pytorch_gives(name: str) -> None:
    make, size, pads, transposes = NETWORKS[name]
    network = make()
    with torch.no_grad():
        for _ in range(3):  # statistics that are not those of the identity
            network.train()(torch.randn(4, 3, size, size))
        model, error = lowered(network, torch.randn(1, 3, size, size))
    assert error < 5e-6
    found = operators(model)
    assert (found["PAD"] + found["PADV2"] + found["MIRROR_PAD"], found["TRANSPOSE"]) == (pads, transposes)
