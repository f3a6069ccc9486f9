"""Where results are shown: words of others are printable there (`nbcompile.core.words`), and never markup."""

import sys

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nbcompile.core.words import printable

_NAME = 300
"""Characters of a cell."""

_NO_EDGE = 100_000
"""Columns of what is no terminal: lines are as long as they are, so that names can be searched for."""


def standard_output() -> Console:
    """A console on standard output."""
    return Console(width=None if sys.stdout.isatty() else _NO_EDGE)


def say(console: Console, text: str, mark: str = "", style: str = "") -> None:
    """Print one line, behind a mark in ``style``."""
    console.print(Text.assemble((mark, style), printable(text, _NO_EDGE)), soft_wrap=True)


def new_table(*heads: str, left: int = 2) -> Table:
    """An empty table with columns ``heads``; the first ``left`` hold words, the others numbers."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < left else "right", overflow="fold")
    return table


def add_row(table: Table, *cells: str) -> None:
    """A row of a table."""
    table.add_row(*(Text(printable(cell, _NAME)) for cell in cells))
