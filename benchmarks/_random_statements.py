"""Statements of random networks: layers, functions of one map, sizes, constants, branches, parts."""

from _random_networks import LAYERS, Body, Value, Writer, statement

ACTIVATIONS = (
    "nn.ReLU()",
    "nn.SiLU()",
    "nn.LeakyReLU(1.0)",
    "nn.Identity()",
    "nn.Hardswish()",
    "nn.ReLU(inplace=True)",
)


def unit(write: Writer, c: int, o: int, k: int, act: str | None = None) -> str:
    """Text of a Sequential of convolution, norm, activation."""
    act = act or write.rng.choice(ACTIVATIONS)
    return f"nn.Sequential({write.conv(c, o, k, bias=False)}, nn.BatchNorm2d({o}), {act})"


@statement(10)
def layer(write: Writer, body: Body, x: Value) -> None:
    """Convolution, or unit, or norm, or linear layer over the channels; sometimes called again later."""
    rng = write.rng
    o, k = rng.choice((2, 4, 6)), rng.choice((1, 3, 3, 5))
    if write.layers >= LAYERS:
        norm = write.module(body, f"nn.BatchNorm2d({x.c})")
        write.put(body, f"{norm}({x.name})", *x.shape)
        return
    match rng.randrange(6):
        case 0:
            made = write.module(body, write.conv(x.c, o, k))
            body.shared.append((made, x.c, o))
            write.put(body, f"{made}({x.name})", o, x.h, x.w)
        case 1 | 2:
            made = write.module(body, unit(write, x.c, o, k))
            body.shared.append((made, x.c, o))
            write.put(body, f"{made}({x.name})", o, x.h, x.w)
        case 3:
            conv, norm = write.module(body, write.conv(x.c, o, k)), write.module(body, f"nn.BatchNorm2d({o})")
            y = write.put(body, f"{norm}({conv}({x.name}))", o, x.h, x.w)
            if rng.random() < 0.3:
                write.put(body, f"{y.name} * {norm}.weight.view(1, -1, 1, 1)", *y.shape)
        case 4:
            write.layers += 1
            made = write.module(body, f"nn.Linear({x.c}, {o})")
            write.put(body, f"{made}({x.name}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)", o, x.h, x.w)
        case 5:
            stride = 2 if min(x.h, x.w) > 3 else 1
            made = write.module(body, write.conv(x.c, o, 3, stride=stride))
            write.put(body, f"{made}.forward({x.name})", o, -(-x.h // stride), -(-x.w // stride))


@statement(4)
def own_kernel(write: Writer, body: Body, x: Value) -> None:
    """A functional convolution with parameters, sized by them or by what it gets."""
    if write.layers >= LAYERS:
        return
    write.layers += 1
    weight = write.module(body, f"nn.Parameter(torch.randn({x.c}, 1, 3, 3))", "w")
    groups = write.rng.choice((f"{x.name}.shape[1]", f"int({weight}.shape[0])", f"{x.name}.size(1)", str(x.c)))
    padding = write.rng.choice(("1", f"{weight}.shape[-1] // 2", f"int({weight}.size(2)) // 2"))
    scaled = write.rng.choice((weight, f"{weight} * {weight}.shape[0]", f"({weight} - {weight}.mean())"))
    write.put(body, f"F.conv2d({x.name}, {scaled}, padding={padding}, groups={groups})", *x.shape)


@statement(3)
def shared(write: Writer, body: Body, x: Value) -> None:
    """A module once more, maybe under another name, or one activation for all."""
    fitting = [(name, o) for name, c, o in body.shared if c == x.c]
    if not fitting or write.rng.random() < 0.3:
        if not any("self.act =" in line for line in body.init):
            body.init.append(f"self.act = {write.rng.choice(ACTIVATIONS)}")
        write.put(body, f"self.act({x.name})", *x.shape)
        return
    name, o = write.rng.choice(fitting)
    if write.rng.random() < 0.3:
        name = write.module(body, name, "again")
    write.put(body, f"{name}({x.name})", o, x.h, x.w)


@statement(2)
def repeated(write: Writer, body: Body, x: Value) -> None:
    """A ModuleList or Sequential in a loop."""
    if write.layers + 2 > LAYERS:
        return
    units = ", ".join(unit(write, x.c, x.c, 3) for _ in range(2))
    made = write.module(body, write.rng.choice((f"nn.ModuleList([{units}])", f"nn.Sequential({units})")))
    y = write.put(body, x.name, *x.shape)
    match write.rng.randrange(4):
        case 0:
            body.say(f"for layer in {made}:")
            body.say(f"    {y.name} = layer({y.name}) + {y.name}")
        case 1:
            body.say(f"for i, layer in enumerate({made}):")
            body.say(f"    {y.name} = layer({y.name}) if i % 2 else layer({y.name}) * 2")
        case 2:
            body.say(f"{y.name} = functools.reduce(lambda y, layer: layer(y), {made}, {y.name})")
        case 3:
            body.say(f"{y.name} = sum(layer({y.name}) for layer in reversed({made}))")


FUNCTIONS = (
    "F.relu({x})", "torch.sigmoid({x})", "{x}.clamp(-1, 1)", "-{x}", "{x} / 2", "{x} + 1", "1 - {x}", "{x} * {x}",
    "F.leaky_relu({x}, 1.0)", "F.leaky_relu({x}, 0.1)", "{x}.abs().sqrt()", "torch.tanh({x})", "{x}.flip(1)",
    "torch.roll({x}, 1, 2)", "{x}.softmax(1)", "torch.where({x} > 0.2, {x}, {x} / 3)", "{x}.cumsum(3)", "{x}.clone()",
    "F.dropout({x}, 0.5, self.training)", "{x} - {x}.mean((2, 3), keepdim=True)", "{x} * {x}.shape[1]",
    "{x} / math.sqrt({x}.shape[1])", "{x} * ({x}.numel() // {x}.shape[0]) / 99", "F.layer_norm({x}, {x}.shape[1:])",
    "F.max_pool2d({x}, 3, 1, 1)", "F.avg_pool2d({x}, 3, 1, 1)", "{x}.sort(dim=1)[0]", "{x}.contiguous()",
    "{x}.detach()", "{x}.to({x}.dtype)", "F.normalize({x}, dim=1)", "{x}.transpose(2, 3).transpose(2, 3)",
    "{x}.reshape({x}.shape[0], {x}.shape[1], -1).view({x}.shape)", "{x}.reshape({x}.size(0), -1).reshape_as({x})",
    "torch.stack([{x}, {x} * 2]).sum(0)", "torch.einsum('bchw,bchw->bchw', {x}, {x}.sigmoid())",
)  # fmt: skip


@statement(8)
def function(write: Writer, body: Body, x: Value) -> None:
    write.put(body, write.rng.choice(FUNCTIONS).format(x=x.name), *x.shape)


@statement(5)
def joined(write: Writer, body: Body, x: Value) -> None:
    """Two maps of one shape, or one with itself on the channels."""
    y = write.like(body, x)
    if y is None:
        write.put(body, f"torch.cat([{x.name}, -{x.name}[:, :1]], 1)", x.c + 1, x.h, x.w)
        return
    both = write.rng.choice(
        ("{x} + {y}", "{x} * {y}", "{x} - {y} / 2", "torch.maximum({x}, {y})", "{x}.add({y}, alpha=2)")
    )
    if write.rng.random() < 0.25 and x.c <= 4:
        write.put(body, f"torch.cat(({x.name}, {y.name}), dim=1)", 2 * x.c, x.h, x.w)
    else:
        write.put(body, both.format(x=x.name, y=y.name), *x.shape)


@statement(5)
def constant(write: Writer, body: Body, x: Value) -> None:
    """Made in forward, or outside of torch, or from sizes."""
    numbers = [round(write.rng.uniform(-1, 1), 2) for _ in range(x.c)]
    order = write.rng.sample(range(x.c), x.c)
    texts = (
        f"{x.name} + torch.arange({x.c}.0).view(1, {x.c}, 1, 1)",
        f"{x.name} * torch.tensor({numbers}).view(1, -1, 1, 1)",
        f"{x.name}[:, torch.tensor({order})]",
        f"{x.name}[:, {order}]",
        f"{x.name} * float(np.sqrt({1 + abs(numbers[0])}))",
        f"{x.name} + torch.from_numpy(np.linspace(0, 1, {x.c})).to({x.name}).view(-1, 1, 1)",
        f"{x.name} + torch.linspace(-1, 1, {x.name}.shape[-1]).to({x.name}.dtype)",
        f"{x.name} + torch.ones_like({x.name}).cumsum(2)",
        f"{x.name} * {x.name}.new_full((1, {x.c}, 1, 1), 0.7)",
        f"{x.name} - torch.zeros({x.name}.shape[2], {x.name}.shape[3], dtype={x.name}.dtype).fill_(0.3)",
        f"{x.name} @ torch.eye({x.name}.size(3), dtype={x.name}.dtype).roll(1, 0)",
    )
    write.put(body, write.rng.choice(texts), *x.shape)


@statement(5)
def sized(write: Writer, body: Body, x: Value) -> None:
    """Other heights and widths, computed from those that are there."""
    n, h, w = x.name, x.h, x.w
    up, half = (-(-h // 4) * 4, -(-w // 4) * 4), (-(-h // 2), max(1, w // 2))
    texts = [
        (f"F.pad({n}, (0, -{n}.shape[3] % 4, 0, (4 - {n}.shape[2] % 4) % 4))", x.c, *up),
        (f"{n}[:, :, : math.ceil({n}.shape[2] / 2), : max(1, int({n}.shape[3] * 0.5))]", x.c, *half),
        (f"{n}.transpose(2, 3)", x.c, w, h),
        (f"torch.cat(torch.split({n}, [1, {n}.shape[1] - 1], 1)[::-1], 1)", x.c, h, w),
        (f"torch.cat({n}.chunk(2, 1)[::-1], 1)", x.c, h, w),
        (f"F.adaptive_avg_pool2d({n}, ({n}.shape[2] // 2 + 1, 2))", x.c, h // 2 + 1, 2),
        (f"{n} * F.avg_pool2d({n}, {n}.size()[2:])", x.c, h, w),
    ]  # fmt: skip
    if min(h, w) > 1:
        texts.append((f"F.pad({n}, (1, 1, 1, 1), mode='reflect')", x.c, h + 2, w + 2))
    if min(h, w) > 3:
        texts.append((f"F.max_pool2d({n}, 2, ceil_mode=True)", x.c, -(-h // 2), -(-w // 2)))
    if h * w < 40:
        texts.append((f"F.interpolate({n}, size=(2 * {n}.shape[2], {n}.shape[3] + 3))", x.c, 2 * h, w + 3))
    if x.c % 2 == 0:
        view = f"{n}.reshape({n}.shape[0], 2, {n}.shape[1] // 2, {n}.shape[2], -1).transpose(1, 2).reshape({n}.shape)"
        texts += [(view, x.c, h, w), (f"{n}[:, ::2] * {n}[:, 1::2]", x.c // 2, h, w)]
    write.put(body, *write.rng.choice([text for text in texts if text[2] * text[3] <= 400]))


@statement(2)
def attention(write: Writer, body: Body, x: Value) -> None:
    """Over the positions, with sizes unpacked."""
    if write.layers >= LAYERS or x.h * x.w > 150:
        return
    write.layers += 1
    fc = write.module(body, f"nn.Linear({x.c}, {x.c})")
    b, c, h, w = (write.name(letter) for letter in "bchw")
    body.say(f"{b}, {c}, {h}, {w} = {x.name}.shape")
    tokens = write.name("t")
    body.say(f"{tokens} = {x.name}.flatten(2).transpose(1, 2)")
    body.say(f"{tokens} = ({fc}({tokens}) @ {tokens}.transpose(-2, -1) / math.sqrt({c})).softmax(-1) @ {tokens}")
    write.put(body, f"{tokens}.transpose(1, 2).reshape({b}, {c}, {h}, {w})", *x.shape)


CONDITIONS = (
    "isinstance({x}, torch.Tensor)", "torch.is_tensor({x})", "type({x}) is torch.Tensor", "not self.training",
    "{x}.shape[1] == {c}", "{x}.shape[2] > {h} // 2", "{x}.size(3) % 2", "{x}.dim() == 4", "{x}.is_floating_point()",
    "hasattr({x}, 'shape')", "{x}.shape[-2:] == ({h}, {w})", "isinstance({x}.shape[2], int)", "callable({x})",
    "isinstance({x}, (list, tuple))", "{x} is None", "{x}.device.type == 'cpu'", "{x}.is_contiguous()",
    "len({x}.shape) == 3", "max({x}.shape[2:]) > 8", "next(self.parameters(), {x}).dim() > 1",
)  # fmt: skip


@statement(6)
def branch(write: Writer, body: Body, x: Value) -> None:
    """Two functions of one map; rarely on its values, or on the batch."""
    chance = write.rng.random()
    condition = write.rng.choice(CONDITIONS).format(x=x.name, c=x.c, h=x.h, w=x.w)
    if chance < 0.04:
        condition = write.rng.choice(("{x}.sum() > 0", "{x}.mean().item() < 0.1", "bool(({x} > 3).any())")).format(
            x=x.name
        )
        write.traits.add("value")
    elif chance < 0.08:
        condition = write.rng.choice(("{x}.shape[0] > 1", "len({x}) % 2")).format(x=x.name)
        write.traits.add("batch")
    one, other = (write.rng.choice(FUNCTIONS).format(x=x.name) for _ in range(2))
    match write.rng.randrange(3):
        case 0:
            write.put(body, f"{one} if {condition} else {other}", *x.shape)
        case 1:
            name = write.name()
            body.say(f"if {condition}:")
            body.say(f"    {name} = {one}")
            body.say("else:")
            body.say(f"    {name} = {other}")
            body.values.append(Value(name, *x.shape))
        case 2:
            name = write.name()
            body.say("try:")
            body.say(f"    assert {condition}")
            body.say(f"    {name} = {one}")
            body.say("except AssertionError:")
            body.say(f"    {name} = {other}")
            body.values.append(Value(name, *x.shape))


@statement(3)
def part(write: Writer, body: Body, x: Value) -> None:
    """A class of its own, called once or twice."""
    if write.nested >= 3:
        return
    write.nested += 1
    name = f"Part{write.nested}"
    write.write(name, [x.shape], write.rng.randint(1, 4))
    shape = write.returned
    made = write.module(body, f"{name}()")
    y = write.put(body, f"{made}({x.name})" if write.rng.random() < 0.7 else f"{made}(x0={x.name})", *shape)
    if shape == x.shape and write.rng.random() < 0.3:
        write.put(body, f"{made}({y.name})", *shape)
