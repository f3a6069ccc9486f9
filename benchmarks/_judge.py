"""The hunt's judge: a verdict for each step with a network, and the smallest part of it that gets the same."""

import re
import signal
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from _hunt_checks import check_expand, check_fuse, check_onnx, check_save, check_tflite, check_trained, runs
from _random_networks import Network
from _unchanged import WrongError

from nbcompile.core.errors import NBCompileError

SECONDS = 120
"""For one step."""
STEPS = {
    "fuse": check_fuse,
    "expand": check_expand,
    "trained": check_trained,
    "save": check_save,
    "onnx": check_onnx,
    "tflite": check_tflite,
}
GOOD = ("right", "refused")
VERDICTS = (*GOOD, "wrong", "changed", "traceback")


@dataclass
class Found:
    """Of one network: a verdict and a sentence for each step; no steps if it does not run by itself."""

    seed: int
    traits: tuple[str, ...]
    steps: dict[str, tuple[str, str]] = field(default_factory=dict)

    def worst(self) -> str:
        """The verdict that stands last in the list of them."""
        return max((verdict for verdict, _ in self.steps.values()), key=VERDICTS.index, default="right")


def steps_of(onnx: bool, tflite: bool) -> tuple[str, ...]:
    """Names of the steps, with or without exports."""
    return ("fuse", "expand", "save", *(["onnx"] if onnx else []), *(["tflite"] if tflite else []))


def judge(one: Network, steps: tuple[str, ...]) -> Found:
    """Each of ``steps`` with the network."""
    found = Found(one.seed, tuple(sorted(one.traits)))
    if runs(one):
        found.steps = {step: _verdict(one, step) for step in steps}
    one.forget()
    return found


def _verdict(one: Network, step: str) -> tuple[str, str]:
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            STEPS[step](one, Path(folder))
    except NBCompileError as error:
        return "refused", str(error)
    except WrongError as error:
        return error.args[0], error.args[1]
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "traceback", f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return "right", ""


def _too_long(*_: object) -> None:
    raise TimeoutError(f"not done after {SECONDS} s")


def shrunk(one: Network, steps: tuple[str, ...]) -> Network:
    """What is left of a network when all lines are gone without which its worst verdict stays.

    Args:
        one: as it was drawn; one that is right, or refused, is given back as it is.
        steps: of which the first with that verdict is tried again and again.
    """
    found = judge(one, steps)
    worst = found.worst()
    if worst in GOOD:
        return one
    step = next(step for step, (verdict, _) in found.steps.items() if verdict == worst)
    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(one):
            if judge(candidate, (step,)).worst() == worst:
                one, smaller = candidate, True
                break
    return one


def _smaller(one: Network) -> Iterator[Network]:
    """Runs of lines left out, long ones first; returned values left out."""
    lines = one.source.splitlines()
    for length in (16, 8, 4, 2, 1):
        for start in range(len(lines) - length, -1, -1):
            yield _with(one, lines[:start] + lines[start + length :])
    for i, line in enumerate(lines):
        if returned := re.fullmatch(r"(\s+return (?:OrderedDict\()?[\[({]?)(.*?)(,?[\])}]*)", line):
            head, inner, tail = returned.groups()
            parts = inner.split(", ")
            for n in range(len(parts) if len(parts) > 1 else 0):
                yield _with(one, [*lines[:i], head + ", ".join(parts[:n] + parts[n + 1 :]) + tail, *lines[i + 1 :]])


def _with(one: Network, lines: list[str]) -> Network:
    return replace(one, source="\n".join(lines) + "\n")
