"""Which tests, and which rows of their tables, the fast suite leaves to the slow one.

It is to stay under six minutes on two cores. So a test that takes over a second is slow, unless it is a story of the
README, or holds what nothing else does: the algebra, capture, the whole way of a file.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

LIST = Path(__file__).with_name("slow.txt")
"""Slow tests by the names that ``pytest --durations=0`` gives them, one a line, beside those that are marked."""


def mark_listed(items: Sequence[pytest.Item], whole: bool) -> None:
    """Mark those of ``items`` that `LIST` names.

    Args:
        items: what was collected.
        whole: whether that is all of every file; then names that no test of such a file has are refused.

    Raises:
        pytest.UsageError: naming one.
    """
    listed = LIST.read_text().splitlines()
    by_name = {item.nodeid: item for item in items}
    for name in listed:
        if name in by_name:
            by_name[name].add_marker(pytest.mark.slow)
    files = {name.partition("::")[0] for name in by_name}
    gone = [name for name in listed if whole and name not in by_name and name.partition("::")[0] in files]
    if gone:
        raise pytest.UsageError(f"{LIST.name} names {gone[0]}, and there is no such test: mend the list")


def one_in(number: int, rows: Iterable[Any]) -> list[Any]:
    """``rows`` as parameters: the first of each ``number`` is fast, the others are slow.

    Args:
        number: 1 marks none.
        rows: values, not ``pytest.param``.
    """
    return [pytest.param(x, marks=[pytest.mark.slow] if i % number else []) for i, x in enumerate(rows)]
