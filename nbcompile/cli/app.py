"""The command line: parse, call :mod:`nbcompile.cli.commands`, print.

Results go to stdout, complaints to stderr. Exit codes: 0 done; 1 the model cannot be compiled or a check failed;
2 wrong usage or unreadable input. Nothing heavy is imported before a command runs.
"""

import json
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from nbcompile.cli.options import MODEL_HELP, Block, Input, Json, Key, Model, Output, Preserve, Ratio, Where, give
from nbcompile.cli.train import train
from nbcompile.core.errors import NBCompileError, UsageError

STOPPED = "stopped; every output file is as it was, or new and whole"
STOPPED_EXIT = 130

app = typer.Typer(
    name="nbcompile",
    help="Tiny networks made more accurate at no cost on the device: expand, train, linearise, fuse, export.\n\n"
    "MODEL is " + MODEL_HELP + ".",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def expand(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    output: Output,
    where: Where = "uniform:0.5",
    block: Block = "inverted-residual",
    ratio: Ratio = 6,
    preserve: Preserve = False,
    verify_each: Annotated[
        bool, typer.Option("--verify-each", help="With --preserve: prove by numbers that the function is unchanged.")
    ] = False,
    weights: Annotated[Path | None, typer.Option(help="Trained weights of MODEL.")] = None,
    input: Input = None,
    json: Json = None,
) -> None:
    """Expand layers of MODEL into blocks and write the giant."""
    from nbcompile.cli.commands import run_expand
    from nbcompile.cli.show import show_expand

    found = run_expand(
        model,
        output,
        where=where,
        block=block,
        ratio=ratio,
        preserve=preserve,
        verify_each=verify_each,
        weights=weights,
        input_shape=input,
    )
    give(found, json, show_expand)


app.command()(train)


@app.command()
def fuse(
    source: Annotated[str, typer.Argument(metavar="TRAINED.pt|MODEL", help="A trained file, or a " + MODEL_HELP)],
    output: Annotated[
        list[Path],
        typer.Option("-o", "--output", help="tiny.onnx, tiny.tflite, tiny.pt, tiny.safetensors; may be repeated."),
    ],
    model: Model = None,
    key: Key = None,
    input: Input = None,
    force: Annotated[bool, typer.Option("--force", help="Fuse slopes below 1, too, and report the error.")] = False,
    verify_each: Annotated[bool, typer.Option("--verify-each", help="Prove every pass by numbers.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what each pass rewrote, and why it left the rest alone.")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Write a page with tables, graphs and checks.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Of .tflite: a folder of images, or an .npz of N x C x H x W.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="raspberrypi (default), or mcu: a microcontroller.")] = None,
    board: Annotated[str | None, typer.Option(help="Budgets by name, such as pico or esp32-s3.")] = None,
    sram: Annotated[str | None, typer.Option(help="Bytes that the arena may take, such as 192K.")] = None,
    flash: Annotated[str | None, typer.Option(help="Bytes that the file may take, such as 1M.")] = None,
    quantize: Annotated[str | None, typer.Option(help="int8 (default), int16x8, dynamic, float16 or float32.")] = None,
    io: Annotated[str | None, typer.Option(help="Inputs and outputs: int8 (default) or float.")] = None,
    ranges: Annotated[str | None, typer.Option(help="minmax (default), percentile or mse.")] = None,
    per_tensor: Annotated[
        bool, typer.Option("--per-tensor", help="One scale per weight tensor: for old runtimes.")
    ] = False,
    dense_per_tensor: Annotated[
        bool, typer.Option("--dense-per-tensor", help="The same of linear layers only.")
    ] = False,
    float_layers: Annotated[
        str | None, typer.Option(help="Names and globs, with commas, of layers that stay float32.")
    ] = None,
    equalize: Annotated[
        str | None, typer.Option(help="Ranges across layers: auto (default: if it helps), always or never.")
    ] = None,
    correct_bias: Annotated[str | None, typer.Option(help="auto (default), always or never.")] = None,
    preprocessing: Annotated[
        str | None,
        typer.Option(
            help="""How images become inputs, if not recorded: {"scale": 0.00392, "mean": [0.5], "std": [0.5]}."""
        ),
    ] = None,
    min_sqnr: Annotated[float | None, typer.Option(help="dB of signal over noise that the outputs must have.")] = None,
    min_agreement: Annotated[
        float | None, typer.Option(help="Share of samples, 0 to 1, whose top-1 must be the same.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Show the error of every layer.")] = False,
    json: Json = None,
) -> None:
    """Contract a giant to the original network, or merge all that can be in any other, and write deploy files.

    Each file is run in its own runtime and compared before it gets its name.
    """
    from nbcompile.cli.commands import run_fuse
    from nbcompile.cli.show import show_fuse

    found = run_fuse(
        source,
        output,
        model=model,
        key=key,
        input_shape=input,
        force=force,
        verify_each=verify_each,
        report=report,
        command=" ".join(["nbcompile", *sys.argv[1:]]),
        device=_given(
            calibration=calibration, target=target, board=board, sram=sram, flash=flash, quantize=quantize, io=io,
            ranges=ranges, per_channel=False if per_tensor else None,
            dense_per_channel=False if dense_per_tensor or per_tensor else None,
            float_layers=float_layers.split(",") if float_layers else None,
            equalize=equalize, correct_bias=correct_bias, preprocessing=_mapping(preprocessing),
            min_sqnr=min_sqnr, min_agreement=min_agreement,
        ),
    )  # fmt: skip
    give(found, json, partial(show_fuse, explain=explain, layers=layers))


