"""A file stores what its network has, once: ``verify`` says so of every export."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nbcompile
from nbcompile.testing import scramble_
from tests.slow import one_in

MAPS, ROWS = (2, 4, 7, 5), (2, 6, 8)


class Wired(nn.Module):
    """Layers, and what is done with them."""

    def __init__(self, wiring: Callable[..., object], **layers: nn.Module) -> None:
        super().__init__()
        self.wiring = wiring
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> object:
        return self.wiring(self, x)


def conv(**options: int) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, padding=1, bias=False, **options)


def hooked(layer: nn.Module, hook: Callable[[Tensor], Tensor | None]) -> nn.Module:
    layer.register_forward_hook(lambda _, __, y: hook(y))
    return layer


class Asks(nn.Module):
    """Attention of learned queries, which are repeated for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.attention = nn.Parameter(torch.randn(3, 8)), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(self.queries.unsqueeze(0).repeat(x.shape[0], 1, 1), x, x)[0]
        return y


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "learned queries": (Asks, ROWS),
    "a head on tokens, and on maps": (
        lambda: Wired(lambda m, x: (m.a(x), m.a(x.flatten(1)[:, :8])), a=nn.Linear(8, 5)), ROWS,
    ),
    "a head on tokens, and on their mean": (
        lambda: Wired(lambda m, x: (m.a(x.mean(1)), m.a(x)), a=nn.Linear(8, 5)), ROWS,
    ),
    "a gate that closes": (
        lambda: Wired(lambda m, x: x * m.a(8 * F.adaptive_max_pool2d(x, 1)).sigmoid(), a=nn.Conv2d(4, 4, 1)), MAPS,
    ),
    "no bias": (lambda: nn.Sequential(conv(), nn.ReLU(), conv(groups=4), nn.ReLU(), nn.Conv2d(4, 2, 1)), MAPS),
    "no bias, transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, bias=False), nn.ReLU()), MAPS),
    "no bias, one axis": (lambda: nn.Sequential(nn.Conv1d(6, 4, 3, bias=False), nn.ReLU()), ROWS),
    "norm first": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), conv()), MAPS),
    "shared, no bias": (lambda: Wired(lambda m, x: (m.a(x), m.a(x.relu())), a=conv()), MAPS),
    "shared and scaled": (
        lambda: Wired(lambda m, x: (m.b(m.a(x)), m.b(m.a(x * 2))), a=conv(), b=nn.BatchNorm2d(4)), MAPS,
    ),
    "norms of their own": (
        lambda: Wired(
            lambda m, x: (m.b(m.a(x)), m.c(m.a(x.relu()))), a=conv(), b=nn.BatchNorm2d(4), c=nn.BatchNorm2d(4)
        ),
        MAPS,
    ),
    "shared linear": (lambda: Wired(lambda m, x: m.a(m.a(x).relu()), a=nn.Linear(8, 8)), ROWS),
    "tied linear": (
        lambda: Wired(lambda m, x: F.linear(m.a(x).relu(), m.a.weight.t()), a=nn.Linear(8, 5, bias=False)), ROWS,
    ),
    "a branch that nobody reads": (lambda: Wired(lambda m, x: (m.a(x), m.b(x))[0], a=conv(), b=conv()), MAPS),
    "a norm behind a hook": (lambda: nn.Sequential(hooked(conv(), lambda _: None), nn.BatchNorm2d(4)), MAPS),
    "a factor by a hook": (lambda: nn.Sequential(hooked(conv(), lambda y: y * 1.5), nn.ReLU()), MAPS),
    "einsum without a sum": (lambda: Wired(lambda m, x: torch.einsum("bchw,bchw->bchw", x, m.a(x)), a=conv()), MAPS),
    "bilinear": (lambda: Wired(lambda m, x: m.b(m.a(x), x), a=nn.Linear(8, 5), b=nn.Bilinear(5, 8, 3)), ROWS),
    "attention": (
        lambda: Wired(lambda m, x: F.scaled_dot_product_attention(*m.a(x).chunk(2, -1), x), a=nn.Linear(8, 10)), ROWS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", one_in(2, NETWORKS))
def test_the_file_has_the_networks_layers_and_parameters(name: str, tmp_path: Path) -> None:
    network, shape = NETWORKS[name]
    model, x = scramble_(network()).eval(), torch.randn(shape)
    nbcompile.export(model, tmp_path / "own.onnx", x)
    found = nbcompile.verify(model, tmp_path / "own.onnx", x)
    assert found.passed, found.checks


def test_a_bias_of_zeros_that_a_layer_has_stays(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = nn.Sequential(nn.Conv2d(4, 3, 1), nn.ReLU()).eval()
    nn.init.zeros_(model[0].bias)  # type: ignore[arg-type]
    nbcompile.export(model, tmp_path / "own.onnx", torch.randn(MAPS))
    assert {y.name for y in onnx.load(tmp_path / "own.onnx").graph.initializer} == {"0.weight", "0.bias"}


def test_an_ordinary_network_is_simplified_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxsim = pytest.importorskip("onnxsim")
    simplify, asked = onnxsim.simplify, []
    monkeypatch.setattr(
        onnxsim, "simplify", lambda *given, **options: asked.append(options) or simplify(*given, **options)
    )
    network, shape = NETWORKS["norm first"]
    nbcompile.export(scramble_(network()).eval(), tmp_path / "own.onnx", torch.randn(shape))
    nbcompile.export(nbcompile.zoo.dscnn(num_classes=4, in_channels=4).eval(), tmp_path / "own.onnx", torch.randn(MAPS))
    assert [list(options) for options in asked] == [["skipped_optimizers"]] * 2
