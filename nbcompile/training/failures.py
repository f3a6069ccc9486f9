"""What may go wrong in the middle of a run, each in one sentence that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nbcompile.core.errors import NBCompileError, UsageError
from nbcompile.core.files import no_room
from nbcompile.training.options.config import TrainConfig
from nbcompile.training.outputs.run_folder import RunFolder

_ENDED = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "NCCL")
"""What gloo and NCCL say when another process has gone."""


@contextmanager
def explained(config: TrainConfig, folder: RunFolder) -> Iterator[None]:
    """Raise what PyTorch says about memory, lost processes and its compiler, and a full disk, as an error of ours.

    Raises:
        UsageError: if the disk takes no more.
        NBCompileError: with the cause, what to do, and what is left of the run.
    """
    try:
        yield
    except (OSError, UsageError) as error:
        full = no_room(error)
        if full is None:
            raise
        said = str(error) if isinstance(error, UsageError) else f"cannot write {folder.path}: {full.strerror}"
        raise UsageError(f"{said}; {folder.kept()}") from error
    except (RuntimeError, MemoryError) as error:
        sentence = _explanation(error, config)
        if sentence is None:
            raise
        raise NBCompileError(f"{sentence}; {folder.kept()}") from error


def _explanation(error: RuntimeError | MemoryError, config: TrainConfig) -> str | None:
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return (
            f"out of memory ({said}): raise accumulate, now {config.accumulate} (the learning rate stays right, batch "
            f"norms see smaller batches), or lower batch_size {config.batch_size} or input_size"
        )
    if heard := [words for words in _ENDED if words in str(error)]:
        return f"another process of this run has ended ({heard[0]}): see what it said, start all anew and resume"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"torch.compile cannot compile this network ({said}): train without compile"
    return None
