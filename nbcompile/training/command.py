"""What ``nbcompile train`` does: a MODEL string or a file in, a trained file out."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from nbcompile.checkpoint import load
from nbcompile.core.example import origin_of
from nbcompile.models import build
from nbcompile.training.config import TrainConfig
from nbcompile.training.data import seed_everything
from nbcompile.training.engine import is_main_process
from nbcompile.training.loop import train
from nbcompile.training.progress import Display
from nbcompile.training.records import TrainResult

LIBRARIES = ("nbcompile", "torchvision", "timm")  # a package.module:factory in a file would run whatever it names
FILES = (".pt", ".pth", ".ckpt", ".safetensors")  # read as files even where missing: the complaint is about the file


def run(
    model: str,
    *,
    output: str | Path,
    run_dir: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    **options: Any,
) -> TrainResult:
    """Train a network by the reference recipe.

    Args:
        model: a MODEL string (``nbcompile:dscnn?num_classes=10&in_channels=1``), or the path of a giant.
        output: the trained file.
        run_dir: folder of checkpoints and metrics; None is ``trained-run`` beside ``trained.pt``.
        resume: go on from the run folder's checkpoint, if there is one.
        quiet: show no progress.
        **options: the fields of ``TrainConfig``; None is the default.

    Raises:
        UsageError: if an option is unknown or out of range; else as ``train``.
        CheckpointError: if ``model`` is a file that cannot be read.
    """
    config = TrainConfig.from_json({name: value for name, value in options.items() if value is not None})
    network = _network(model, config)
    with nullcontext() if quiet or not is_main_process() else Display() as display:
        return train(network, config, output, run_dir, resume, on_event=display)


def _network(model: str, config: TrainConfig) -> nn.Module:
    """The network to train, which remembers the size of its input."""
    if Path(model).suffix in FILES or Path(model).is_file():
        return _loaded(model)
    seed_everything(config.seed)  # the initial weights
    return build(model).model


def _loaded(path: str) -> nn.Module:
    """The network in a file, of its own class where a library has it: a traced stand-in trains without dropout."""
    stand_in = load(path)
    origin = origin_of(stand_in)
    if origin is None or (origin.model or "").partition(":")[0] not in LIBRARIES:
        return stand_in
    return load(path, model=build(origin.model or "").model)
