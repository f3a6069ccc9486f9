"""The command line: parse, call :mod:`nbcompile.commands`, print.

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

from nbcompile.core.errors import NBCompileError, UsageError
from nbcompile.core.files import check_target

MODEL_HELP = (
    "torchvision:NAME?key=value, timm:NAME?key=value, nbcompile:NAME (the paper's networks: mobilenetv2_tiny, "
    "mobilenetv2_35, mobilenetv2_50, mobilenetv2_100, mcunet; and dscnn), or package.module:factory"
)

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


def _writable(path: Path | None) -> Path | None:
    """Refuse a file for the result before the work whose result it is."""
    if path is not None and str(path) != "-":
        check_target(path)
    return path


Output = Annotated[Path, typer.Option("-o", "--output", help="File to write.")]
Input = Annotated[str | None, typer.Option("--input", help="Shape of the input, such as 1x3x96x96.")]
Key = Annotated[
    str | None, typer.Option(help="Which weights of the file, such as state_dict_ema; default: the EMA, if any.")
]
Model = Annotated[str | None, typer.Option(help="The MODEL whose weights a file holds that does not describe itself.")]
Json = Annotated[
    Path | None,
    typer.Option("--json", callback=_writable, help="Write the result as JSON, too; - is stdout, instead of tables."),
]
Where = Annotated[str, typer.Option(help="all, uniform:F, first:N, middle:N, last:N, or names and globs with commas.")]
Block = Annotated[str, typer.Option(help="inverted-residual, bottleneck or basic.")]
Ratio = Annotated[int, typer.Option(help="Hidden width over the layer's input channels.")]
Preserve = Annotated[
    bool, typer.Option("--preserve", help="Keep each layer as a parallel branch: the function is unchanged.")
]


DEVICE: dict[str, Any] = {"rich_help_panel": "Options of .tflite files"}


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
    from nbcompile.commands import run_expand
    from nbcompile.display import show_expand

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
    _give(found, json, show_expand)


@app.command()
def train(
    source: Annotated[str, typer.Argument(metavar="GIANT.pt|MODEL", help="A giant, or a " + MODEL_HELP)],
    output: Output,
    data: Annotated[str, typer.Option(help="digits, or imagefolder:DIR with DIR/train/CLASS and DIR/val/CLASS.")],
    model: Model = None,
    input: Input = None,
    method: Annotated[str, typer.Option(help="vanilla, or netbooster.")] = "netbooster",
    epochs: Annotated[int | None, typer.Option(help="Of the whole run.")] = None,
    giant_epochs: Annotated[int | None, typer.Option(help="Before the slopes rise; default: half of --epochs.")] = None,
    plt_epochs: Annotated[int | None, typer.Option(help="E_d, length of the rise; default: 20 % of the rest.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per optimiser step, over all processes.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of SGD; norms and biases get none.")] = None,
    warmup_epochs: Annotated[
        float | None, typer.Option(help="Linear warm-up; default: 2, at most a fifth of --epochs.")
    ] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Share of the target spread over all classes.")] = None,
    input_size: Annotated[int | None, typer.Option(help="Side of the square input, in pixels.")] = None,
    where: Where = "uniform:0.5",
    block: Block = "inverted-residual",
    ratio: Ratio = 6,
    preserve: Preserve = False,
    seed: Annotated[int | None, typer.Option(help="Of weights, data order and augmentation.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of checkpoints and metrics.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder.")] = False,
    num_workers: Annotated[int | None, typer.Option(help="Processes that read images.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    devices: Annotated[int | None, typer.Option(help="Training processes to start.")] = None,
    precision: Annotated[str | None, typer.Option(help="32-true or bf16-mixed.")] = None,
    json: Json = None,
) -> None:
    """Train by the reference recipe; under torchrun, too. A killed run goes on with --resume."""
    from nbcompile.display import show_train
    from nbcompile.training.command import run as run_train
    from nbcompile.training.engine import is_main_process

    options: dict[str, Any] = {
        "data": data, "method": method, "epochs": epochs, "giant_epochs": giant_epochs, "plt_epochs": plt_epochs,
        "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "warmup_epochs": warmup_epochs,
        "label_smoothing": label_smoothing, "input_size": input_size, "where": where, "block": block, "ratio": ratio,
        "preserve": preserve, "seed": seed, "num_workers": num_workers, "accelerator": accelerator,
        "devices": devices, "precision": precision,
    }  # fmt: skip
    result = run_train(source, output=output, model=model, input_shape=input, run_dir=run_dir, resume=resume, **options)
    if is_main_process():
        _give(result.to_json(), json, show_train)


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
        Path | None, typer.Option(help="Of .tflite: a folder of images, or an .npz of N x C x H x W.", **DEVICE)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="raspberrypi (default), or mcu: a microcontroller.", **DEVICE)
    ] = None,
    board: Annotated[str | None, typer.Option(help="Budgets by name, such as pico or esp32-s3.", **DEVICE)] = None,
    sram: Annotated[str | None, typer.Option(help="Bytes that the arena may take, such as 192K.", **DEVICE)] = None,
    flash: Annotated[str | None, typer.Option(help="Bytes that the file may take, such as 1M.", **DEVICE)] = None,
    quantize: Annotated[
        str | None, typer.Option(help="int8 (default), int16x8, dynamic, float16 or float32.", **DEVICE)
    ] = None,
    io: Annotated[str | None, typer.Option(help="Inputs and outputs: int8 (default) or float.", **DEVICE)] = None,
    ranges: Annotated[str | None, typer.Option(help="minmax (default), percentile or mse.", **DEVICE)] = None,
    per_tensor: Annotated[
        bool, typer.Option("--per-tensor", help="One scale per weight tensor: for old runtimes.", **DEVICE)
    ] = False,
    dense_per_tensor: Annotated[
        bool, typer.Option("--dense-per-tensor", help="The same of linear layers only.", **DEVICE)
    ] = False,
    float_layers: Annotated[
        str | None, typer.Option(help="Names and globs, with commas, of layers that stay float32.", **DEVICE)
    ] = None,
    equalize: Annotated[
        str | None, typer.Option(help="Ranges across layers: auto (default: if it helps), always or never.", **DEVICE)
    ] = None,
    correct_bias: Annotated[str | None, typer.Option(help="auto (default), always or never.", **DEVICE)] = None,
    preprocessing: Annotated[
        str | None,
        typer.Option(
            help="""How images become inputs, if not recorded: {"scale": 0.00392, "mean": [0.5], "std": [0.5]}.""",
            **DEVICE,
        ),
    ] = None,
    min_sqnr: Annotated[
        float | None, typer.Option(help="dB of signal over noise that the outputs must have.", **DEVICE)
    ] = None,
    min_agreement: Annotated[
        float | None, typer.Option(help="Share of samples, 0 to 1, whose top-1 must be the same.", **DEVICE)
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Show the error of every layer.", **DEVICE)] = False,
    json: Json = None,
) -> None:
    """Contract a giant to the original network, or merge all that can be in any other, and write deploy files.

    Each file is run in its own runtime and compared before it gets its name.
    """
    from nbcompile.commands import run_fuse
    from nbcompile.display import show_fuse

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
    _give(found, json, partial(show_fuse, explain=explain, layers=layers))


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
    from nbcompile.commands import run_verify
    from nbcompile.display import show_verify

    checked = run_verify(candidate, against, model=model, key=key, input_shape=input)
    _give(checked.to_json(), json, show_verify)
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
    from nbcompile.commands import run_inspect
    from nbcompile.display import show_inspect

    _give(run_inspect(source, model=model, key=key, input_shape=input), json, show_inspect)


def run() -> None:
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


def _give(found: dict[str, Any], path: Path | None, show: Any) -> None:
    if path is not None and str(path) == "-":
        print(json.dumps(found, default=str))
        return
    if path is not None:
        from nbcompile.core.files import atomic

        with atomic(path) as temporary:
            temporary.write_text(json.dumps(found, default=str, indent=1) + "\n")
    from rich.console import Console

    show(found, Console())


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("nbcompile: %(message)s"))
    logger = logging.getLogger("nbcompile")
    logger.addHandler(handler)
    logger.propagate = False
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _complain(sentence: str) -> None:
    print(f"nbcompile: error: {sentence}", file=sys.stderr)
