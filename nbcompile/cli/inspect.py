"""``nbcompile inspect``: its words."""

from typing import Annotated

from nbcompile.cli.options import MODEL_HELP, Input, Json, Key, Model, give, source


def inspect_command(
    network: Annotated[str, source("FILE|MODEL", f"A trained or deploy file, or a {MODEL_HELP}.")],
    model: Model = None,
    key: Key = None,
    input: Input = None,
    json: Json = None,
) -> None:
    """Layers, expansion sites with their slopes, candidates, MACs and params."""
    from nbcompile.cli.run.inspect import run_inspect
    from nbcompile.cli.show import show_inspect

    give(run_inspect(network, model=model, key=key, input_shape=input), json, show_inspect)
