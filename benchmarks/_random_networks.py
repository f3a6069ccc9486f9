"""Random networks as Python source: what people write, mixed by chance; the same number gives the same text.

A class has up to a dozen layers and a ``forward`` of statements, each drawn from :data:`STATEMENTS`: modules and
functions, constants, computed sizes, writes in place, modules that are shared, containers that change, values that are
kept, parts with control flow of their own, optional arguments. Each knows the shapes that it gets and gives, so that
the text runs at any batch size. What cannot be captured for a reason (Python reads values, sizes of the batch steer)
leaves its word in ``traits``.
"""

import linecache
import random
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from nbcompile.core.example import Inputs, TensorSpec, random_inputs
from nbcompile.testing import scramble_

HEAD = """import functools, math
from collections import OrderedDict
import numpy as np
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional as F
"""
SIZES = ((7, 5), (6, 9), (8, 8), (5, 12), (9, 7))
LAYERS = 12


@dataclass(frozen=True)
class Network:
    """A network's text, and how it is called.

    Attributes:
        traits: for which it may be refused: ``value``, ``batch``, ``state``, ``random``.
        optional: keywords that its forward takes, with values other than the defaults.
    """

    seed: int
    source: str
    inputs: tuple[TensorSpec, ...]
    traits: frozenset[str]
    optional: tuple[dict[str, Any], ...]

    @property
    def file(self) -> str:
        return f"network_{self.seed}.py"

    def build(self) -> nn.Module:
        """The same network each time, in float64 and eval mode; its lines can be named by who refuses it."""
        home = types.ModuleType(self.file.removesuffix(".py"))
        home.__file__ = self.file
        sys.modules[home.__name__] = home
        linecache.cache[self.file] = (len(self.source), None, self.source.splitlines(keepends=True), self.file)
        exec(compile(self.source, self.file, "exec"), vars(home))
        torch.manual_seed(self.seed)
        return scramble_(vars(home)["Net"]().double(), self.seed).eval()

    def forget(self) -> None:
        """What Python keeps of it."""
        sys.modules.pop(self.file.removesuffix(".py"), None)
        linecache.cache.pop(self.file, None)

    def example(self, batch: int | None = None) -> Inputs:
        return random_inputs(self.inputs, seed=batch or 0, batch=batch)

    def resized(self) -> Inputs:
        """Two rows and three columns more."""
        specs = [TensorSpec((*s.shape[:2], s.shape[2] + 2, s.shape[3] + 3), s.dtype) for s in self.inputs]
        return random_inputs(specs, seed=9)


def network(seed: int) -> Network:
    """Number ``seed``."""
    rng = random.Random(seed)
    writer = Writer(rng)
    height, width = rng.choice(SIZES)
    channels = rng.choice((2, 3, 4, 6))
    shapes = [(channels, height, width)] * (2 if rng.random() < 0.2 else 1)
    optional = writer.write("Net", shapes, rng.randint(5, 16), top=True)
    inputs = tuple(TensorSpec((2, *shape), torch.float64) for shape in shapes)
    return Network(seed, HEAD + "\n\n".join(["", *writer.classes]), inputs, frozenset(writer.traits), optional)


@dataclass
class Value:
    """A map in the text, at the size of the example."""

    name: str
    c: int
    h: int
    w: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.c, self.h, self.w


@dataclass
class Body:
    """A class that is being written: lines of ``__init__`` and of ``forward``, and the maps that there are."""

    init: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    shared: list[tuple[str, int, int]] = field(default_factory=list)  # modules that keep the size: channels in, out
    depth: int = 0

    def say(self, line: str) -> None:
        self.lines.append("    " * self.depth + line)


Statement = Callable[["Writer", Body, Value], None]
Written = TypeVar("Written", bound=Statement)
STATEMENTS: dict[Statement, int] = {}
"""What there is to draw, and how often each; registered by the modules that write them, layers first."""


def statement(weight: int) -> Callable[[Written], Written]:
    """Register what writes a statement."""

    def enter(write: Written) -> Written:
        STATEMENTS[write] = weight
        return write

    return enter


