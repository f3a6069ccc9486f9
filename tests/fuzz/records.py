"""Records of networks, changed at random: places of the JSON, calls of all that is allowed, modules of all classes."""

import copy
import random
from typing import Any

from torch import nn

from nbcompile.core.serialization import allow_list
from tests.fuzz.damage import EDGES, places, replace_at

Record = dict[str, Any]

CODE = (
    "x=__import__('os').system('touch canary')",
    "x):\n    open('canary','w')\n    return (0",
    "a'); open('canary', 'w'); ('",
    'a"); open("canary", "w"); ("',
    "__import__('os').system('touch canary')",
)
WORDS = (
    "x",
    "stem",
    "torch.relu",
    "float32",
    "__class__",
    "shape",
    "call_method",
    "node",
    "output",
    "os.system",
    "self",
)
JUNK = (None, True, False, 0.5, -1e300, 2**70, -(2**63), *EDGES, *CODE, *WORDS, "", "ａ", "a\x1b[2Jb", "x" * 5000)
FORMS = ([], {}, [[]], {"node": "x"}, {"tuple": []}, {"list": [{"node": "x"}]}, {"dtype": "float16"}, {"float": "nan"})
SIZES = (0, 1, 2, 3, 4, 7, 8, 64, 1000, 2000, 10**5, 10**9)
MODULES = tuple(n for n in dir(nn) if isinstance(getattr(nn, n), type) and issubclass(getattr(nn, n), nn.Module))


def mutated(record: Record, rng: random.Random) -> Record:
    """A copy of ``record``, changed in one of the ways above."""
    record = copy.deepcopy(record)
    way = rng.random()
    if way < 0.4:
        for _ in range(rng.randint(1, 3)):
            _replace(record, rng)
    elif way < 0.9:
        _splice(record["model"], rng)
    else:
        modules = record["model"]["modules"]
        words = ("num_layers", "kernel_size", "groups", "bias", "in_channels", "out_channels", "hidden_size", "stride")
        arguments = {key: _argument(rng, ["x"], depth=2) for key in rng.sample(words, rng.randint(0, 3))}
        modules[rng.choice([*modules])] = {"class": f"torch.nn.{rng.choice(MODULES)}", "arguments": arguments}
    return record


def _replace(record: Record, rng: random.Random) -> None:
    path = rng.choice([p for p in places(record) if p])
    replace_at(record, path, copy.deepcopy(rng.choice(rng.choice((JUNK, FORMS, SIZES)))))


def _splice(model: Record, rng: random.Random) -> None:
    """Calls before the output, which reads the last of them, or what it read before."""
    graph = model["graph"]
    known = [node["name"] for node in graph[:-1]]
    functions, methods = sorted(allow_list._functions()[0]), sorted(allow_list._methods())
    made = []
    likely = rng.random() < 0.5  # to run
    for number in range(rng.choice((1, 1, 1, 2, 6, 30))):
        method = rng.random() < 0.3
        args: list[Any] = [
            rng.choice((0, 1, 2, 2000, {"node": known[-1]})) if likely else _argument(rng, known)
            for _ in range(rng.choice((0, 0, 1, 1, 2, 3)))
        ]
        if known and rng.random() < 0.8:
            args.insert(0, {"node": rng.choice(known)})
        name = f"new{number}"
        made.append(
            {
                "op": "call_method" if method else "call_function",
                "name": name,
                "target": rng.choice(methods if method else functions),
                "args": {"tuple": args},
                "kwargs": {"dim": _argument(rng, known)} if rng.random() < 0.1 else {},
            }
        )
        known.append(name)
    graph[-1:-1] = made
    if rng.random() < 0.3:
        graph[-1]["args"] = {"tuple": [{"node": known[-1]}]}


def _argument(rng: random.Random, known: list[str], depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 2 else 6)
    if kind == 0:
        return {"node": rng.choice(known)}
    if kind in (1, 2):
        return rng.choice(SIZES)
    if kind == 3:
        return rng.choice((*EDGES, *CODE, *WORDS))
    if kind == 4:
        return rng.choice(
            ({"dtype": "float16"}, {"slice": [None, 2, None]}, {"tuple": []}, {"float": "nan"}, 0.5, -1e300)
        )
    if kind == 5:
        return rng.choice((0, 1, -1, 2, True, None))
    return {rng.choice(("tuple", "list")): [_argument(rng, known, depth + 1) for _ in range(rng.randint(1, 4))]}
