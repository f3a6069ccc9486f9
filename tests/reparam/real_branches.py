"""Layers with real branches, written down with torch's own layers: what ``grad_reparam`` must be equal to."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALES = {"full": 0.6, "center": 1.3, "identity": 0.7, "axes": 0.9, "average": 1.7}


class Branches(nn.Module):
    """A layer as the sum of its branches; ``kinds`` as the test says them, not as the code found them."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, kinds: tuple[str, ...], scales: dict[str, Tensor]) -> None:
        super().__init__()
        weight, self.scales = layer.weight.detach(), scales
        self.conv = layer if isinstance(layer, nn.Conv2d) else None
        self.kinds = kinds
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        outputs, inputs = weight.shape[:2]
        height, width = weight.shape[2:] if self.conv is not None else (1, 1)
        shapes = {
            "full": weight.shape,
            "center": (outputs, inputs, 1, 1),
            "identity": (outputs,),
            "average": (outputs, inputs, 1, 1),
            "rows": (outputs, inputs, height, 1),
            "columns": (outputs, inputs, 1, width),
        }
        self.own = nn.ParameterDict({kind: torch.randn(shapes[kind], dtype=weight.dtype) * 0.2 for kind in kinds})

    def scale(self, kind: str) -> Tensor:
        return self.scales["axes" if kind in ("rows", "columns") else kind]

    def branch(self, kind: str, x: Tensor) -> Tensor:
        own = self.own[kind]
        if self.conv is None:
            return x * own if kind == "identity" else F.linear(x, own)
        c = self.conv
        (p, q), (i, j) = c.padding, (c.dilation[0], c.dilation[1])
        if kind == "identity":
            return x * own[:, None, None]
        if kind == "average":
            one = F.conv2d(x, own, groups=c.groups)
            return F.avg_pool2d(one, c.kernel_size, c.stride, (p, q), count_include_pad=True)
        pads = {"full": (p, q), "center": (0, 0), "rows": (p, 0), "columns": (0, q)}
        return F.conv2d(x, own, None, c.stride, pads[kind], (i, j), c.groups)

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, 1, 1) if self.conv is not None else (-1,)
        total = sum(self.scale(kind).expand(self.outputs).reshape(shape) * self.branch(kind, x) for kind in self.kinds)
        assert isinstance(total, Tensor)
        return total if self.bias is None else total + self.bias.reshape(shape)

    @property
    def outputs(self) -> int:
        return int(self.own["full"].shape[0])

    def layer(self) -> Tensor:
        """The weight of the one layer that the sum is."""
        full = self.own["full"].detach()
        total = torch.zeros_like(full)
        for kind in self.kinds:
            own = self.own[kind].detach()
            at = torch.zeros_like(full)
            if kind == "identity":
                for c in range(len(own)):
                    place = (c, c % full.shape[1], *(size // 2 for size in full.shape[2:]))
                    at[place] = own[c]
            elif kind == "average":
                at = own.expand_as(full) / full[0, 0].numel()
            elif kind == "full":
                at = own
            else:
                h, w = full.shape[2:]
                rows = slice(None) if kind == "rows" else slice(h // 2, h // 2 + 1)
                columns = slice(None) if kind == "columns" else slice(w // 2, w // 2 + 1)
                at[:, :, rows, columns] = own
            total += self.scale(kind).expand(self.outputs).reshape(-1, *(1,) * (full.ndim - 1)) * at
        return total


def with_branches(model: nn.Sequential, kinds: dict[str, tuple[str, ...]], scales: dict[str, Tensor]) -> nn.Sequential:
    """A copy of ``model`` in which the layers named have the branches named."""
    model = copy.deepcopy(model)
    for name, own in kinds.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        model[int(name)] = Branches(layer, own, scales)
    return model
