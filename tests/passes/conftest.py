import os
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


def _of_any_torch(text: str) -> str:
    """Without what torch 2.9 does not print of a norm."""
    return text.replace("affine=True, bias=True,", "affine=True,")


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compare a text with the file of that name; NBCOMPILE_UPDATE_GOLDEN=1 rewrites the file."""

    def check(name: str, text: str) -> None:
        file = GOLDEN / f"{name}.txt"
        if os.environ.get("NBCOMPILE_UPDATE_GOLDEN") == "1":
            file.write_text(text)
        assert _of_any_torch(text) == _of_any_torch(file.read_text())

    return check
