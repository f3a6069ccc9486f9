"""What ``nbcompile train`` does: a MODEL string or a file in, a trained file out."""

import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from nbcompile.checkpoint import check_output
from nbcompile.core.errors import UsageError
from nbcompile.core.example import origin_of
from nbcompile.core.files import require_own_files
from nbcompile.core.progress import listening
from nbcompile.open_network import is_file, open_network, why_untrained
from nbcompile.training.engine import is_main_process
from nbcompile.training.loop import train
from nbcompile.training.methods import ROUTE, SELF
from nbcompile.training.new_head import LIBRARIES
from nbcompile.training.options.config import TrainConfig
from nbcompile.training.options.rules import refuse_two_ends
from nbcompile.training.outputs.progress import Display
from nbcompile.training.outputs.records import TrainResult
from nbcompile.training.outputs.run_folder import RunFolder
from nbcompile.training.seeds import seed_everything

log = logging.getLogger("nbcompile")


def run_train(
    source: str,
    *,
    output: str | Path,
    model: str | None = None,
    key: str | None = None,
    input_shape: str | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    check_export: bool = False,
    quiet: bool = False,
    also: Sequence[str | Path] = (),
    **options: Any,
) -> TrainResult:
    """Train a network by the reference recipe.

    Args:
        source: a MODEL string (``nbcompile:dscnn?num_classes=10&in_channels=1``), or the path of a giant.
        output: the trained file.
        model: the MODEL whose weights the file ``source`` holds: needed where it does not describe itself, and gives
            the class where no library has it.
        key: which weights of the file, where it has several.
        input_shape: such as ``1x3x96x96``; needed for a ``package.module:factory``.
        run_dir: folder of checkpoints and metrics; None is ``trained-run`` beside ``trained.pt``.
        resume: go on from the run folder's checkpoint, if there is one.
        check_export: at the end measure ``tiny.onnx`` and ``tiny.tflite``, too; see ``train``.
        quiet: show no progress.
        also: files that the caller will write besides.
        **options: the fields of ``TrainConfig``; None is the default.

    Raises:
        UsageError: if an option is unknown or out of range; else as ``train``.
        CheckpointError: if ``source`` is a file that cannot be read.
    """
    given = {name: value for name, value in options.items() if value is not None}
    refuse_two_ends(epochs="epochs" in given, macs="macs" in given)
    config = TrainConfig.from_json(given)
    check_output(output)
    teachers = named_teachers(config)
    read = [path for path in (source, *teachers) if is_file(path)]
    require_own_files([*map(Path, also), Path(output), *RunFolder.beside(output, run_dir).files], read)
    seed_everything(config.seed)  # the initial weights
    network = _network(source, model, input_shape, key)
    teacher = _teachers(config, teachers, input_shape)
    # A run shows itself: no lines of its parts beside its bars.
    with listening(None), nullcontext() if quiet or not is_main_process() else Display() as display:
        return train(
            network, config, output, run_dir, resume, on_event=display, teacher=teacher, check_export=check_export
        )


def named_teachers(config: TrainConfig) -> list[str]:
    """The foreign teachers that the config names; of a run folder the anchors in it.

    Raises:
        UsageError: if a folder has none, or the method learns from no route.
    """
    named: list[str] = []
    for name in () if config.teacher == SELF else config.teachers:
        if not os.path.isdir(name):
            named.append(name)
        elif config.method_row.name != ROUTE:
            raise UsageError(f"the teacher {name} is a folder: name a file in it, or choose method {ROUTE}")
        elif anchors := RunFolder(Path(name)).anchors():
            named.extend(map(str, anchors))
        else:
            raise UsageError(f"the teacher {name} holds no anchors: train it with --keep-anchors 4")
    return named


def _teachers(config: TrainConfig, named: Sequence[str], input_shape: str | None) -> list[nn.Module] | None:
    """The foreign teachers, with their weights."""
    teachers = [_network(name, config.teacher_model, input_shape, config.teacher_key) for name in named]
    for name, teacher in zip(named, teachers, strict=True):
        if is_main_process() and (why := why_untrained(name, teacher)):
            log.warning("the teacher '%s' %s: it has learned nothing yet", name, why)
    return teachers or None


def _network(source: str, model: str | None, input_shape: str | None, key: str | None = None) -> nn.Module:
    """The network to train, of its own class where that can be had: a traced stand-in trains without dropout."""
    network = open_network(source, model=model, key=key, input_shape=input_shape)
    if model is not None or not is_file(source):
        return network
    origin = origin_of(network)
    known = (origin.model if origin else None) or ""
    if known.partition(":")[0] in LIBRARIES:
        return open_network(source, model=known, key=key, input_shape=input_shape)
    if is_main_process():
        log.warning(
            "%s: this trains the graph that was traced in eval mode (dropout is inactive); --model gives the class",
            source,
        )
    return network
