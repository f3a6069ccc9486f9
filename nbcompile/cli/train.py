"""``nbcompile train``: the options of the reference recipe, each a field of ``TrainConfig``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nbcompile.cli.options import MODEL_HELP, Block, Input, Json, Model, Output, Preserve, Ratio, Where, give
from nbcompile.core.errors import UsageError
from nbcompile.training.methods import method_help


def train(
    source: Annotated[str, typer.Argument(metavar="FILE|MODEL", help="A giant, a trained network, or a " + MODEL_HELP)],
    output: Output,
    data: Annotated[
        str,
        typer.Option(
            help="digits, cifar10:DIR, imagefolder:DIR with DIR/train/CLASS and DIR/val/CLASS, "
            "torchvision:NAME?root=DIR, or package.module:factory."
        ),
    ],
    model: Model = None,
    input: Input = None,
    method: Annotated[str | None, typer.Option(help=method_help())] = None,
    epochs: Annotated[int | None, typer.Option(help="Of the whole run_train.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per optimiser step, over all processes.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Of SGD.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of SGD; norms and biases get none.")] = None,
    warmup_epochs: Annotated[
        float | None, typer.Option(help="Linear warm-up; default: 2, at most a fifth of --epochs.")
    ] = None,
    restarts: Annotated[
        str | None, typer.Option(help="Epochs, with commas, at which the learning rate starts again at its peak.")
    ] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Share of the target spread over all classes.")] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of an average of the weights, such as 0.999.")] = None,
    input_size: Annotated[int | None, typer.Option(help="Side of the square input, in pixels.")] = None,
    train_images: Annotated[int | None, typer.Option(help="Train on so many images.")] = None,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Pass over images that cannot be read.")] = False,
    new_head: Annotated[
        bool, typer.Option("--new-head", help="Transfer: a new last layer for the classes of --data.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Of weights, data order and augmentation.")] = None,
    where: Where = "uniform:0.5",
    block: Block = "inverted-residual",
    ratio: Ratio = 6,
    preserve: Preserve = False,
    plain_epochs: Annotated[
        int | None, typer.Option(help="Before the network is expanded; best with --preserve.")
    ] = None,
    giant_epochs: Annotated[int | None, typer.Option(help="Before the slopes rise; default: half of the rest.")] = None,
    plt_epochs: Annotated[int | None, typer.Option(help="E_d, length of the rise; default: 20 % of the rest.")] = None,
    decay: Annotated[str | None, typer.Option(help="How slopes rise: linear (default) or cosine.")] = None,
    contract_at: Annotated[str | None, typer.Option(help="At the end (default), or at the end of the decay.")] = None,
    collapse: Annotated[
        bool, typer.Option("--collapse", help="After the decay, train in weight space: faster.")
    ] = False,
    inserted_lr: Annotated[float | None, typer.Option(help="Of inserted layers, a factor on --lr.")] = None,
    inserted_weight_decay: Annotated[
        float | None, typer.Option(help="Of inserted layers, a factor on --weight-decay.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="A file, a MODEL, or self: the giant before its slopes rise.")
    ] = None,
    teacher_model: Annotated[str | None, typer.Option(help="The MODEL whose weights the teacher's file holds.")] = None,
    temperature: Annotated[float | None, typer.Option(help="T, default 4.")] = None,
    kd_weight: Annotated[float | None, typer.Option(help="Share of the loss, default 0.9.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of checkpoints and metrics.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run_train folder.")] = False,
    check_export: Annotated[
        bool, typer.Option("--check-export", help="End with the accuracy of tiny.onnx and of int8 .tflite.")
    ] = False,
    accumulate: Annotated[
        int | None, typer.Option(help="Parts in which a batch is computed, if memory is short.")
    ] = None,
    num_workers: Annotated[int | None, typer.Option(help="Processes that read images.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    devices: Annotated[int | None, typer.Option(help="Training processes to start.")] = None,
    precision: Annotated[str | None, typer.Option(help="32-true or bf16-mixed.")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Memory format.")] = False,
    json: Json = None,
) -> None:
    """Train by the reference recipe; under torchrun, too. A killed run goes on with --resume."""
    from nbcompile.cli.show import show_train
    from nbcompile.training.command import run_train
    from nbcompile.training.engine import is_main_process

    options: dict[str, Any] = {
        "data": data, "method": method, "epochs": epochs, "batch_size": batch_size, "lr": lr, "momentum": momentum,
        "weight_decay": weight_decay, "warmup_epochs": warmup_epochs, "restarts": _epochs(restarts),
        "label_smoothing": label_smoothing, "ema": ema, "input_size": input_size, "train_images": train_images,
        "skip_broken": skip_broken, "new_head": new_head, "seed": seed, "where": where, "block": block, "ratio": ratio,
        "preserve": preserve, "plain_epochs": plain_epochs, "giant_epochs": giant_epochs, "plt_epochs": plt_epochs,
        "decay": decay, "contract_at": contract_at, "collapse": collapse, "inserted_lr": inserted_lr,
        "inserted_weight_decay": inserted_weight_decay, "teacher": teacher, "teacher_model": teacher_model,
        "temperature": temperature, "kd_weight": kd_weight, "accumulate": accumulate, "num_workers": num_workers,
        "accelerator": accelerator, "devices": devices, "precision": precision, "compile": compile,
        "channels_last": channels_last,
    }  # fmt: skip
    result = run_train(
        source, output=output, model=model, input_shape=input, run_dir=run_dir, resume=resume,
        check_export=check_export, **options,
    )  # fmt: skip
    if is_main_process():
        give(result.to_json(), json, show_train)


def _epochs(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(epoch) for epoch in text.split(","))
    except ValueError:
        raise UsageError(f"--restarts must be epochs with commas, such as 25,40, not '{text}'") from None
