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

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take in what was typed.

        Raises:
            UsageError: if an option that has one value is given two: click takes the last, and says nothing.
        """
        if not ctx.resilient_parsing:
            _, _, given = self.make_parser(ctx).parse_args(args=[*args])
            for parameter in given:
                if _has_one_value(parameter) and given.count(parameter) > 1:
                    shapes = "; several inputs go into one, as 1x3x96x96,1x5" if parameter.metavar == "SHAPE" else ""
                    raise UsageError(f"{max(parameter.opts, key=len)} is given twice: give it once{shapes}")
        return super().parse_args(ctx, args)

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


def _has_one_value(parameter: Any) -> bool:
    return parameter.param_type_name == "option" and not (parameter.multiple or parameter.is_flag)


def _is_output(parameter: Any) -> bool:
    return getattr(parameter, "rich_help_panel", None) == WRITE and parameter.metavar == "FILE"


def _values(ctx: Any, parameter: Any) -> list[Any]:
    given = ctx.params.get(parameter.name)
    return list(given) if isinstance(given, (list, tuple)) else [] if given is None else [given]
