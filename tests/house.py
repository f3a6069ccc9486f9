"""The house as a graph: its modules, who imports whom, and how rooms stand on each other."""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("nbcompile", "passes", "exporters")
SOURCES = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py"))

Graph = Mapping[str, set[str]]
"""What imports what, by dotted name."""


def installed_name(file: Path) -> str:
    """``passes/base.py`` is ``nbcompile.passes.base``."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "nbcompile" else ("nbcompile", *parts)).removesuffix(".__init__")


MODULES = {installed_name(file): file for file in SOURCES}


@cache
def import_statements(file: Path) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """All that ``file`` has, wherever they stand in it."""
    return tuple(x for x in ast.walk(ast.parse(file.read_text())) if isinstance(x, ast.Import | ast.ImportFrom))


def imported(file: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that ``file`` imports."""
    yield from _imports(import_statements(file))


def _imports(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names = (f"{base}.{alias.name}" for alias in node.names)
            whole = base == "nbcompile"  # `from nbcompile import __version__` is no import of the door's other names
            yield from ((node.lineno, name if whole or name in MODULES else base) for name in names)


class _NoTypes(ast.NodeTransformer):
    """Drop what only type checkers import."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        return node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else node


@cache
def imports() -> Graph:
    """Each module, and those that it imports at run time, lazily or not."""
    trees = {name: _NoTypes().visit(ast.parse(file.read_text())) for name, file in MODULES.items()}
    return {name: {n for _, n in _imports(ast.walk(tree)) if n in MODULES} - {name} for name, tree in trees.items()}


def rooms(folder: str, graph: Graph) -> Graph:
    """What stands directly in ``folder``, modules and packages, and what of it each imports."""

    def room(name: str) -> str | None:
        return f"{folder}.{name[len(folder) + 1 :].split('.')[0]}" if name.startswith(f"{folder}.") else None

    found: dict[str, set[str]] = defaultdict(set)
    for name, others in graph.items():
        if (here := room(name)) is not None:
            found[here] |= {there for other in others if (there := room(other)) is not None} - {here}
    return found


def floors(graph: Graph) -> int:
    """Rooms on the longest way down.

    Raises:
        ValueError: naming a circle.
    """
    heights: dict[str, int] = {}

    def height(name: str, above: tuple[str, ...]) -> int:
        if name in above:
            raise ValueError(" > ".join((*above[above.index(name) :], name)))
        if name not in heights:
            heights[name] = 1 + max((height(n, (*above, name)) for n in graph[name]), default=0)
        return heights[name]

    return max(height(name, ()) for name in graph)


def public_names(file: Path) -> Iterator[str]:
    """What ``file`` defines at its top for others: functions, classes, constants."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        else:
            continue
        yield from (name for name in names if not name.startswith("_") and name != "log")
