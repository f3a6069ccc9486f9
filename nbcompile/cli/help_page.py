"""Help pages: options in panels by what they are for, examples at the end; on a terminal as in a pipe.

A word is never cut, nor broken at a hyphen: what the page names can be copied and searched for.
"""

import re
from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import Any

import typer
from typer.core import TyperCommand

FIRST_COLUMN = 28
"""Columns of a row's name, at most; the text of a longer one begins on the next line."""

Row = tuple[str, str]


class PageCommand(TyperCommand):
    """A command with such a page."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page."""
        formatter.write(page(self, ctx, formatter.width))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What has to be given, by name."""
        return usage_pieces(self, ctx)


def page(command: Any, ctx: Any, width: int, first: dict[str, list[Row]] | None = None) -> str:
    """The help page of a command, with the panels ``first`` before those of its options."""
    parts = [command.get_usage(ctx)]
    parts += [_indented(paragraph, width) for paragraph in (command.help or "").split("\n\n")]
    parts += [_panel(title, rows, width) for title, rows in ((first or {}) | panels(command, ctx)).items()]
    parts += [command.epilog] if command.epilog else []
    return "\n\n".join(parts) + "\n"


def panels(command: Any, ctx: Any) -> dict[str, list[Row]]:
    """Name and text of each option and argument, by panel."""
    panels: dict[str, list[Row]] = {}
    for parameter in command.get_params(ctx):
        if not getattr(parameter, "hidden", False):
            title = getattr(parameter, "rich_help_panel", None) or "Other"
            panels.setdefault(title, []).append(_row(parameter))
    return panels


def usage_pieces(command: Any, ctx: Any) -> list[str]:
    """``FILE -o FILE [OPTIONS]``."""
    required = [parameter for parameter in command.get_params(ctx) if parameter.required]
    return [*(_spelled(parameter, min(parameter.opts, key=len)) for parameter in required), "[OPTIONS]"]


def _row(parameter: Any) -> Row:
    names = ", ".join(sorted(parameter.opts, key=len))
    required = "  [required]" if parameter.required and parameter.param_type_name == "option" else ""
    return _spelled(parameter, names), f"{parameter.help or ''}{required}"


def _spelled(parameter: Any, name: str) -> str:
    """``--output FILE``; of an argument, which has no name, ``FILE``."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar)
    return name if parameter.is_flag else f"{name} {parameter.metavar}"


def _panel(title: str, rows: Iterable[Row], width: int) -> str:
    rows = list(rows)
    column = max((len(name) for name, _ in rows if len(name) <= FIRST_COLUMN), default=0) + 4
    lines = [line for row in rows for line in _lines(row, column, width)]
    return "\n".join([typer.style(f"{title}:", bold=True), *lines])


def _lines(row: Row, column: int, width: int) -> Iterator[str]:
    name, text = row
    wrapped = _wrapped(text, width - column) or [""]
    if len(name) > column - 4:
        yield f"  {name}"
    else:
        yield f"  {name:{column - 2}}{wrapped.pop(0)}"
    yield from (f"{'':{column}}{line}" for line in wrapped)


def _indented(paragraph: str, width: int) -> str:
    return "\n".join(f"  {line}" for line in _wrapped(paragraph, width - 2))


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of ``text``; a default of one word is not parted from its bracket."""
    glued = re.sub(r"\[default: (\S+)\]", "[default:\N{NO-BREAK SPACE}\\1]", text)
    lines = wrap(glued, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]
