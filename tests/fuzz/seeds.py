"""The whole files that are damaged, and the networks that they are of."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import nbcompile


class Net(nn.Module):
    """Small, so that most of its file is structure."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.body = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU()
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.head = nn.Linear(4, 5)
        self.register_buffer("offset", torch.rand(4, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, 5)`` of images ``(N, 3, H, W)``."""
        y = self.act(self.norm(self.body(self.stem(x)))) + self.offset
        return self.head(torch.flatten(torch.relu(self.depthwise(y)).mean((2, 3)), 1))


def plain() -> nn.Module:
    """Always the same weights."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return Net().eval()


def write_seeds(folder: Path) -> None:
    """Write ``plain.pt``, ``giant.pt``, ``giant.safetensors`` and ``tiny.onnx``."""
    x = torch.randn(2, 3, 8, 8)
    giant = nbcompile.expand(plain(), x, where=["body"])
    nbcompile.save(plain(), folder / "plain.pt", x)
    nbcompile.save(giant, folder / "giant.pt")
    save_file(giant.state_dict(), folder / "giant.safetensors")
    nbcompile.export(nbcompile.fuse(plain(), example_input=x), folder / "tiny.onnx", x[:1])
