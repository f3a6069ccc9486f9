"""Statements of random networks that change something: values in place, containers, what is kept; and rare habits."""

from _random_networks import LAYERS, Body, Value, Writer, statement
from _random_statements import unit

WRITES = (
    "{x}.mul_(2)", "{x} += 1", "{x} *= 0.5", "{x}[:, 0] = 0", "{x}[:, :1] *= 3", "{x}[..., 0] += 1", "{x}.neg_()",
    "F.relu({x}, inplace=True)", "{x}.clamp_(max=1)", "{x}[:, -1:].sub_(0.5)", "{x}[{x} < -1] = -1",
    "{x}[:, :, 1:] /= 2", "torch.add({x}, 1, out={x})", "{x}.copy_({x}.flip(1))", "{x}[0, 0, 0, 0] = 7",
    "{x}.masked_fill_({x} > 2, 2)",
)  # fmt: skip


@statement(5)
def in_place(write: Writer, body: Body, x: Value) -> None:
    """Written into: a copy, a view of one, a value that others read too, or the input itself."""
    chance = write.rng.random()
    y = x if chance < 0.5 else write.put(body, f"{x.name} * 1", *x.shape)
    if chance > 0.8 and y.h > 1:
        y, whole = write.put(body, f"{y.name}[:, :, 1:]", y.c, y.h - 1, y.w), y
        body.say(write.rng.choice(WRITES).format(x=y.name))
        body.values.append(whole)
    else:
        body.say(write.rng.choice(WRITES).format(x=y.name))


@statement(4)
def container(write: Writer, body: Body, x: Value) -> None:
    """Lists and dicts that are filled, turned, emptied."""
    y = write.like(body, x) or x
    name = write.name("maps")
    body.say(f"{name} = [{x.name}, {y.name} * 2]")
    match write.rng.randrange(6):
        case 0:
            write.put(body, f"{name}.pop() - {name}.pop(0)", *x.shape)
        case 1:
            body.say(f"{name}.reverse()")
            write.put(body, f"{name}[0] + {name}[-1] / 3", *x.shape)
        case 2 if write.layers + 2 <= LAYERS:
            units = [unit(write, x.c, x.c, 1) for _ in range(2)]
            made = write.module(body, f"nn.ModuleList([{', '.join(units)}])")
            body.say(f"for i, layer in enumerate({made}):")
            body.say(f"    {name}[i] = layer({name}[i])")
            write.put(body, f"{name}[0] * {name}[1]", *x.shape)
        case 3:
            body.say(f"{name}.insert(0, {name}[1].relu())")
            body.say(f"{name}.append({name}.pop(1))")
            write.put(body, f"torch.stack({name}).sum(0)", *x.shape)
        case 4:
            kept = write.name("kept")
            body.say(f"{kept} = dict(zip('ab', {name}))")
            body.say(f"{kept}['c'] = {kept}.pop('a') - {kept}['b']")
            write.put(body, f"sum({kept}.values())", *x.shape)
        case _:
            body.say(f"first, *rest = {name} + [{x.name}]")
            write.put(body, "first - sum(rest[::-1])", *x.shape)


TAKER = """class {name}(nn.Module):
    def __init__(self):
        super().__init__()
        self.unit = {unit}

    def forward(self, maps, scale=1.0, *, extra=None):
        x = maps.pop({end})
        if maps and x.shape[-2:] != maps[0].shape[-2:]:
            x = F.interpolate(x, size=maps[0].shape[-2:])
        {change}
        return self.unit(x) * scale if extra is None else self.unit(x) + extra
"""


