"""Networks for small devices: the paper's, and those of MLPerf Tiny. ``NETWORKS`` is the one table."""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from nbcompile.zoo.inverted_residual import (
    BlockRow,
    InvertedResidual,
    InvertedResidualNet,
    dscnn,
    mcunet,
    mobilenetv2_35,
    mobilenetv2_50,
    mobilenetv2_100,
    mobilenetv2_tiny,
)
from nbcompile.zoo.mlperf_tiny import autoencoder, dscnn_kws, mobilenetv1_25, resnet8

__all__ = [
    "NETWORKS",
    "BlockRow",
    "InvertedResidual",
    "InvertedResidualNet",
    "Network",
    "autoencoder",
    "dscnn",
    "dscnn_kws",
    "mcunet",
    "mobilenetv1_25",
    "mobilenetv2_35",
    "mobilenetv2_50",
    "mobilenetv2_100",
    "mobilenetv2_tiny",
    "resnet8",
]


class Network(NamedTuple):
    """A factory, and the input of its source: ``(1, channels, height, width)``, or ``(1, features)``."""

    factory: Callable[..., nn.Module]
    input_shape: tuple[int, ...]


NETWORKS: dict[str, Network] = {
    "mobilenetv2_tiny": Network(mobilenetv2_tiny, (1, 3, 144, 144)),
    "mobilenetv2_35": Network(mobilenetv2_35, (1, 3, 160, 160)),
    "mobilenetv2_50": Network(mobilenetv2_50, (1, 3, 160, 160)),
    "mobilenetv2_100": Network(mobilenetv2_100, (1, 3, 160, 160)),
    "mcunet": Network(mcunet, (1, 3, 176, 176)),
    "dscnn": Network(dscnn, (1, 1, 8, 8)),
    "dscnn_kws": Network(dscnn_kws, (1, 1, 49, 10)),
    "mobilenetv1_25": Network(mobilenetv1_25, (1, 3, 96, 96)),
    "resnet8": Network(resnet8, (1, 3, 32, 32)),
    "autoencoder": Network(autoencoder, (1, 640)),
}
