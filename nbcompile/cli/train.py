"""``nbcompile train``: its words."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nbcompile.cli.options import MODEL_HELP, Input, Json, Key, Model, flag, give, output, source
from nbcompile.cli.table_options import takes
from nbcompile.core.options import CHECKS, WRITE
from nbcompile.training.options.config import TrainConfig


@takes(TrainConfig)
def train_command(
    trained: Annotated[str, source("FILE|MODEL", f"A giant, a trained network, or a {MODEL_HELP}.")],
    output: Annotated[Path, output("File to write, such as trained.pt.")],
    options: dict[str, Any],
    model: Model = None,
    key: Key = None,
    input: Input = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of checkpoints and metrics.  [default: trained-run beside trained.pt]",
            rich_help_panel=WRITE,
        ),
    ] = None,
    resume: Annotated[bool, flag("--resume", "Go on from the checkpoint in that folder.", WRITE)] = False,
    check_export: Annotated[
        bool, flag("--check-export", "End with the accuracy of tiny.onnx and of int8 tiny.tflite.", CHECKS)
    ] = False,
    json: Json = None,
) -> None:
    """Train by the reference recipe; under torchrun, too. A killed run goes on with --resume."""
    from nbcompile.cli.json_output import STDOUT
    from nbcompile.cli.show import show_train
    from nbcompile.training.command import run_train
    from nbcompile.training.engine import is_main_process

    result = run_train(
        trained, output=output, model=model, key=key, input_shape=input, run_dir=run_dir, resume=resume,
        check_export=check_export, also=[] if json in (None, STDOUT) else [json], **options,
    )  # fmt: skip
    if is_main_process():
        give(result.to_json(), json, show_train)