@app.command()
def verify(
    candidate: Annotated[
        str, typer.Argument(metavar="CANDIDATE", help="tiny.onnx, tiny.pt, tiny.safetensors or a MODEL.")
    ],
    against: Annotated[str, typer.Option(help="The original: a MODEL (structure and cost) or a file (numbers, too).")],
    model: Model = None,
    key: Key = None,
    input: Input = None,
    json: Json = None,
) -> None:
    """For CI: exit 0 if CANDIDATE has the original's layers, MACs and params, 1 with the first layer that differs."""
    from nbcompile.cli.commands import run_verify
    from nbcompile.cli.show import show_verify

    checked = run_verify(candidate, against, model=model, key=key, input_shape=input)
    give(checked.to_json(), json, show_verify)
    checked.raise_on_failure()


@app.command()
def inspect(
    source: Annotated[str, typer.Argument(metavar="FILE|MODEL", help="A trained or deploy file, or a " + MODEL_HELP)],
    model: Model = None,
    key: Key = None,
    input: Input = None,
    json: Json = None,
) -> None:
    """Layers, expansion sites with their slopes, candidates, MACs and params."""
    from nbcompile.cli.commands import run_inspect
    from nbcompile.cli.show import show_inspect

    give(run_inspect(source, model=model, key=key, input_shape=input), json, show_inspect)


def run_cli() -> None:
    """Entry point: errors become one sentence on stderr and an exit code."""
    _log_to_stderr()
    try:
        app()
    except NBCompileError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        _complain(f"{error.filename or 'a file'}: {error.strerror or error}")
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as stop:  # typer turns the former, in a command, into the latter
        if isinstance(stop, SystemExit) and stop.code != STOPPED_EXIT:
            raise
        _complain(STOPPED)
        sys.exit(STOPPED_EXIT)


def _mapping(text: str | None) -> dict[str, Any] | None:
    try:
        found = None if text is None else json.loads(text)
    except ValueError as error:
        raise UsageError(f"--preprocessing is no JSON: {error}") from error
    if found is not None and not isinstance(found, dict):
        raise UsageError(
            '--preprocessing must be a JSON object, such as {"scale": 0.00392, "mean": [0.5], "std": [0.5]}'
        )
    return found


def _given(**options: Any) -> dict[str, Any]:
    """The options that the user gave."""
    return {name: value for name, value in options.items() if value is not None}


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("nbcompile: %(message)s"))
    logger = logging.getLogger("nbcompile")
    logger.addHandler(handler)
    logger.propagate = False
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _complain(sentence: str) -> None:
    print(f"nbcompile: error: {sentence}", file=sys.stderr)
