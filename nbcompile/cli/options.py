"""What several commands share: options, and how a result is given."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from nbcompile.cli.json_output import STDOUT, result_stream
from nbcompile.core.options import READ, WRITE

ZOO = (
    *("mobilenetv2_tiny", "mobilenetv2_35", "mobilenetv2_50", "mobilenetv2_100", "mcunet", "dscnn"),
    *("dscnn_kws", "mobilenetv1_25", "resnet8", "autoencoder"),  # MLPerf Tiny
)
"""Names of `nbcompile.zoo`, which itself imports torch."""

MODEL_HELP = "MODEL (its forms: nbcompile --help)"

MODELS = """\
MODEL is a network, named in one string:
  torchvision:NAME           one of torchvision.models, such as resnet18
  timm:NAME                  one of timm's
  nbcompile:NAME             mobilenetv2_tiny, mobilenetv2_35, mobilenetv2_50,
                             mobilenetv2_100, mcunet, dscnn; of MLPerf Tiny:
                             dscnn_kws, mobilenetv1_25, resnet8, autoencoder
  package.module:factory     your own function or class; needs --input
  MODEL?key=value&key=value  with options of its builder
  MODEL?pretrained=true      with the weights of torchvision or timm; without
                             this word nothing is ever downloaded"""


def models(incomplete: str) -> Iterator[str]:
    """What a shell completes where a MODEL or a file is meant."""
    named = (*(f"nbcompile:{name}" for name in ZOO), "torchvision:", "timm:")
    yield from (model for model in named if incomplete and model.startswith(incomplete))
    from glob import glob

    yield from glob(f"{incomplete}*")


Input = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="SHAPE",
        rich_help_panel=READ,
        help="Shape of the network's input, such as 1x3x96x96, of several 1x3x96x96,1x5.",
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="Which weights of the file, such as state_dict_ema.  [default: the EMA, if any]",
        rich_help_panel=READ,
    ),
]
TrainedWeights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Trained weights of MODEL.", rich_help_panel=READ)
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The MODEL whose weights a file holds that does not describe itself.",
        rich_help_panel=READ,
        autocompletion=models,
    ),
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write the result as JSON, too; - is stdout, instead of tables.",
        rich_help_panel=WRITE,
    ),
]


def source(metavar: str, help: str) -> Any:
    """The argument that says what to read."""
    return typer.Argument(metavar=metavar, help=help, rich_help_panel=READ, autocompletion=models)


def output(help: str) -> Any:
    """The option that says what to write."""
    return typer.Option("-o", "--output", metavar="FILE", help=help, rich_help_panel=WRITE)


def flag(name: str, help: str, panel: str) -> Any:
    """An option without a value."""
    return typer.Option(name, help=help, rich_help_panel=panel)


def give(found: dict[str, Any], path: Path | None, show: Any) -> None:
    """Show ``found`` with ``show``, and write it to ``path``; ``-`` is stdout, instead. Infinities become null."""
    import json

    from nbcompile.results.numbers import json_ready

    if path == STDOUT:
        print(json.dumps(json_ready(found), default=str), file=result_stream())
        return
    if path is not None:
        from nbcompile.core.files import atomic

        with atomic(path) as temporary:
            temporary.write_text(json.dumps(json_ready(found), default=str, indent=1) + "\n")
    from nbcompile.cli.terminal import standard_output

    show(found, standard_output())
