"""``nbcompile verify``: its words."""

from typing import Annotated

import typer

from nbcompile.cli.options import Input, Json, Key, Model, give, models, source
from nbcompile.core.options import READ


def verify_command(
    candidate: Annotated[str, source("CANDIDATE", "tiny.onnx, tiny.pt, tiny.safetensors or a MODEL.")],
    against: Annotated[
        str,
        typer.Option(
            metavar="FILE|MODEL",
            help="The original: a MODEL (structure and cost), or a file or a pretrained MODEL (numbers, too).",
            rich_help_panel=READ,
            autocompletion=models,
        ),
    ],
    model: Model = None,
    key: Key = None,
    input: Input = None,
    json: Json = None,
) -> None:
    """For CI: exit 0 if CANDIDATE has the original's layers, MACs and params, 1 with the first layer that differs."""
    from nbcompile.cli.run.verify import run_verify
    from nbcompile.cli.show import show_verify

    checked = run_verify(candidate, against, model=model, key=key, input_shape=input)
    give(checked.to_json(), json, show_verify)
    checked.raise_on_failure()
