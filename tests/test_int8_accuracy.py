"""On real data, scikit-learn's digits: int8 files keep the accuracy, in LiteRT and in TFLite Micro."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import nbcompile
from nbcompile.exporters.to_tflite.run.interpreters import run_file


class Branches(nn.Module):
    """A RepVGG block (arXiv 2101.03697): 3×3, 1×1 and identity, a norm behind each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.three, self.one = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norms[0](self.three(x)) + self.norms[1](self.one(x)) + self.norms[2](x))


def plain() -> nn.Module:
    return nbcompile.zoo.dscnn(num_classes=10, in_channels=1)


def branched() -> nn.Module:
    stem = (nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(*stem, Branches(16), Branches(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def trained(model: nn.Module, images: Tensor, labels: Tensor, epochs: int = 12) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, epochs * (len(images) // 64))
    for _ in range(epochs):
        order = torch.randperm(len(images))[: len(images) // 64 * 64]
        for batch in order.split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@pytest.mark.parametrize(
    ("make", "points"),
    [pytest.param(plain, 0.5, marks=pytest.mark.slow), pytest.param(branched, 1.0, marks=pytest.mark.slow)],
)
def test_int8_keeps_the_accuracy(tmp_path: Path, make: type[nn.Module], points: float) -> None:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    model = trained(make(), images[400:], labels[400:])
    with torch.no_grad():
        reached = float((model(images[:400]).argmax(1) == labels[:400]).float().mean())
    assert reached > 0.9
    path = tmp_path / "tiny.tflite"
    nbcompile.export(nbcompile.fuse(model), path, images[:1], calibration=images[400:600], target="mcu")
    samples = [(x.movedim(0, -1)[None].contiguous().numpy(),) for x in images[:400]]
    for kernels in ("xnnpack", "micro"):
        logits = np.concatenate([y for (y,) in run_file(path.read_bytes(), samples, kernels=kernels)])
        assert abs((logits.argmax(1) == labels[:400].numpy()).mean() - reached) <= points / 100 + 1e-9