class Writer:
    """Writes the classes of one network."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.classes: list[str] = []
        self.traits: set[str] = set()
        self.layers = self.names = self.nested = 0
        self.returned = (0, 0, 0)

    def name(self, kind: str = "v") -> str:
        """A fresh one."""
        self.names += 1
        return f"{kind}{self.names}"

    def module(self, body: Body, made: str, kind: str = "m") -> str:
        """A module, or whatever else ``__init__`` gives a name."""
        name = self.name(kind)
        body.init.append(f"self.{name} = {made}")
        return f"self.{name}"

    def put(self, body: Body, expression: str, c: int, h: int, w: int) -> Value:
        value = Value(self.name(), c, h, w)
        body.say(f"{value.name} = {expression}")
        body.values.append(value)
        return value

    def like(self, body: Body, value: Value) -> Value | None:
        """Another map of the same shape."""
        same = [other for other in body.values if other.shape == value.shape and other is not value]
        return self.rng.choice(same) if same else None

    def conv(self, c: int, o: int, k: int, *, bias: bool | None = None, stride: int = 1) -> str:
        """The text of a convolution; over the limit, of something without weights where that fits."""
        self.layers += 1
        groups = self.rng.choice([g for g in (1, 1, 1, 2, c) if c % g == 0 and o % g == 0])
        bias = self.rng.random() < 0.5 if bias is None else bias
        return f"nn.Conv2d({c}, {o}, {k}, {stride}, {k // 2}, groups={groups}, bias={bias})"

    def write(
        self, name: str, shapes: list[tuple[int, int, int]], statements: int, top: bool = False
    ) -> tuple[dict[str, Any], ...]:
        """A class; returns the optional arguments of its ``forward``."""
        body, rng = Body(), self.rng
        body.values = [Value(f"x{i}", *shape) for i, shape in enumerate(shapes)]
        optional = self.optional(body) if top and rng.random() < 0.3 else ()
        arguments = ", ".join(["self", *(v.name for v in body.values), *(f"{key}=None" for d in optional for key in d)])
        draw, weights = zip(*STATEMENTS.items(), strict=True)
        if top:
            draw[0](self, body, body.values[0])  # a layer
        for _ in range(statements):
            recent = body.values[-3:] if rng.random() < 0.8 else body.values
            (write,) = rng.choices(draw, weights)
            write(self, body, rng.choice(recent))
        self.finish(body, top, len(shapes))
        init = ["super().__init__()", *body.init]
        text = [f"class {name}(nn.Module):", "    def __init__(self):", *(f"        {line}" for line in init), ""]
        text += [f"    def forward({arguments}):", *(f"        {line}" for line in body.lines), ""]
        self.classes.append("\n".join(text))
        return optional

    def optional(self, body: Body) -> tuple[dict[str, Any], ...]:
        x = body.values[0].name
        if self.rng.random() < 0.5:
            body.say(f"{x} = {x} if scale is None else {x} * scale")
            return ({"scale": 3.0},)
        body.say("if mask is not None:")
        body.say(f"    {x} = {x} * mask")
        return ({"mask": torch.full((1,), 0.5, dtype=torch.float64)},)

    def finish(self, body: Body, top: bool, inputs: int) -> None:
        """The return statement: parts give one map, the top gives what it likes; most values reach it."""
        made = body.values[inputs:] or body.values
        last = made[-1]
        if not top:
            others = [v for v in made[:-1] if v.shape == last.shape][-2:]
            body.say(f"return {' + '.join([last.name, *(f'{v.name} / 2' for v in others)])}")
            self.returned = last.shape
            return
        loose = [v.name for v in made[:-1] if sum(v.name in line for line in body.lines) < 2][-3:]
        form = self.rng.choice(("tensor", "tuple", "dict", "list", "ordered", "pooled"))
        names = [last.name, *loose]
        if form == "tensor" and len(names) == 1:
            body.say(f"return {names[0]}")
        elif form in ("dict", "ordered"):
            items = ", ".join(f"{n!r}: {n}" for n in names)
            body.say(f"return {'OrderedDict(' if form == 'ordered' else ''}{{{items}}}{')' * (form == 'ordered')}")
        elif form == "pooled":
            head = self.module(body, f"nn.Linear({last.c}, 3)")
            body.say(f"pooled = {head}({last.name}.mean((2, 3)))")
            body.say(f"return {', '.join(['pooled', *loose])}")
        else:
            body.say(f"return [{', '.join(names)}]" if form == "list" else f"return ({', '.join(names)},)")
