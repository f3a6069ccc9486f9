"""What the hunt asks of a random network: each check raises where something is wrong."""

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from _networks import sway
from _random_networks import Network
from _unchanged import WrongError, unchanged
from torch import Tensor, nn

import nbcompile
from nbcompile.core.blocks import sites
from nbcompile.core.errors import CheckpointError, NBCompileError, UsageError
from nbcompile.core.example import Inputs, change_tensors
from nbcompile.core.judging.rounding import ROUNDINGS, own_rounding
from nbcompile.core.layers import CONVOLUTIONS
from nbcompile.core.numerics import flatten, relative_error
from nbcompile.testing import scramble_

MOVES = (1e-7, 1e-4, 1e-2)
"""By how much of their size the weights of a giant move in training."""

LIMIT = 1e-10
NOTHING = 1e-13
ONNX_LIMIT = 1e-4
BATCHES = (None, 3, 1)
"""The example's own, and two more."""


def runs(one: Network) -> bool:
    """Whether the network itself does, at each batch size: by rare chance its text is not sound."""
    try:
        for batch in BATCHES:
            call(one.build(), one.example(batch))
    except Exception:
        return False
    return True


def check_fuse(one: Network, _: Path) -> None:
    with unchanged(one.build(), one.example()) as (model, inputs):
        tiny = nbcompile.fuse(model, example_input=inputs)
    compare(one, tiny, one.build(), "fuse")
    for keywords in one.optional:
        with suppress(NBCompileError):
            wanted = call(one.build(), one.example(), **keywords)
            judge_outputs(call(tiny, one.example(), **keywords), wanted, f"fuse, {', '.join(keywords)} given later")


def check_expand(one: Network, _: Path) -> None:
    with unchanged(one.build(), one.example()) as (model, inputs):
        preserving = expanded(model, inputs, preserve=True).eval()
        giant = linear_(expanded(model, inputs, ratio=1 + one.seed % 2))
    compare(one, preserving, one.build(), "expand, layers preserved")
    tiny = nbcompile.fuse(giant)
    taken = one.build()
    taken.load_state_dict(tiny.state_dict())
    compare(one, tiny, giant, "fuse of the giant")
    compare(one, taken, giant, "the original with the fused weights")
    compare(one, nbcompile.fuse(giant, "all"), giant, "deploy form of the giant")


