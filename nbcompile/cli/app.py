"""The command line: find a command, run it, turn errors into one sentence and an exit code.

Results go to stdout, complaints to stderr. Exit codes: 0 done; 1 the model cannot be compiled or a check failed;
2 wrong usage or unreadable input; 130 stopped with Ctrl-C. A command is imported when it is asked for, and nothing
heavy before it runs.
"""

import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from nbcompile import __version__
from nbcompile.cli.command import CheckedCommand
from nbcompile.cli.ctrl_c import is_stopped
from nbcompile.cli.examples import EXAMPLES
from nbcompile.cli.help_page import page
from nbcompile.cli.options import MODELS
from nbcompile.cli.progress import progress_shown
from nbcompile.core.errors import NBCompileError
from nbcompile.core.words import printable

COMMANDS = {
    "expand": "Layers of a MODEL become blocks: write the giant.",
    "widen": "A MODEL becomes part of wider ones: write the giant.",
    "train": "Train a network or a giant by the reference recipe.",
    "fuse": "Fuse a giant, or any network, and write deploy files.",
    "verify": "For CI: is a file still the original?",
    "inspect": "Layers, MACs, params and sites of a network or a file.",
    "report-bug": "What an issue needs: versions, and where a network fails.",
}
"""By name: what it does, in a line. Each is ``NAME_command`` in ``nbcompile.cli.NAME``."""

SETTINGS: dict[str, Any] = {"context_settings": {"help_option_names": ["-h", "--help"]}}
TYPER: dict[str, Any] = {"rich_markup_mode": None, "pretty_exceptions_enable": False}


class Commands(TyperGroup):
    """All of them; none is imported to be listed."""

    @property
    def commands(self) -> dict[str, Any]:
        """By name."""
        return {name: self.get_command(None, name) for name in COMMANDS}

    @commands.setter
    def commands(self, given: object) -> None:
        """Typer has none to give."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of them; None where there is none of the name."""
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        module = import_module(f"nbcompile.cli.{name}")
        alone = typer.Typer(add_completion=False, **TYPER)
        alone.command(cmd_name, cls=CheckedCommand, epilog=EXAMPLES[cmd_name], **SETTINGS)(
            getattr(module, f"{name}_command")
        )
        return typer.main.get_command(alone)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page."""
        formatter.write(page(self, ctx, formatter.width, {"Commands": list(COMMANDS.items())}))


app = typer.Typer(name="nbcompile", cls=Commands, no_args_is_help=True, **TYPER, **SETTINGS)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"nbcompile {__version__}")
        raise typer.Exit


@app.callback(epilog=f"{MODELS}\n\n{EXAMPLES['nbcompile']}")
def _begin(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Tiny networks made more accurate at no cost on the device: expand, train, linearise, fuse, export.

    What a command takes: nbcompile COMMAND --help.
    """
    _log_to_stderr()


def run_cli() -> None:
    """Entry point: errors become one sentence on stderr and an exit code."""
    try:
        with progress_shown():
            app()
    except NBCompileError as error:
        _complain(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        _complain(f"{error.filename or 'a file'}: {error.strerror or error}")
        sys.exit(1)


def _log_to_stderr() -> None:
    import logging  # --help needs none

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("nbcompile: %(message)s"))
    logger = logging.getLogger("nbcompile")
    logger.addHandler(handler)
    logger.propagate = False
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _complain(sentence: str) -> None:
    if not is_stopped():  # else it is what somebody made of Ctrl-C
        print(f"nbcompile: error: {printable(sentence)}", file=sys.stderr)
