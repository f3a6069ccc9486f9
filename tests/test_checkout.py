"""Benchmarks run where the package is not installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

UNINSTALLED = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path[:0] = [sys.argv[1]]
"""


def ran(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """What ``code`` does in a process that finds the package in a checkout in ``folder`` alone."""
    for name in ("nbcompile", "passes", "exporters", "benchmarks"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", UNINSTALLED + code, str(folder / "benchmarks")]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=kept, check=False)


@pytest.mark.slow
def test_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    without = ran(tmp_path, "import nbcompile.passes")
    assert "No module named 'nbcompile'" in without.stderr
    found = ran(tmp_path, "import _runs, nbcompile.passes, nbcompile.exporters.base; print('there')")
    assert (found.stdout, found.returncode) == ("there\n", 0), found.stderr
