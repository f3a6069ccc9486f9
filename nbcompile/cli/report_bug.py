"""``nbcompile report-bug``: its words."""

from pathlib import Path
from typing import Annotated

from nbcompile.cli.options import MODEL_HELP, Input, Key, Model, output, source


def report_bug_command(
    network: Annotated[
        str | None, source("FILE|MODEL", f"What fails: it is captured and fused, as far as that goes; a {MODEL_HELP}.")
    ] = None,
    model: Model = None,
    key: Key = None,
    input: Input = None,
    output: Annotated[Path | None, output("Write it there, not to stdout.")] = None,
) -> None:
    """What an issue needs: versions, and where a network fails, with its outline but none of its weights."""
    from nbcompile.cli.run.report_bug import run_report_bug

    text = run_report_bug(network, model=model, key=key, input_shape=input, output=output)
    if output is None:
        print(text, end="")
