"""The one look of tables in a terminal."""

from rich import box
from rich.table import Table


def new_table(*heads: str, left: int = 2) -> Table:
    """An empty table with columns ``heads``; the first ``left`` hold words, the others numbers."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < left else "right", overflow="fold")
    return table
