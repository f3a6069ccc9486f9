"""What several commands share: options, and how a result is given."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from nbcompile.core.files import check_target

MODEL_HELP = (
    "torchvision:NAME?key=value, timm:NAME?key=value, nbcompile:NAME (the paper's networks: mobilenetv2_tiny, "
    "mobilenetv2_35, mobilenetv2_50, mobilenetv2_100, mcunet; and dscnn), or package.module:factory"
)


def writable(path: Path | None) -> Path | None:
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
    typer.Option("--json", callback=writable, help="Write the result as JSON, too; - is stdout, instead of tables."),
]
Where = Annotated[str, typer.Option(help="all, uniform:F, first:N, middle:N, last:N, or names and globs with commas.")]
Block = Annotated[str, typer.Option(help="inverted-residual, bottleneck or basic.")]
Ratio = Annotated[int, typer.Option(help="Hidden width over the layer's input channels.")]
Preserve = Annotated[
    bool, typer.Option("--preserve", help="Keep each layer as a parallel branch: the function is unchanged.")
]


def give(found: dict[str, Any], path: Path | None, show: Any) -> None:
    """Show ``found`` with ``show``, and write it to ``path``; ``-`` is stdout, instead. Infinities become null."""
    from nbcompile.results.numbers import json_ready

    if path is not None and str(path) == "-":
        print(json.dumps(json_ready(found), default=str))
        return
    if path is not None:
        from nbcompile.core.files import atomic

        with atomic(path) as temporary:
            temporary.write_text(json.dumps(json_ready(found), default=str, indent=1) + "\n")
    from rich.console import Console

    show(found, Console())
