"""``nbcompile widen``: its words."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from nbcompile.cli.options import MODEL_HELP, Input, Json, Key, TrainedWeights, flag, give, output, source
from nbcompile.cli.table_options import takes
from nbcompile.core.options import CHECKS
from nbcompile.training.options.config import TrainConfig


@takes(TrainConfig, only=("factors", "inner", "seed"))
def widen_command(
    model: Annotated[str, source("MODEL", f"The network, a {MODEL_HELP}.")],
    output: Annotated[Path, output("File to write, such as giant.pt.")],
    options: dict[str, Any],
    weights: TrainedWeights = None,
    key: Key = None,
    input: Input = None,
    json: Json = None,
    explain: Annotated[bool, flag("--explain", "Say why channels keep their number.", CHECKS)] = False,
) -> None:
    """Make MODEL a part of wider networks that share its weights, and write the giant."""
    from nbcompile.cli.run.widen import run_widen
    from nbcompile.cli.show import show_widen

    found = run_widen(model, output, weights=weights, key=key, input_shape=input, **options)
    give(found, json, partial(show_widen, explain=explain))
