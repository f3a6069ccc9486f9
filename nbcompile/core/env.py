"""The NBCOMPILE_* environment variables, read in one place."""

import os
from pathlib import Path

from nbcompile.core.errors import UsageError


def dump_folder() -> Path | None:
    """``NBCOMPILE_DUMP``: where the graph is written after every pass; created if it is missing.

    Raises:
        UsageError: if the folder cannot be created.
    """
    value = os.environ.get("NBCOMPILE_DUMP")
    if not value:
        return None
    folder = Path(value)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"NBCOMPILE_DUMP={value}: the folder cannot be created: {error.strerror}") from None
    return folder
