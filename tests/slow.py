"""Which rows of a table the fast suite runs."""

from collections.abc import Iterable
from typing import Any

import pytest


def one_in(number: int, rows: Iterable[Any]) -> list[Any]:
    """``rows`` as parameters: the first of each ``number`` is fast, the others are slow.

    Args:
        number: 1 marks none.
        rows: values, not ``pytest.param``.
    """
    return [pytest.param(x, marks=[pytest.mark.slow] if i % number else []) for i, x in enumerate(rows)]