@statement(3)
def taker(write: Writer, body: Body, x: Value) -> None:
    """A part that takes a list, compares shapes and changes it."""
    if write.layers >= LAYERS or write.nested >= 4:
        return
    write.nested += 1
    y, name, maps = write.like(body, x) or x, f"Taker{write.nested}", write.name("maps")
    change = write.rng.choice(("maps.append(x)", "maps.reverse()", "maps[0] = maps[0] * 2", "maps.insert(0, x + 1)"))
    end = write.rng.choice(("", "0"))
    text = TAKER.format(name=name, unit=unit(write, x.c, x.c, 3), end=end, change=change)
    write.classes.append(text)
    made = write.module(body, f"{name}()")
    body.say(f"{maps} = [{x.name}, {y.name}, {x.name} / 2]")
    call = write.rng.choice((f"{made}({maps})", f"{made}({maps}, 2.0)", f"{made}({maps}, extra={x.name})"))
    write.put(body, call, *x.shape)
    write.put(body, f"{maps}[0] - {maps}[-1] / 2", *x.shape)


@statement(3)
def kept(write: Writer, body: Body, x: Value) -> None:
    """Made in the first call, or made anew and left on the module, or counted."""
    n = write.name("kept")
    match write.rng.randrange(6):
        case 0:
            body.init.append(f"self.{n} = None")
            body.say(f"if self.{n} is None or self.{n}.shape[-1] != {x.name}.shape[-1]:")
            body.say(f"    self.{n} = torch.linspace(-1, 1, {x.name}.shape[-1]).to({x.name})")
            write.put(body, f"{x.name} * self.{n}", *x.shape)
        case 1:
            body.init.append(f"self.{n} = torch.full((1, {x.c}, 1, 1), 0.3)")
            body.say(f"self.{n} = self.{n}.type_as({x.name})")
            write.put(body, f"{x.name} - self.{n}", *x.shape)
        case 2:
            body.say(f"self.{n} = {x.name}")
            write.put(body, f"self.{n}.relu()", *x.shape)
        case 3:
            body.init.append(f"self.register_buffer('{n}', torch.zeros((), dtype=torch.long))")
            body.say(f"self.{n} += 1")
        case 4:
            body.init.append(f"self.{n} = None")
            body.say(f"if self.{n} != {x.name}.shape[2:]:")
            body.say(f"    self.{n} = {x.name}.shape[2:]")
            write.put(body, f"{x.name} * self.{n}[0]", *x.shape)
        case 5 if write.rng.random() < 0.3:
            write.traits.add("state")
            body.init.append(f"self.{n} = 0")
            body.say(f"self.{n} = self.{n} * 0.5 + {x.name}.mean((0, 2, 3), keepdim=True)")
            write.put(body, f"{x.name} - self.{n}", *x.shape)


@statement(1)
def hooked(write: Writer, body: Body, x: Value) -> None:
    """A hook that changes what a module gives."""
    if body.shared:
        name, _, _ = write.rng.choice(body.shared)
        body.init.append(f"{name}.register_forward_hook(lambda m, args, y: y * 1.5)")


@statement(2)
def rare(write: Writer, body: Body, x: Value) -> None:
    """What has to be refused, or stays a piece, or depends on the batch in an unusual way."""
    trait, text = write.rng.choice(
        (
            ("value", f"{x.name} * float({x.name}.max())"),
            ("value", f"{x.name} + {x.name}.flatten().tolist()[0]"),
            ("value", f"{x.name} * int({x.name}.argmax() > 3)"),
            ("batch", f"{x.name} / {x.name}.shape[0]"),
            ("batch", f"torch.cat([row[None] * 2 for row in {x.name}])"),
            ("batch", f"torch.cat([{x.name}[: {x.name}.shape[0] // 2] * 2, {x.name}[{x.name}.shape[0] // 2 :]])"),
            ("random", f"{x.name} + torch.rand_like({x.name})"),
            ("random", f"{x.name} * torch.rand({x.c}, 1, 1).to({x.name})"),
            ("", f"torch.func.functional_call(self.act, {{}}, ({x.name},)) if hasattr(self, 'act') else {x.name} * 2"),
            ("", f"(lambda y, k=2: y / k if isinstance(y, torch.Tensor) else y)({x.name}, k=3)"),
            ("", f"torch.utils.checkpoint.checkpoint(F.relu, {x.name}, use_reentrant=False)"),
        )
    )
    if trait:
        if write.rng.random() < 0.6:
            return
        write.traits.add(trait)
    write.put(body, text, *x.shape)
