"""Random small CNNs as Python source: what people write for small devices, mixed by chance, and hard for integers.

Odd sizes, clips beside other readers, all activations, squeeze and excitation, sums and products of values of unlike
size, concatenations of such, pools, upsampling, transposed convolutions; one to three outputs, of which some join what
has nothing in common. The same number gives the same text.
"""

import random
from dataclasses import dataclass

import torch
from _random_networks import HEAD, Body, Network, Value, Writer

from nbcompile.core.example import TensorSpec

SIZES = ((17, 13), (15, 21), (24, 24), (32, 19), (9, 33))
ACTIVATIONS = (
    *("nn.ReLU()", "nn.ReLU6()", "nn.Hardswish()", "nn.SiLU()", "nn.Hardsigmoid()", "nn.Sigmoid()", "nn.Tanh()"),
    *("nn.LeakyReLU(0.1)", "nn.PReLU()", "nn.ELU()", "nn.ELU(1.5)", "nn.SELU()", "nn.CELU(0.7)", "nn.GELU()"),
    *("nn.GELU(approximate='tanh')", "nn.Softplus()", "nn.Mish()", "nn.Softsign()", "nn.Softshrink(0.3)"),
    *("nn.Hardshrink(0.4)", "nn.Threshold(0.2, -0.5)", "nn.Hardtanh(-1.5, 2.0)", "nn.LogSigmoid()", "nn.Tanhshrink()"),
)
COMMON = ("nn.ReLU()", "nn.ReLU6()", "nn.Hardswish()", "nn.SiLU()", "nn.Identity()")
CLIPS = (
    "F.relu({x}) + 0.3 * {x}.clamp(max=0)",
    "{x} - {x}.clamp(-0.4, 0.4)",
    "{x} + F.relu6({x} - 1)",
    "torch.maximum({x}, {x} * 0.2) - torch.minimum({x}, torch.tensor(0.5))",
    "F.relu6({x}) * 0.5 + {x}",
    "F.hardtanh({x}) + {x} / 4",
    "torch.where({x} > 0.3, {x}, {x} * 0.1)",
)
MOVES = (
    "{x}.flip(3)",
    "{x}.roll(1, 2)",
    "F.pad({x}, (1, 0, 0, 1))[:, :, 1:, :-1]",
    "F.pad({x}, (1, 1, 1, 1), value=0.7)[:, :, 1:-1, 1:-1]",
    "{x}.transpose(1, 2).transpose(1, 2)",
    "{x} * 1.0",
)
"""What keeps the size of a map, by the map's name."""


@dataclass(frozen=True)
class Cnn:
    """A network and what its outputs are made of.

    Attributes:
        network: its text; one input, batch first.
        parts: of each output, how many channels (dimension 1) each value has that was joined into it.
    """

    network: Network
    parts: tuple[tuple[int, ...], ...]

    def images(self, count: int, seed: int) -> torch.Tensor:
        """Inputs: noise over a slow ground, of different contrast."""
        generator = torch.Generator().manual_seed(seed)
        _, c, h, w = self.network.inputs[0].shape
        ground = torch.randn(count, c, 4, 4, generator=generator)
        ground = torch.nn.functional.interpolate(ground, (h, w), mode="bilinear")
        contrast = 0.5 + torch.rand(count, 1, 1, 1, generator=generator)
        return contrast * (ground + 0.5 * torch.randn(count, c, h, w, generator=generator))


