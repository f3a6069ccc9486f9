"""All rows, whichever file they stand in."""

from tests.habits import arguments, asking, blocks, calling, containers, hung, kept, returning, sizes, values
from tests.habits.table import HABITS

__all__ = ["FILES", "HABITS"]

_MODULES = (arguments, asking, blocks, calling, containers, hung, kept, returning, sizes, values)
FILES = {str(module.__file__) for module in _MODULES}
