"""Benchmarks run from a checkout that is not installed, too, where nothing can be installed: import this first.

Two folders of the package lie beside it in the repository, and only an installation puts them into it.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if find_spec("nbcompile") is None:
    sys.path.insert(0, str(ROOT))

if find_spec("nbcompile.passes") is None:
    import_module("nbcompile").__path__.append(str(ROOT))