class CnnWriter(Writer):
    """Knows of maps that were put together how many channels each part has."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.parts: dict[str, tuple[int, ...]] = {}

    def parts_of(self, x: Value) -> tuple[int, ...]:
        return self.parts.get(x.name, (x.c,))


def cnn(seed: int) -> Cnn:
    """Number ``seed``."""
    rng = random.Random(seed)
    writer, body = CnnWriter(rng), Body()
    shape = (rng.choice((1, 3, 3, 4)), *rng.choice(SIZES))
    body.values = [Value("x", *shape)]
    _unit(writer, body, body.values[0])
    for _ in range(rng.randint(4, 10)):
        recent = body.values[-3:] if rng.random() < 0.8 else body.values[1:]
        rng.choices(*zip(*KINDS.items(), strict=True))[0](writer, body, rng.choice(recent))
    parts = _returned(writer, body)
    lines = ["class Net(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += [f"        {line}" for line in body.init]
    lines += ["", "    def forward(self, x):", *(f"        {line}" for line in body.lines)]
    text = HEAD + "\n\n" + "\n".join(lines) + "\n"
    return Cnn(Network(seed, text, (TensorSpec((2, *shape), torch.float32),), frozenset(), ()), parts)


def _act(write: CnnWriter) -> str:
    return write.rng.choice(ACTIVATIONS if write.rng.random() < 0.5 else COMMON)


def _unit(write: CnnWriter, body: Body, x: Value) -> None:
    """Convolution, mostly a norm, an activation."""
    rng = write.rng
    o = rng.choice((8, 12, 16, 5))
    k, stride, dilation = rng.choice((1, 3, 3, 5)), rng.choice((1, 1, 2)), rng.choice((1, 1, 1, 2))
    groups = rng.choice([g for g in (1, 1, 1, 2, 4, x.c) if x.c % g == 0 and o % g == 0])
    pad, norm = dilation * (k // 2), rng.random() < 0.8
    sizes = [(n + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for n in (x.h, x.w)]
    layers = [f"nn.Conv2d({x.c}, {o}, {k}, {stride}, {pad}, {dilation}, {groups}, bias={not norm})"]
    layers += [f"nn.BatchNorm2d({o})"] * norm + [_act(write)]
    made = write.module(body, f"nn.Sequential({', '.join(layers)})")
    write.put(body, f"{made}({x.name})", o, *sizes)


def _bottleneck(write: CnnWriter, body: Body, x: Value) -> None:
    """Widened, depthwise, sometimes squeezed and excited, narrowed, added."""
    rng, act = write.rng, _act(write)
    wide, k = 2 * x.c, rng.choice((3, 5))
    layers = [f"nn.Conv2d({x.c}, {wide}, 1, bias=False)", f"nn.BatchNorm2d({wide})", act]
    layers += [f"nn.Conv2d({wide}, {wide}, {k}, 1, {k // 2}, groups={wide}, bias=False)", f"nn.BatchNorm2d({wide})"]
    made = write.module(body, f"nn.Sequential({', '.join([*layers, act])})")
    y = write.put(body, f"{made}({x.name})", wide, x.h, x.w)
    if rng.random() < 0.5:
        y = _excited(write, body, y)
    narrow = write.module(body, f"nn.Sequential(nn.Conv2d({wide}, {x.c}, 1), nn.BatchNorm2d({x.c}))")
    write.put(body, f"{x.name} + {narrow}({y.name})", *x.shape)


def _excited(write: CnnWriter, body: Body, x: Value) -> Value:
    """Times a factor per channel that is computed from all of the map, or per place from all channels."""
    rng = write.rng
    gate = rng.choice(("nn.Sigmoid()", "nn.Hardsigmoid()"))
    if rng.random() < 0.3:
        made = write.module(body, f"nn.Sequential(nn.Conv2d(2, 1, 3, 1, 1), {gate})")
        both = f"torch.cat([{x.name}.mean(1, keepdim=True), {x.name}.amax(1, keepdim=True)], 1)"
        return write.put(body, f"{x.name} * {made}({both})", *x.shape)
    less = max(x.c // 4, 2)
    pool = rng.choice(("nn.AdaptiveAvgPool2d(1)", "nn.AdaptiveMaxPool2d(1)"))
    layers = f"{pool}, nn.Conv2d({x.c}, {less}, 1), {_act(write)}, nn.Conv2d({less}, {x.c}, 1), {gate}"
    made = write.module(body, f"nn.Sequential({layers})")
    return write.put(body, f"{x.name} * {made}({x.name})", *x.shape)


def _joined(write: CnnWriter, body: Body, x: Value) -> None:
    """Two maps of one size: sum, difference, product, the larger one; or one with a function of itself."""
    other = write.like(body, x)
    form = write.rng.choice(("{a} + {b}", "{a} - 0.5 * {b}", "{a} * {b}", "torch.maximum({a}, {b})", "({a} + {b}) / 2"))
    b = other.name if other else f"torch.tanh({x.name})"
    write.put(body, form.format(a=x.name, b=b), *x.shape)


def _clipped(write: CnnWriter, body: Body, x: Value) -> None:
    write.put(body, write.rng.choice(CLIPS).format(x=x.name), *x.shape)


def _moved(write: CnnWriter, body: Body, x: Value) -> None:
    y = write.put(body, write.rng.choice(MOVES).format(x=x.name), *x.shape)
    write.parts[y.name] = write.parts_of(x)


def _activated(write: CnnWriter, body: Body, x: Value) -> None:
    act = write.module(body, write.rng.choice(ACTIVATIONS))
    write.put(body, f"{act}({x.name})", *x.shape)


def _concatenated(write: CnnWriter, body: Body, x: Value) -> None:
    """Side by side with another map, or with itself at another size of values; sometimes shuffled."""
    rng = write.rng
    fitting = [v for v in body.values if (v.h, v.w) == (x.h, x.w) and v is not x]
    other = rng.choice(fitting) if fitting else x
    b = rng.choice(("{}", "{} * 20", "{} * 0.05", "F.relu6({})", "torch.sigmoid({})", "torch.tanh({}) - 3"))
    y = write.put(body, f"torch.cat([{x.name}, {b.format(other.name)}], 1)", x.c + other.c, x.h, x.w)
    write.parts[y.name] = (*write.parts_of(x), *write.parts_of(other))
    if y.c % 2 == 0 and rng.random() < 0.3:
        y = write.put(body, f"F.channel_shuffle({y.name}, 2)", *y.shape)
        write.parts[y.name] = (1,) * y.c
    if y.c > 24:
        narrow = write.module(body, f"nn.Conv2d({y.c}, 8, 1)")
        write.put(body, f"{narrow}({y.name})", 8, y.h, y.w)


def _split(write: CnnWriter, body: Body, x: Value) -> None:
    """Halves, one of them gone through something; a gated one."""
    if x.c % 2:
        return _moved(write, body, x)
    half = x.c // 2
    a, b = (write.put(body, f"{x.name}.chunk(2, 1)[{i}]", half, x.h, x.w) for i in (0, 1))
    if x.name in write.parts:
        write.parts |= {a.name: (1,) * half, b.name: (1,) * half}
    form = write.rng.choice(("{a} * torch.sigmoid({b})", "torch.cat([{b}, F.relu({a})], 1)", "F.glu({x}, 1)"))
    joined = "cat" in form
    y = write.put(body, form.format(a=a.name, b=b.name, x=x.name), x.c if joined else half, x.h, x.w)
    if joined:
        write.parts[y.name] = (*write.parts_of(b), half)


def _pooled(write: CnnWriter, body: Body, x: Value) -> None:
    if min(x.h, x.w) < 4:
        return _activated(write, body, x)
    form, (h, w) = write.rng.choice(
        (
            ("F.max_pool2d({}, 2)", (x.h // 2, x.w // 2)),
            ("F.max_pool2d({}, 3, 2, 1)", ((x.h + 1) // 2, (x.w + 1) // 2)),
            ("F.max_pool2d({}, 3, 1, 1)", (x.h, x.w)),
            ("F.avg_pool2d({}, 2)", (x.h // 2, x.w // 2)),
            ("F.avg_pool2d({}, 3, 2, 1, count_include_pad=False)", ((x.h + 1) // 2, (x.w + 1) // 2)),
            ("F.avg_pool2d({}, 3, 1, 1)", (x.h, x.w)),
            ("F.adaptive_avg_pool2d({}, (3, 2))", (3, 2)),
        )
    )
    write.put(body, form.format(x.name), x.c, h, w)


def _enlarged(write: CnnWriter, body: Body, x: Value) -> None:
    rng, bias = write.rng, write.rng.random() < 0.5
    if max(x.h, x.w) > 20:
        return _pooled(write, body, x)
    match rng.randrange(6):
        case 0:
            write.put(body, f"F.interpolate({x.name}, scale_factor=2)", x.c, 2 * x.h, 2 * x.w)
        case 1:
            corners = rng.choice((True, False))
            made = f"F.interpolate({x.name}, scale_factor=2, mode='bilinear', align_corners={corners})"
            write.put(body, made, x.c, 2 * x.h, 2 * x.w)
        case 2:
            made = write.module(body, f"nn.ConvTranspose2d({x.c}, 6, 2, 2, bias={bias})")
            write.put(body, f"{made}({x.name})", 6, 2 * x.h, 2 * x.w)
        case 3:
            made = write.module(body, f"nn.ConvTranspose2d({x.c}, 6, 3, 2, 1, 1, bias={bias})")
            write.put(body, f"F.relu6({made}({x.name}))", 6, 2 * x.h, 2 * x.w)
        case 4:
            made = write.module(body, f"nn.Conv2d({x.c}, 24, 1)")
            write.put(body, f"F.pixel_shuffle({made}({x.name}), 2)", 6, 2 * x.h, 2 * x.w)
        case 5:
            like = rng.choice(body.values)
            made = f"F.interpolate({x.name}, size={(like.h, like.w)}, mode={rng.choice(('nearest', 'bilinear'))!r})"
            write.put(body, made, x.c, like.h, like.w)


def _normed(write: CnnWriter, body: Body, x: Value) -> None:
    """A norm that is computed from the map itself, or a factor and a shift."""
    if write.rng.random() < 0.3:
        made = write.module(
            body, write.rng.choice((f"nn.GroupNorm(1, {x.c})", f"nn.InstanceNorm2d({x.c}, affine=True)"))
        )
        write.put(body, f"{made}({x.name})", *x.shape)
        return
    scale = write.module(body, f"nn.Parameter(torch.randn(1, {x.c}, 1, 1))", "w")
    write.put(body, f"{x.name} * {scale} + 0.5", *x.shape)


def _returned(write: CnnWriter, body: Body) -> tuple[tuple[int, ...], ...]:
    """The return statement; channels of what each output is made of."""
    rng, values = write.rng, body.values[1:]
    chosen = [values[-1], *rng.sample(values[:-1], min(rng.randint(0, 2), len(values) - 1))]
    given, parts = [], []
    for v in chosen:
        kind = rng.randrange(7)
        if kind == 0:
            head = write.module(body, f"nn.Linear({v.c}, 7)")
            given.append(f"{head}({v.name}.mean((2, 3)))")
            parts.append((7,))
        elif kind == 1:
            head = write.module(body, f"nn.Linear({v.c}, 5)")
            given.append(f"{head}(F.adaptive_avg_pool2d({v.name}, 1).flatten(1)).softmax(1)")
            parts.append((5,))
        elif kind == 2:
            head, scale = write.module(body, f"nn.Conv2d({v.c}, 6, 1)"), rng.choice((1, 4, 640))
            y = f"{head}({v.name})"
            given.append(f"torch.cat([{y}[:, :4].sigmoid() * {scale}, {y}[:, 4:].sigmoid()], 1)")
            parts.append((4, 2))
        elif kind == 3:
            given.append(f"torch.cat([{v.name}.mean((2, 3)), {v.name}.amax((2, 3))], 1)")
            parts.append((v.c, v.c))
        elif kind == 4:
            head = write.module(body, f"nn.Conv2d({v.c}, 3, 1)")
            given.append(f"{head}({v.name}).softmax(1)")
            parts.append((3,))
        else:
            given.append(v.name)
            parts.append(write.parts_of(v))
    body.say(f"return {', '.join(given)}")
    return tuple(parts)


KINDS = {
    _unit: 10, _bottleneck: 8, _joined: 8, _clipped: 6, _moved: 3, _activated: 6, _concatenated: 6, _split: 3,
    _pooled: 4, _enlarged: 5, _normed: 2,
}  # fmt: skip
"""What there is to draw, and how often each."""
