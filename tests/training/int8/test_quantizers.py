import pytest
import torch
from torch import Tensor, nn

from nbcompile.training.int8.quantizers import LearnedStep, QuantizedLayer, Quantizer


def straight(x: Tensor, rounded: Tensor) -> Tensor:
    return x + (rounded - x).detach()


@pytest.mark.parametrize("zero", [-128, 0, 37])
def test_gradients_of_values_and_steps_are_those_of_the_paper(zero: int) -> None:
    torch.manual_seed(0)
    x, upstream = torch.randn(5, 7, 3, requires_grad=True), torch.randn(5, 7, 3)
    step = LearnedStep(0.013, zero, learned=True)
    y = Quantizer(step)(x)
    y.backward(upstream)

    x64 = x.detach().double().requires_grad_()
    size = step.size.detach().double().requires_grad_()
    v = x64 / size
    clipped = v.clamp(-128 - zero, 127 - zero)
    wanted = straight(clipped, clipped.round()) * size  # LSQ, eq. 1 to 3: by autograd
    wanted.backward(upstream.double())
    assert x64.grad is not None
    assert size.grad is not None
    assert x.grad is not None
    assert step.size.grad is not None
    assert torch.allclose(y.double(), wanted, atol=1e-6)
    assert torch.allclose(x.grad.double(), x64.grad)
    assert 0 < (x.grad == 0).float().mean() < 1, "some are clipped, some are not"
    features = 7 * 3
    assert float(step.size.grad) == pytest.approx(float(size.grad) / (features * 127) ** 0.5, rel=1e-4)


def test_a_prescribed_step_stays() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    step = LearnedStep(1 / 256, -128, learned=False)
    Quantizer(step)(x).sum().backward()
    assert step.size.grad is None
    assert x.grad is not None
    assert step.limits == (0, pytest.approx(255 / 256))


def test_averages_half_way_go_away_from_zero() -> None:
    step = LearnedStep(0.1, 10, learned=True)
    x = torch.tensor([[0.05, 0.15, -1.05, -1.15]])  # 10.5, 11.5, -0.5, -1.5 as the file holds them
    stored = (Quantizer(step, away=True)(x) / 0.1).round() + 10
    assert stored.tolist() == [[11, 12, -1, -2]]


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3, groups=2), nn.Linear(5, 3), nn.ConvTranspose2d(4, 3, 2)])
def test_weights_have_one_scale_per_output_channel(layer: nn.Module) -> None:
    with torch.no_grad():
        layer.weight[:, 1].zero_() if isinstance(layer, nn.ConvTranspose2d) else layer.weight[1].zero_()
    rounded = QuantizedLayer(layer, LearnedStep(0.02, 3, learned=True), per_channel=True)
    weight = layer.weight.detach()
    scale = rounded.scale(weight)
    integers = weight / scale
    axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    largest = integers.abs().amax([i for i in range(weight.ndim) if i != axis])
    assert [round(float(x), 3) for x in largest] == [0 if i == 1 else 127 for i in range(len(largest))]
    shape = (2, 5) if isinstance(layer, nn.Linear) else (2, 4, 7, 5)
    y = rounded(torch.randn(shape))
    y.sum().backward()
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
