"""A command: what is done around the work of each, whatever it is."""

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbcompile.cli.help_page import PageCommand
from nbcompile.cli.json_output import STDOUT, json_alone
from nbcompile.core.errors import UsageError
from nbcompile.core.options import WRITE


class CheckedCommand(PageCommand):
    """Its options say what it reads and writes: those under the heading ``WRITE`` whose value is a ``FILE``."""

    def invoke(self, ctx: Any) -> Any:
        """Run it.

        Raises:
            UsageError: if a file cannot be written, two are the same, or one is read; or if code of the user's tries to
                end the process.
        """
        from nbcompile.core.files import check_outputs  # --help needs none

        check_outputs(list(self._written(ctx)), self._read(ctx))
        try:
            with json_alone(ctx.params.get("json")):
                return super().invoke(ctx)
        except SystemExit as error:  # nothing of ours, nor of typer's, does so
            place = traceback.extract_tb(error.__traceback__)[-1]
            code = "" if error.code is None else repr(error.code)
            raise UsageError(
                f"code of the network, or of its data, ended the process with sys.exit({code}) at line {place.lineno} "
                f"of {place.filename}: let it return, or raise an error"
            ) from error

    def _written(self, ctx: Any) -> Iterator[Path]:
        for parameter in self.params:
            if _is_output(parameter):
                yield from (path for path in _values(ctx, parameter) if (parameter.name, path) != ("json", STDOUT))

    def _read(self, ctx: Any) -> Iterator[str | Path]:
        for parameter in self.params:
            if not _is_output(parameter):
                yield from (value for value in _values(ctx, parameter) if isinstance(value, (str, Path)))


def _is_output(parameter: Any) -> bool:
    return getattr(parameter, "rich_help_panel", None) == WRITE and parameter.metavar == "FILE"


def _values(ctx: Any, parameter: Any) -> list[Any]:
    given = ctx.params.get(parameter.name)
    return list(given) if isinstance(given, (list, tuple)) else [] if given is None else [given]
