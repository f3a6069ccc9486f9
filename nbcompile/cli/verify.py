"""``nbcompile verify``: its words."""

from typing import Annotated, Any

import typer

from nbcompile.cli.options import Input, Json, Key, Model, give, models, source
from nbcompile.cli.table_options import takes
from nbcompile.core.options import READ
from nbcompile.deploy.comparison_options import ComparisonOptions


@takes(ComparisonOptions)
def verify_command(
    candidate: Annotated[str, source("CANDIDATE", "tiny.onnx, tiny.tflite, tiny.pt, tiny.safetensors or a MODEL.")],
    against: Annotated[
        str,
        typer.Option(
            metavar="FILE|MODEL",
            help="The original: a MODEL (structure and cost), or a file or a pretrained MODEL (numbers, too); of a "
            ".tflite also another one.",
            rich_help_panel=READ,
            autocompletion=models,
        ),
    ],
    options: dict[str, Any],
    model: Model = None,
    key: Key = None,
    input: Input = None,
    json: Json = None,
) -> None:
    """For CI: exit 0 if CANDIDATE has the original's layers, MACs and params, 1 with the first layer that differs.

    A .tflite is run in the interpreters of its devices; it must not cost more.
    """
    from nbcompile.cli.run.verify import run_verify
    from nbcompile.cli.show import show_verify

    checked = run_verify(candidate, against, model=model, key=key, input_shape=input, options=options)
    give(checked.to_json(), json, show_verify)
    checked.raise_on_failure()
