"""``nbcompile expand``: its words."""

from pathlib import Path
from typing import Annotated, Any

from nbcompile.cli.options import MODEL_HELP, Input, Json, Key, TrainedWeights, flag, give, output, source
from nbcompile.cli.table_options import takes
from nbcompile.core.options import CHECKS
from nbcompile.training.options.config import TrainConfig


@takes(TrainConfig, only=("where", "block", "ratio", "preserve"))
def expand_command(
    model: Annotated[str, source("MODEL", f"The network, a {MODEL_HELP}.")],
    output: Annotated[Path, output("File to write, such as giant.pt.")],
    options: dict[str, Any],
    weights: TrainedWeights = None,
    key: Key = None,
    input: Input = None,
    json: Json = None,
    verify_each: Annotated[
        bool, flag("--verify-each", "With --preserve: prove by numbers that the function is unchanged.", CHECKS)
    ] = False,
) -> None:
    """Expand layers of MODEL into blocks and write the giant."""
    from nbcompile.cli.run.expand import run_expand
    from nbcompile.cli.show import show_expand

    found = run_expand(model, output, weights=weights, key=key, input_shape=input, verify_each=verify_each, **options)
    give(found, json, show_expand)
