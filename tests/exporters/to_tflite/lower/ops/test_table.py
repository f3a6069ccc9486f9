"""Every handler against PyTorch: all cases are parts of one network, which is converted once."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbcompile.core.numerics import relative_error
from nbcompile.exporters.to_tflite.lower import lowering
from nbcompile.exporters.to_tflite.lower.lowering import float_model
from nbcompile.exporters.to_tflite.lower.ops.table import HANDLERS
from tests.exporters.to_tflite.lowered import Net, outputs

INPUTS = {
    "odd": torch.Size((1, 4, 11, 9)),
    "even": torch.Size((1, 4, 12, 8)),
    "sequence": torch.Size((1, 6, 13)),
    "tokens": torch.Size((1, 5, 6)),
    "numbers": torch.Size((1, 3)),
}

COMPARISONS = (torch.gt, torch.ge, torch.lt, torch.le, torch.eq, torch.ne)


def written(y: Tensor, x: Tensor) -> Tensor:
    """What code writes into a value, in every way."""
    y[:, :1] *= 3
    y[:, ::2] -= x[:, 1::2]
    y[..., 0] += 1
    y[:, -1] = x[:, 0]
    y[:, :, 2:] /= 2
    y[0, 1, 2, 3] = 7
    y[y < -1] = -1
    z = torch.zeros_like(y)
    z[:, 1:3] = y[:, 1:3]
    y[:] = y.mean((2, 3), keepdim=True)
    return y.copy_(y.flip(1)) + z + torch.ones_like(x).cumsum(2)


def put_at_places(_: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, torch.arange(y.shape[2]) > 3] = 0.5
    y[:, [0, 2], :, 1] = -2
    return y


Case = tuple[str, Callable[[], nn.Module]]


def of(source: str, function: Callable[..., Any], *layers: Callable[[], nn.Module]) -> Case:
    return source, lambda: Net(function, *(layer() for layer in layers))


def chain(source: str, *layers: Callable[[], nn.Module]) -> Case:
    return source, lambda: nn.Sequential(*(layer() for layer in layers))


def conv(*args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*args, **kwargs)


def norm(cls: type[nn.Module], *args: Any) -> Callable[[], nn.Module]:
    """With parameters and statistics that are not those of the identity."""

    def make() -> nn.Module:
        layer = cls(*args)
        with torch.no_grad():
            for x in (*layer.parameters(), *layer.buffers()):
                if x.is_floating_point():
                    x.uniform_(0.5, 2)
        return layer

    return make


def activations() -> nn.Module:
    """Each behind a convolution, as networks have them."""
    found = (
        nn.ReLU(), nn.ReLU6(), nn.Hardtanh(), nn.Hardtanh(-0.5, 2), nn.LeakyReLU(0.2), nn.PReLU(3), nn.PReLU(),
        nn.ELU(), nn.ELU(0.5), nn.SELU(), nn.CELU(0.7), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Hardswish(),
        nn.Hardsigmoid(), nn.Sigmoid(), nn.Tanh(), nn.Softplus(2.0), nn.Mish(), nn.Softsign(), nn.Tanhshrink(),
    )  # fmt: skip
    for layer in found:
        for x in layer.parameters():
            nn.init.uniform_(x, 0.1, 0.9)
    pairs = [nn.Sequential(nn.Conv2d(4, 3, 1), layer) for layer in found]
    return Net(lambda layers, x: torch.cat([layer(x) for layer in layers], 1), *pairs)


CASES: dict[str, Case] = {
    "activations": ("odd", activations),
    "depthwise, two per channel": chain("odd", conv(4, 4, 1), conv(4, 8, 3, padding=1, groups=4)),
    "depthwise, uneven strides": chain("odd", conv(4, 4, 3, stride=(2, 1), padding=1, groups=4)),
    "depthwise, dilated": chain("odd", conv(4, 4, 3, padding=2, dilation=2, groups=4)),
    "dilated with stride": chain("odd", conv(4, 5, 3, padding=2, dilation=2, stride=2)),
    "grouped": chain("odd", conv(4, 6, 3, padding=1, groups=2)),
    "padding by name": chain("odd", conv(4, 5, 4, padding="same"), conv(5, 3, 2, padding="valid")),
    "padding of one side": chain("even", conv(4, 5, 3, padding=(2, 0), stride=2)),
    "one channel": chain("odd", conv(4, 1, 1), conv(1, 1, 3), conv(1, 3, 1)),
    "whole map": chain("odd", conv(4, 3, (11, 9)), nn.ReLU, conv(3, 5, 1)),
    "network's own padding": chain("even", lambda: nn.ZeroPad2d((0, 1, 0, 1)), conv(4, 5, 3, stride=2)),
    "more padding on it": chain("even", lambda: nn.ZeroPad2d(1), conv(4, 5, 3, padding=1)),
    "cropped": of("even", lambda m, x: m[0](F.pad(x, (-1, 2, 1, -2))), conv(4, 5, 3, padding=1)),
    "transposed": chain(
        "odd",
        lambda: nn.ConvTranspose2d(4, 6, 4, 2, 1),
        lambda: nn.ConvTranspose2d(6, 3, 3, 2, 1, 1),
        lambda: nn.ConvTranspose2d(3, 3, 2, 2),
    ),
    "transposed, grouped, dilated": chain(
        "odd",
        lambda: nn.ConvTranspose2d(4, 6, 3, 3, 0, groups=2),
        lambda: nn.ConvTranspose2d(6, 6, 3, 2, 2, dilation=2, groups=6, bias=False),
    ),
    "one dimension": chain(
        "sequence",
        lambda: nn.Conv1d(6, 8, 3, padding=1),
        nn.ReLU,
        lambda: nn.Conv1d(8, 8, 5, stride=2, groups=8),
        norm(nn.BatchNorm1d, 8),
        lambda: nn.AvgPool1d(2),
        lambda: nn.ConvTranspose1d(8, 3, 2, 2),
        lambda: nn.MaxPool1d(2),
        nn.Flatten,
        lambda: nn.Linear(6, 2),
    ),
    "max pools": of("even", lambda _, x: F.max_pool2d(x, 3, 2, 1) + F.max_pool2d(x.relu(), 3, 2, 1)),
    "max pool that reaches far": of("even", lambda _, x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True)),
    "max pools, odd": of("odd", lambda _, x: F.max_pool2d(x, 3, 2, 1) + F.max_pool2d(x, 2, 2, ceil_mode=True)),
    "average pools": of(
        "even",
        lambda _, x: F.avg_pool2d(x, 3, 2, 1)
        + F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        + F.avg_pool2d(x, 3, 2, 1, divisor_override=2),
    ),
    "average pools, ceil": of("even", lambda _, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True)),
    "average pools, odd": of(
        "odd",
        lambda _, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False) + F.avg_pool2d(x, 2, 2, ceil_mode=True),
    ),
    "adaptive pools": of(
        "even",
        lambda _, x: torch.cat(
            [
                *(F.adaptive_avg_pool2d(x, size).flatten(1) for size in ((4, 2), (5, 3), 1)),
                *(F.adaptive_max_pool2d(x, size).flatten(1) for size in ((3, 2), (5, 3), 1)),
            ],
            1,
        ),
    ),
    "resizes": of(
        "odd",
        lambda _, x: F.interpolate(x, scale_factor=2)
        + F.interpolate(x, (22, 18), mode="bilinear")
        + F.interpolate(x, (22, 18), mode="bilinear", align_corners=True)
        + F.interpolate(x, (22, 18), mode="nearest-exact"),
    ),
    "flatten": chain("odd", conv(4, 5, 3), nn.ReLU, nn.Flatten, lambda: nn.Linear(315, 7), norm(nn.BatchNorm1d, 7)),
    "norms": chain(
        "odd",
        norm(nn.GroupNorm, 2, 4),
        norm(nn.InstanceNorm2d, 4, 1e-5, 0.1, True),
        norm(nn.BatchNorm2d, 4),
        norm(nn.LayerNorm, (4, 11, 9)),
    ),
    "instance norm with statistics": chain("odd", norm(nn.InstanceNorm2d, 4, 1e-5, 0.1, True, True)),
    "norm of channels": of("odd", lambda m, x: m[0](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm(nn.LayerNorm, 4)),
    "rms norm": chain("tokens", norm(nn.RMSNorm, 6)),
    "channel shuffle": of("odd", lambda m, x: m[1](F.channel_shuffle(m[0](x), 3)), conv(4, 6, 1), conv(6, 5, 3)),
    "shuffled depthwise": of(
        "odd",
        lambda m, x: m[2](m[1](F.channel_shuffle(m[0](x), 3)) * torch.arange(12.0)[:, None, None]),
        conv(4, 6, 1),
        conv(6, 12, 3, groups=6),
        conv(12, 5, 1),
    ),
    "constants beside a flattened map": chain("odd", nn.Flatten, norm(nn.BatchNorm1d, 396), lambda: nn.Linear(396, 3)),
    "shuffle and split": of(
        "odd",
        lambda m, x: torch.cat([y * k for k, y in enumerate(F.channel_shuffle(m[0](x), 2).chunk(2, 1), 1)], 1),
        conv(4, 8, 1),
    ),
    "pixel shuffle": chain("odd", conv(4, 12, 1), lambda: nn.PixelShuffle(2)),
    "pixel unshuffle": chain("even", lambda: nn.PixelUnshuffle(2), conv(16, 3, 1)),
    "squeeze and excite": of(
        "odd",
        lambda m, x: x * m[1](m[0](x.mean((2, 3)))).sigmoid()[:, :, None, None],
        lambda: nn.Linear(4, 2),
        lambda: nn.Linear(2, 4),
    ),
    "attention": (
        "tokens",
        lambda: Net(lambda m, x: m[0](x, x, x, need_weights=False)[0], nn.MultiheadAttention(6, 2, batch_first=True)),
    ),
    "transformer": ("tokens", lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)),
    "causal attention": of("even", lambda _, x: F.scaled_dot_product_attention(x, x, x, is_causal=True)),
    "masked attention": of(
        "even",
        lambda _, x: F.scaled_dot_product_attention(x, x, x, (torch.arange(12) > 3).expand(12, 12))
        + (x @ x.mT).masked_fill(torch.arange(12) > 4, -torch.inf).softmax(-1) @ x,
    ),
    "products": of("odd", lambda _, x: x.flatten(2) @ x.flatten(2).mT + torch.einsum("bchw,bdhw->bcd", x, x)),
    "constant product": of("tokens", lambda _, x: x @ torch.arange(12.0).reshape(6, 2) + torch.ones(5, 5) @ x[..., :2]),
    "softmax": of("odd", lambda _, x: x.softmax(1) + x.log_softmax(2) + x.softmax(-1)),
    "arithmetic": of(
        "odd",
        lambda _, x: (x - 1) * 2 / (x.abs() + 3) + torch.maximum(x, -x) ** 2 - torch.minimum(x, x.square()) + (2 - x),
    ),
    "more arithmetic": of(
        "odd",
        lambda _, x: (x.abs() + 1).log() + (x * x + 1).rsqrt() + x.exp().reciprocal() + x.sin() * x.cos() + x.floor(),
    ),
    "reductions": of(
        "odd",
        lambda _, x: x.amax(1, True) + x.amin((2, 3), True) + x.std((2, 3), keepdim=True) + x.sum(3, True),
    ),
    "broadcasts": of("odd", lambda _, x: x.mean(3, True) * x.mean(2, True) + torch.arange(11.0)[:, None]),
    "selected": of("odd", lambda _, x: torch.where(torch.arange(9) > 3, x, 0) + x.where(x.new_ones(9) > 0, x * 2)),
    "slices": of(
        "odd",
        lambda _, x: torch.cat([x[:, ::2], x[:, :4], x[:, 1:3].flip(1), torch.stack(x.unbind(1), 1)], 1)[:, :, 2:, ::3],
    ),
    "split, rolled, repeated": of(
        "odd",
        lambda _, x: torch.roll(torch.cat(x.split([1, 3], 1)[::-1], 1), (1, -2), (2, 3)).repeat(1, 2, 1, 1).roll(5),
    ),
    "patches": of("even", lambda _, x: x.unflatten(2, (6, 2)).permute(0, 2, 1, 3, 4).flatten(2).squeeze(0)[None]),
    "functions": of(
        "tokens",
        lambda _, x: torch.addmm(torch.ones(6), x[0].mm(torch.ones(6, 6)), torch.ones(6, 6)).clamp(-1, 9).clamp_min(0)
        + x.clamp_max(0.5).to(torch.float64).float().pow(x * 0).clone()
        + x.mean() + x.sum() + x.max() + F.relu6(x) + torch.add(x, x, alpha=3) - torch.sub(x, 2, alpha=2)
        + torch.where(torch.arange(6) > 2, 1.0, 2.0) + x.where(torch.arange(6) > 2, torch.tensor(1.0)),
    ),
    "one dimension, more": of(
        "sequence",
        lambda m, x: torch.cat(
            [m[0](x), F.adaptive_avg_pool1d(x, 5), F.adaptive_max_pool1d(x, 5)], 2
        ),
        lambda: nn.Conv1d(6, 6, 3, padding="same"),
    ),
    "embedding": chain("numbers", lambda: nn.Embedding(7, 4), nn.Flatten, lambda: nn.Linear(12, 2)),
    "views": of(
        "tokens",
        lambda _, x: x.squeeze().t() + x[0].mean(0)[:, None].expand(6, 5) + x[:, None].squeeze((0, 1)).mT.squeeze(0),
    ),
    "compared": of(
        "odd",
        lambda _, x: torch.where((x > 0.2) & ~(x >= 0.9) | (x < -1), x, x / 3)
        + ((x <= 0.1) | (x == 2)).logical_or(x != x).logical_and(x != 5).logical_and((x > 0).logical_not()).float()
        + torch.where(x.mean((2, 3), keepdim=True) > x, x[:, :1], 1.0),
    ),
    "powers": of("odd", lambda _, x: sum((i * x**i for i in (3, 4, 5, 7)), x**2)),
    "masked with constants": of(
        "even",
        lambda _, x: (x @ x.mT + torch.full((12, 12), -torch.inf).triu(1)).softmax(-1)
        + torch.where(torch.arange(12) > 4, -torch.inf, x @ x.mT).softmax(-1)
        + torch.where(x @ x.mT > 1, x @ x.mT, -torch.inf).softmax(-2),
    ),
    "compared with each other": of(
        "odd",
        lambda _, x: sum(f(x, x.flip(1)).float() * (i + 1) for i, f in enumerate(COMPARISONS)),
    ),
    "filled": of(
        "odd",
        lambda _, x: x.masked_fill(x > 0.3, 2.0) + x.masked_fill(x < x.mean(1, keepdim=True), float("-inf")).softmax(1)
        + x.masked_fill(x > 1, torch.tensor(0.5)),
    ),
    "written into": of("odd", lambda _, x: written(x * 2, x)),
    "chosen": of(
        "odd",
        lambda _, x: torch.cat([x[:, [2, 0, 3, 1]], x[:, [1, 1, 0]], x[:, [3]], x[:, torch.tensor([-1, 0])]], 1)[
            ..., [8, 0, 0, 3]
        ]
        + x[:, :1, :1][:, :, [0] * 11, :4],
    ),
    "chosen, then a layer": of(
        "odd",
        lambda _, x: F.conv2d(x[:, [3, 1, 0, 2]][:, :, [5, 4, 0]], torch.arange(36.0).sin().view(3, 4, 3, 1)),
    ),
    "chosen in several dimensions": of(
        "odd",
        lambda _, x: x[:, torch.tensor([[0, 3], [2, 2]])].sum((1, 2))[:, :3, :1]
        + x[:, :, [0, -1, 5], [1, 3, 0]].sum(1)[..., None]
        + x[:, torch.tensor([[0], [2], [1]]), 4, [1, 3]].mean(-1)[..., None]
        + x[:, [0, 3, 1], :, [1, 3, 0]].permute(1, 0, 2)[..., :1],
    ),
    "selected and gathered": of(
        "odd",
        lambda _, x: x.index_select(1, torch.tensor([3, 0, 0])) + x.index_select(-2, torch.arange(11).flip(0))[:, 1:]
        + x.gather(1, (torch.arange(297).view(1, 3, 11, 9) % 4))
        + x[..., :9].gather(3, torch.tensor(4).expand(1, 3, 11, 9)),
    ),
    "repeated one by one": of(
        "odd", lambda _, x: x.repeat_interleave(3, 1)[:, :4] + x.repeat_interleave(2, 2)[:, :, 9:20]
    ),
    "places": of(
        "odd",
        lambda _, x: x.argmax(1).float() + x.argmax(2, keepdim=True)[:, 0].float()
        - x.argmin(3)[:, :1, :, None].float().sum(1)
        + x.argmax().float() / 99 + x[:, :1].argmin(1).float() + x[:, 1:].argmax(keepdim=True)[0].float() / 99,
    ),
    "largest and least": of(
        "odd",
        lambda _, x: x.max(1)[0] + x.max(2, keepdim=True)[0][:, 0] + x.min(1, keepdim=True).values[:, 0] + x.min()
        + x.min(-1)[1].float()[:, 0, :, None] + x.max(1).indices.float(),
    ),
    "signs": of(
        "odd",
        lambda _, x: x.relu().sign() - x.sign() * 0.3 + F.softshrink(x, 0.2) + F.hardshrink(x, 0.2)
        + F.logsigmoid(3 * x),
    ),
    "bicubic": of(
        "odd",
        lambda _, x: F.interpolate(x, (14, 5), mode="bicubic")
        + F.interpolate(x, (14, 5), mode="bicubic", align_corners=True)
        + F.interpolate(x, scale_factor=(2, 1), mode="bicubic")[:, :, 8:, 4:],
    ),
    "several in one batch": of(
        "even",
        lambda m, x: m[5](
            m[3](F.interpolate(m[1](F.max_pool2d(m[0](torch.cat([x, x.flip(3), x.flip(2)])), 2)), (6, 4)))
            .reshape(3, -1, 3, 2)
            + m[4](m[2](torch.cat([x, x * 2, -x])[:, :, :7, :5]).transpose(2, 3)).mean((2, 3), True)
        ).view(3, 1, -1).mean(0)[:, :9],
        conv(4, 8, 3, padding=1), lambda: nn.ConvTranspose2d(8, 4, 3, 2, 1, groups=2),
        conv(4, 4, 3, groups=4), lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 8, 1), nn.PixelShuffle(2),
                                                       nn.PixelUnshuffle(4)),
        lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Conv2d(4, 1, 1)), nn.Sequential,
    ),
    "several sequences in one batch": of(
        "sequence",
        lambda m, x: torch.stack(m[0](torch.cat([x, x.flip(2)])).softmax(1).chunk(2), 1).amax(1),
        lambda: nn.Sequential(nn.Conv1d(6, 4, 3), nn.ConvTranspose1d(4, 4, 3, padding=1), nn.MaxPool1d(2)),
    ),
    "summed up": of("odd", lambda _, x: x.cumsum(1) + x.cumsum(-1) + x.cumsum(0)),
    "sorted": of(
        "odd",
        lambda _, x: x.sort(1)[0] + x.sort(2, descending=True)[0] + x.sort(0)[0] + x.topk(4, 1)[0].sort(-1)[1].float()
        + x.topk(1, 3, largest=False)[0],
    ),
    "whole numbers and booleans": of(
        "odd",
        lambda _, x: x * (x > 0) + x.argmax(1, True) / 2 + (x.argmax(1, True) + 0.5) * torch.tensor(2)
        + (x.argmax(1, True) == x.argmin(1, True).flip(2)) + (x > 0).sum(1, True) + x.clamp(-1, float("inf")),
    ),
    "any and all": of(
        "odd",
        lambda _, x: (x > 1).any(1, True) * 1.0 + (x > -1).all(2, True) * 2.0 + (x > 5).any() * 4.0
        + (x > 2).all() * 8.0 + torch.ops.aten.any.dims(x > 1.5, [1, 2], True) * 16.0
        + torch.ops.aten.all.dims(x > -2, [1, 3], True) * 32.0,
    ),
    "products of all": of("odd", lambda _, x: x.prod(1) + x.prod(3, True)[:, 0] + x[:, 0, :2, :3].prod()),
    "sums of exponentials": of(
        "odd", lambda _, x: x.logsumexp(1, True) + x.logsumexp((2, 3), True) * 9 + 50 * x.logsumexp(3)[..., None]
    ),
    "one of the classes": of("odd", lambda _, x: F.one_hot(x.argmax(1), 4).float().transpose(1, 3).mean(1)),
    "written at constant places": of("odd", put_at_places),
    "rounded": of(
        "odd",
        lambda _, x: x.ceil() + (3 * x).round() + x.trunc() + x.frac() + x.fmod(0.7) + x.fmod(x.flip(1).abs() + 1)
        + (x // 0.3) + x.div(0.3, rounding_mode="trunc") + x.div(x.abs() + 1, rounding_mode="trunc")
        + (x.argmax(1, True) * 7) // 3 + x.div(2, rounding_mode=None)
        + x.remainder(0.7) + x.remainder(x.flip(1).abs() + 1) + (x.argmax(1, True) * 7).remainder(3),
    ),
    "logarithms and exponentials": of(
        "odd",
        lambda _, x: x.abs().log1p() + (x.abs() + 1).log2() + (x.abs() + 1).log10() + x.exp2() + x.expm1() + x.sinh()
        + x.cosh() + torch.logaddexp(x, -3 * x),
    ),
    "angles": of(
        "odd",
        lambda _, x: x.sin().tan() + x.atan() + x.tanh().asin() + x.tanh().acos() + (x * x + 1).acosh()
        + (x * 0.1).tanh().atanh() + 5 * torch.atan2(x, x.flip(1)) + torch.hypot(x, x.flip(1)) + (x * 99).asinh(),
    ),
    "no numbers": of(
        "odd",
        lambda _, x: (x / x.relu().sign()).nan_to_num(posinf=3, neginf=-4) + (x.relu() / x.relu()).nan_to_num(2)
        + (-1 / x.relu()).clamp(min=-5).nan_to_num() + torch.heaviside(x.relu(), torch.tensor(0.5))
        + 2 * (1 / x.relu()).isinf().float() + torch.xlogy(x.relu(), x.relu()),
    ),
    "between maps": of("odd", lambda _, x: x.clamp(-x.mean(1, True).abs(), x[:, :1].abs()) + x.clamp(max=x.flip(1))),
    "diagonals": of(
        "odd",
        lambda _, x: x.diagonal(0, 2, 3) + x.diagonal(2, 3, 2)[..., :9]
        + x[:, :, :, :6].diagonal(-1, 2, 3).sum(-1, True) + x[:, :, 1, :4].diagonal(-1, 1, 2).sum() + x[0, 0].trace(),
    ),
    "windows": of(
        "odd",
        lambda _, x: x.unfold(2, 3, 2).sum((2, 4)) + x.unfold(-1, 4, 5).mean((2, 3, 4))[..., None] * 3
        + x[:, 0, 0].unfold(1, 3, 3)[..., 2].sum(),
    ),
    "local response": of("odd", lambda _, x: F.local_response_norm(x, 3, alpha=0.5) + F.local_response_norm(x, 2)),
    "local response of a sequence": of("sequence", lambda _, x: F.local_response_norm(x, 3, alpha=0.5)),
    "distances": of(
        "tokens",
        lambda _, x: torch.cdist(x, x.flip(2)) + torch.cdist(x, x * 2, p=1) + torch.cdist(x, x + 1, p=torch.inf)
        + F.cosine_similarity(x, x.flip(1), -1)[..., None],
    ),
    "buckets": of(
        "odd",
        lambda _, x: torch.bucketize(x, torch.tensor([-1.0, 0, 0.5])).float()
        + 0.1 * torch.bucketize(x.argmax(1), torch.tensor([1, 2]), right=True),
    ),
    "in the middle": of(
        "odd",
        lambda _, x: x.median(1).values + x.median(1)[1] + x.median(2, keepdim=True)[0][:, 0] + x.kthvalue(2, 1)[0]
        + x.kthvalue(1, 3, True)[1][:, 0],
    ),
    "both moments": of(
        "odd",
        lambda _, x: sum(torch.var_mean(x, (2, 3), keepdim=True)) + sum(torch.std_mean(x, 1, keepdim=True))
        + sum(torch.var_mean(x)),
    ),
    "vectors": of(
        "tokens",
        lambda _, x: x[0] @ x[0, 0] + x[0, :, 0] @ x[0, :, :5] + x[0, 0] @ x[0, 1] + (x[0] @ torch.arange(6.0)).sum()
        + torch.addmm(torch.ones(5), x[0], torch.ones(6, 5), beta=0.5, alpha=3)
        + torch.trapezoid(x[0], dim=1),
    ),
    "truths of numbers": of(
        "odd",
        lambda _, x: x.relu().logical_and(x.flip(1).relu()).float() + 2 * x.relu().logical_or(x.flip(2).relu())
        + 4 * x.relu().logical_not() + 8 * (x.relu().logical_xor(x.flip(1) > 0) * (x.flip(2) > 0)).float()
        + 16 * ((x > 0) ^ (x.flip(3) > 0))
        + torch.where(x > 0, 3, x.argmax(1, True)) + torch.where(x > 0, 1, 2),
    ),
    "paddings": of(
        "odd",
        lambda _, x: F.pad(x, (1, 2, 2, 1), "reflect")
        + F.pad(x, (1, 2, 2, 1), "replicate")
        + F.pad(x, (1, 2, 2, 1), "circular")
        + F.pad(x, (1, 2, 2, 1), value=3.0),
    ),
}  # fmt: skip


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(make() for _, make in CASES.values())

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        given = dict(zip(INPUTS, inputs, strict=True))
        return [part(given[source]) for part, (source, _) in zip(self.parts, CASES.values(), strict=True)]


class Asked(dict[str, Any]):
    """A table that knows which of its rows were read."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        super().__init__(table)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)


ASKED = Asked(HANDLERS)


@pytest.fixture(scope="module")
def everything() -> dict[str, tuple[Tensor, Tensor]]:
    """What the file and PyTorch give for each case."""
    torch.manual_seed(0)
    network, inputs = Everything().eval(), tuple(torch.randn(size) for size in INPUTS.values())
    inputs = (*inputs[:-1], torch.tensor([[1, 5, 3]]))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "HANDLERS", ASKED)
        found, wanted = outputs(float_model(network, inputs), *inputs), network(*inputs)
    return {name: pair for name, *pair in zip(CASES, found, wanted, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_litert_gives_what_pytorch_gives(everything: dict[str, tuple[Tensor, Tensor]], name: str) -> None:
    found, wanted = everything[name]
    assert relative_error(found, wanted) < 1e-6


def test_every_handler_was_called(everything: dict[str, tuple[Tensor, Tensor]]) -> None:
    """One that no case reaches could be wrong without anyone seeing it."""
    assert set(HANDLERS) - ASKED.read == set()
