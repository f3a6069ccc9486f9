"""What ``nbcompile train`` does: a MODEL string or a file in, a trained file out."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from nbcompile.checkpoint import check_output
from nbcompile.core.example import origin_of
from nbcompile.core.files import require_own_files
from nbcompile.core.progress import listening
from nbcompile.open_network import is_file, open_network
from nbcompile.spec_strings import is_pretrained
from nbcompile.training.engine import is_main_process
from nbcompile.training.loop import train
from nbcompile.training.methods import SELF
from nbcompile.training.new_head import LIBRARIES
from nbcompile.training.options.config import TrainConfig
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
    config = TrainConfig.from_json({name: value for name, value in options.items() if value is not None})
    check_output(output)
    read = [path for path in (source, config.teacher) if path is not None and is_file(path)]
    require_own_files([*map(Path, also), Path(output), *RunFolder.beside(output, run_dir).files], read)
    seed_everything(config.seed)  # the initial weights
    network = _network(source, model, input_shape, key)
    teacher = _teacher(config, input_shape)
    # A run shows itself: no lines of its parts beside its bars.
    with listening(None), nullcontext() if quiet or not is_main_process() else Display() as display:
        return train(
            network, config, output, run_dir, resume, on_event=display, teacher=teacher, check_export=check_export
        )


def _teacher(config: TrainConfig, input_shape: str | None) -> nn.Module | None:
    """The foreign teacher that the config names."""
    if config.teacher is None or config.teacher == SELF:
        return None
    if not (is_file(config.teacher) or is_pretrained(config.teacher)) and is_main_process():
        log.warning("%s: the teacher is a MODEL without weights, it has learnt nothing yet", config.teacher)
    return _network(config.teacher, config.teacher_model, input_shape, config.teacher_key)


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