def check_trained(one: Network, _: Path) -> None:
    """A giant that could be made is fused, whatever training does to its numbers, be it next to nothing."""
    for dtype in (torch.float32, torch.float64):
        inputs = change_tensors(lambda x, to=dtype: x.to(to) if x.is_floating_point() else x, one.example())
        for preserve in (True, False):
            for step in MOVES:
                giant = expanded(one.build().to(dtype), inputs, ratio=1 + one.seed % 2, preserve=preserve)
                try:
                    nbcompile.fuse(trained_(giant, step, silent=bool(one.seed // 2 % 2)))
                except NBCompileError as error:
                    raise WrongError("wrong", f"a giant that is trained is refused, at {step}: {error}") from error


def check_save(one: Network, folder: Path) -> None:
    """The giant's file; the network's own where no layer is expanded."""
    with unchanged(one.build(), one.example()) as (model, inputs):
        try:
            saved = linear_(expanded(model, inputs))
        except NBCompileError:
            saved = one.build()
        nbcompile.save(saved, folder / "it.pt", None if sites(saved) else inputs)
    try:
        loaded = nbcompile.load(folder / "it.pt")
    except CheckpointError:
        loaded = nbcompile.load(folder / "it.pt", model=one.build())
        compare(one, loaded, saved, "loaded with the class")
        raise
    compare(one, loaded, saved, "loaded")
    compare(one, nbcompile.fuse(loaded), saved, "loaded and fused")


def check_onnx(one: Network, folder: Path) -> None:
    model, inputs = one.build().float(), change_tensors(Tensor.float, one.example())
    tiny = nbcompile.fuse(model, example_input=inputs)
    nbcompile.export(tiny, folder / "it.onnx", inputs)
    failed = [check for check in nbcompile.verify(tiny, folder / "it.onnx", inputs).checks if not check.passed]
    if failed:
        raise WrongError("wrong", f"verify of the network's own ONNX file: {failed[0].name}: {failed[0].detail}")
    session = onnxruntime.InferenceSession(folder / "it.onnx", providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    for batch in (2, 3):
        x = change_tensors(Tensor.float, one.example(batch))
        wanted = call(one.build().float(), x)
        got = session.run(None, {name: v.numpy() for name, v in zip(names, x, strict=True)})
        limit = max(ONNX_LIMIT, ROUNDINGS * own_rounding(one.build().float(), [(x, wanted)]))
        judge_outputs([torch.from_numpy(y) for y in got], flatten(wanted), f"ONNX at batch {batch}", limit)


def check_tflite(one: Network, folder: Path) -> None:
    model, inputs = one.build().float(), change_tensors(Tensor.float, one.example())
    tiny = nbcompile.fuse(model, example_input=inputs)
    nbcompile.export(tiny, folder / "it.tflite", inputs, quantize="float32")


def expanded(model: nn.Module, inputs: Inputs, ratio: int = 1, **options: Any) -> nn.Module:
    """By the rule; a network without any pattern by the name of its first layer."""
    try:
        return nbcompile.expand(model, inputs, where="all", ratio=ratio, **options)
    except UsageError:
        layers = [name for name, module in model.named_modules() if isinstance(module, (*CONVOLUTIONS, nn.Linear))]
        return nbcompile.expand(model, inputs, where=layers[:1], ratio=ratio, **options)


def linear_(giant: nn.Module) -> nn.Module:
    """Norms scrambled, slopes of 1."""
    scramble_(giant, seed=1)
    for block in sites(giant).values():
        block.slope.fill_(1)
    return giant.eval()


def trained_(giant: nn.Module, step: float, silent: bool) -> nn.Module:
    """All weights moved at random by ``step`` of their size, slopes of 1.

    With ``silent``, two channels of each layer with a bias are below 0 everywhere, and 0 behind a ReLU.
    """
    torch.manual_seed(0)
    for module in giant.modules() if silent else ():
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor) and bias.numel() > 2:
            bias[:2] -= 20
    for parameter in giant.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter += step * torch.randn_like(parameter) * (parameter.abs().mean() + 1e-3)
    for block in sites(giant).values():
        block.slope.fill_(1)
    return giant.eval()


def call(model: nn.Module, inputs: Inputs, **keywords: Any) -> Any:
    """With a copy of the inputs, always with the same random numbers."""
    torch.manual_seed(1)
    return model(*change_tensors(Tensor.clone, inputs), **keywords)


def compare(one: Network, actual: nn.Module, expected: nn.Module, what: str) -> None:
    """Batch after batch, copies of both, since they may keep something; at another size it may refuse."""
    actual, expected = copy.deepcopy(actual), copy.deepcopy(expected)
    for batch in BATCHES:
        wanted = call(expected, one.example(batch))
        _judge_moved(
            call(actual, one.example(batch)), wanted, f"{what}, batch {batch or 2}", expected, one.example(batch)
        )
    try:
        wanted = call(expected, one.resized())
    except Exception:  # the network itself cannot
        return
    with suppress(NBCompileError):
        _judge_moved(call(actual, one.resized()), wanted, f"{what}, another size", expected, one.resized())


def _judge_moved(actual: Any, wanted: Any, what: str, expected: nn.Module, inputs: Inputs) -> None:
    """Where they differ by more than ``LIMIT``, by how far the network's own output moves with its last digits.

    A map without its mean, that was nearly the same everywhere, is the rounding of its values; and code that asks
    whether a sum of nothing is above 0 goes by rounding alone.
    """
    try:
        judge_outputs(actual, wanted, what)
    except WrongError:
        torch.manual_seed(1)  # as for what is wanted
        moved = sway(expected, inputs, wanted, lambda y: change_tensors(_rounded, y))
        judge_outputs(actual, wanted, what, ROUNDINGS * moved)


def _rounded(x: Any) -> Any:
    """Nothing, if it is the rounding of nothing: of a map without its mean, say, that was the same everywhere."""
    numbers = isinstance(x, Tensor) and x.is_floating_point() and x.numel() > 0
    return torch.zeros_like(x) if numbers and float(x.abs().max()) < NOTHING else x


def judge_outputs(actual: Any, expected: Any, what: str, limit: float = LIMIT) -> None:
    """Raises :class:`WrongError`."""
    if type(actual) is not type(expected):
        raise WrongError("wrong", f"{what}: {type(actual).__name__} instead of {type(expected).__name__}")
    try:
        error = relative_error(*(change_tensors(_rounded, y) for y in (actual, expected)))
    except NBCompileError as structure:
        raise WrongError("wrong", f"{what}: {structure}") from structure
    if not error <= limit:
        raise WrongError("wrong", f"{what}: error {error:.1e}")
