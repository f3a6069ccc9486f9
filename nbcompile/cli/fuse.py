"""``nbcompile fuse``: its words."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from nbcompile.cli.json_output import STDOUT
from nbcompile.cli.options import MODEL_HELP, Input, Json, Key, Model, flag, give, output, source
from nbcompile.cli.table_options import takes
from nbcompile.core.options import CHECKS, WRITE
from nbcompile.deploy.options import DeviceOptions


@takes(DeviceOptions)
def fuse_command(
    trained: Annotated[str, source("FILE|MODEL", f"A trained file, or a {MODEL_HELP}.")],
    output: Annotated[list[Path], output("tiny.onnx, tiny.tflite, tiny.pt or tiny.safetensors; may be repeated.")],
    options: dict[str, Any],
    model: Model = None,
    key: Key = None,
    input: Input = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page with tables, graphs and checks.", rich_help_panel=WRITE),
    ] = None,
    json: Json = None,
    batch: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Of .onnx: the one batch size that it takes.  [default: any]", rich_help_panel=WRITE
        ),
    ] = None,
    force: Annotated[bool, flag("--force", "Fuse slopes below 1, too, and report the error.", CHECKS)] = False,
    verify_each: Annotated[bool, flag("--verify-each", "Prove every pass by numbers.", CHECKS)] = False,
    explain: Annotated[
        bool, flag("--explain", "Say what each pass rewrote, and why it left the rest alone.", CHECKS)
    ] = False,
    layers: Annotated[bool, flag("--layers", "Of .tflite: show the error of every layer.", CHECKS)] = False,
    memory_plan: Annotated[
        bool, flag("--memory-plan", "Of .tflite for mcu: show how little memory it can take, and at what cost.", CHECKS)
    ] = False,
) -> None:
    """Contract a giant to the original network, or merge all that can be in any other, and write deploy files.

    Each file is run in its own runtime and compared before it gets its name.
    """
    from nbcompile.cli.run.fuse import run_fuse
    from nbcompile.cli.show import show_fuse

    if options.get("per_channel") is False:
        options["dense_per_channel"] = False
    shown = [word for word, asked in (("layers", layers), ("memory_plan", memory_plan)) if asked]
    found = run_fuse(
        trained, output, model=model, key=key, input_shape=input, force=force, verify_each=verify_each, report=report,
        command=" ".join(["nbcompile", *sys.argv[1:]]), device=options, batch=batch,
        json=None if json == STDOUT else json, shown=shown,
    )  # fmt: skip
    give(found, json, partial(show_fuse, explain=explain, layers=layers, memory_plan=memory_plan))
