"""What the benchmarks over many networks share: a process for each, and what is counted of it."""

import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import nbcompile
from nbcompile.core.example import Inputs
from nbcompile.core.judging.rounding import swayed_outputs
from nbcompile.core.macs import FORMULAS
from nbcompile.core.numerics import relative_error

_FORK = multiprocessing.get_context("fork")  # what the parent has imported need not be imported again


def isolated(function: Callable[..., Any], *args: Any, seconds: float, gigabytes: float) -> Any:
    """What ``function(*args)`` returns, in a child process: what crashes or hangs there ends no long run.

    Args:
        function: run in a fork of this process, which must not have used more than one thread; the result is pickled.
        args: of the function.
        seconds: wall-clock limit.
        gigabytes: of address space beyond what this process has; an allocation over it raises in the child.

    Raises:
        RuntimeError: with a sentence, if it fails or is over the time.
    """
    ours, theirs = _FORK.Pipe(duplex=False)
    child = _FORK.Process(target=_child, args=(theirs, gigabytes, function, args))
    child.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            raise RuntimeError(f"not done after {seconds:.0f} s")
        failure, result = ours.recv()
    except EOFError as error:
        child.join()
        raise RuntimeError(f"the process died with exit code {child.exitcode}") from error
    finally:
        child.kill()
        child.join()
    if failure:
        raise RuntimeError(failure)
    return result


def _child(pipe: Connection, gigabytes: float, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = here + int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        sent = (None, function(*args))
    except Exception as error:
        sent = (said(error), None)
    pipe.send(sent)


def said(error: Exception) -> str:
    """Kind and first line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "native_layer_norm", "native_group_norm")


class _Operators(TorchDispatchMode):
    """Counts the operators that cost MACs, and the norms, whichever module calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = self.norms = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.layers += func.overloadpacket in FORMULAS
        self.norms += func.overloadpacket.__name__ in _NORMS
        return func(*args, **(kwargs or {}))


def counts(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """Executed layers (operators with MACs) and norms, MACs of one sample, and parameters."""
    cost = nbcompile.cost(model, inputs)
    with torch.no_grad(), _Operators() as seen:
        model(*inputs)
    return {"layers": seen.layers, "norms": seen.norms, "macs": cost.macs, "params": cost.params}


def sway(model: nn.Module, inputs: Inputs, expected: Any, settled: Callable[[Any], Any] = lambda y: y) -> float:
    """How far the output moves if every number that goes into it moves by one rounding of its dtype, relative, no unit.

    Args:
        model: in eval mode.
        inputs: of the model.
        expected: its output for them.
        settled: what is made of the outputs before they are compared.
    """
    return max(relative_error(settled(y), settled(expected)) for y in swayed_outputs(model, inputs))
