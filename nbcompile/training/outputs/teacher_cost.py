"""What it cost to train a teacher, where that was done here: the run folder beside its file says so."""

import json
from collections.abc import Sequence
from pathlib import Path

from nbcompile.training.outputs.run_folder import ANCHOR, RunFolder


def cost_of_teachers(names: Sequence[str]) -> int | None:
    """Multiply-accumulates of the training of all of them; None where that of one is not known.

    Args:
        names: files, run folders or MODELs; those of one run count once.
    """
    known = {name: _result(Path(name)) for name in names}
    costs = {path: _total(path) for path in known.values() if path is not None}
    if not costs or None in known.values() or None in costs.values():
        return None
    return sum(cost for cost in costs.values() if cost is not None)


def _result(named: Path) -> Path | None:
    """``result.json`` of the run that wrote a file, or is a folder."""
    inside = named.suffix == ".ckpt" or named.name.startswith(ANCHOR)
    folder = RunFolder(named) if named.is_dir() else RunFolder.beside(named, named.parent if inside else None)
    return folder.result if folder.result.is_file() else None


def _total(result: Path) -> int | None:
    try:
        return int(json.loads(result.read_text())["cost"]["total"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
