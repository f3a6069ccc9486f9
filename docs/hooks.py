"""What the site is told beyond its pages: where the packages lie, and which files of the repository it shows."""

import re
import tomllib
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parent.parent
SHOWN = ("benchmarks/*.py", "benchmarks/results/*.json")
"""Pages link to them as they lie in the repository, so that the links work there, too."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put the files that claims link to into the site."""
    for path in sorted(path for pattern in SHOWN for path in ROOT.glob(pattern)):
        name = path.relative_to(ROOT).as_posix()
        shown = File.generated(config, f"../{name}", abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV)
        shown.dest_uri = f"repository/{name}"
        files.append(shown)
    return files


class Rooms(griffe.Extension):
    """Finds ``passes/`` and ``exporters/`` where pyproject's package-dir says they are installed."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Hang every package that lies elsewhere below the one that it is installed in."""
        if pkg.path != "nbcompile":
            return
        setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
        for installed, folder in setup["package-dir"].items():
            if installed.startswith("nbcompile."):
                pkg.set_member(installed.removeprefix("nbcompile."), loader.load(folder))

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """``option(180.0, "Of the oven", …)`` is a field whose default is 180.0."""
        if isinstance(attr.value, griffe.ExprCall) and attr.value.canonical_name == "option":
            attr.value = attr.value.arguments[0]

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """A table of options writes its own docstring when it is imported."""
        if any(str(decorator.value) == "documented" for decorator in cls.decorators) and cls.docstring is not None:
            cls.docstring.value = cleandoc(getattr(import_module(cls.module.path), cls.name).__doc__)

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """``:func:`name``` is for editors; a page shows the name."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r":(?:func|class|mod|meth|data):(`)~?", r"\1", obj.docstring.value)
