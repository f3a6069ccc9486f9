"""A table of options: the fields of a dataclass, each with all that is said of it.

::

    @documented
    @dataclass(frozen=True, kw_only=True)
    class Recipe:
        '''How to cook.'''

        heat: float = option(180.0, "Of the oven", panel="Kitchen", metavar="CELSIUS", bound=POSITIVE)
        rack: str = option("middle", "Where it stands", metavar="RACK", choices=("top", "middle"))

`nbcompile.cli.table_options` makes the options of a command from it; what checks the values reads their bounds and
choices here; the class says the same under ``Attributes``. Imports nothing heavy: ``--help`` reads such tables.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from inspect import Parameter, cleandoc, signature
from typing import Any, NamedTuple, TypeVar

READ, WRITE, CHECKS = "What to read", "What to write", "Checks"
"""Panels that several commands have."""

_KEY = "option"
_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])


class Bound(NamedTuple):
    """What numbers may be.

    Attributes:
        text: behind "must be": ``> 0``.
        keeps: whether a number does.
    """

    text: str
    keeps: Callable[[float], bool]


POSITIVE = Bound("> 0", lambda x: x > 0)
NOT_NEGATIVE = Bound(">= 0", lambda x: x >= 0)
BELOW_1 = Bound("in [0, 1)", lambda x: 0 <= x < 1)
SHARE = Bound("in [0, 1]", lambda x: 0 <= x <= 1)
BETWEEN_0_AND_1 = Bound("in (0, 1)", lambda x: 0 < x < 1)


@dataclass(frozen=True)
class Option:
    """What is said of one option.

    Attributes:
        help: what it is, without a full stop; other options are named as on the command line: ``--batch-size``.
        panel: heading under which the help shows it; that of the option before it where none is given.
        metavar: of its value, in the help: ``FILE``; numbers have one of their own.
        choices: all values there are, if they are few words.
        offers: values that a shell completes, where ``choices`` does not hold them.
        bound: of numbers.
        unset: what its default None means.
        required: whether the command line asks for it all the same.
        flag: its name on the command line, where that turns off what is on: ``--per-tensor``.
        read: its value from the command line's text, where that is no str, int or float.
        python: what the field is, where Python says it in other words than the help.
    """

    help: str
    panel: str = ""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    offers: tuple[str, ...] = ()
    bound: Bound | None = None
    unset: str = ""
    required: bool = False
    flag: str = ""
    read: Callable[[str], Any] | None = None
    python: str = ""

    def called(self, name: str) -> str:
        """What the field ``name`` is called on the command line."""
        return self.flag or _flag(name)

    def text(self) -> str:
        """The help, with the choices."""
        *most, last = self.choices or ("",)
        listed = f"{', '.join(most)} or {last}" if most else last
        return f"{self.help}: {listed}" if listed else self.help


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def option(default: _T, help: str, *, choices: Sequence[str] = (), offers: Sequence[str] = (), **about: Any) -> _T:
    """A field of a table of options.

    Args:
        default: of the field.
        help: see `Option`.
        choices: see `Option`.
        offers: see `Option`.
        **about: other attributes of `Option`.
    """
    said = Option(help, choices=tuple(choices), offers=tuple(offers), **about)
    return field(default=default, metadata={_KEY: said})


def options_of(table: type[Any]) -> dict[str, Option]:
    """The options of a table, by the names of their fields, in order."""
    options: dict[str, Option] = {}
    panel = ""
    for one in fields(table):
        said: Option = one.metadata[_KEY]
        panel = said.panel or panel
        options[one.name] = replace(said, panel=panel)
    return options


def flag_of(table: type[Any], name: str) -> str:
    """What the field ``name`` is called on the command line; so is what is no field of the table."""
    said = options_of(table).get(name)
    return said.called(name) if said else _flag(name)


def keywords_of(table: type[Any]) -> Callable[[_F], _F]:
    """Of a function that gives its ``**options`` to ``table``: its signature has the fields by name."""

    def decorate(function: _F) -> _F:
        own = [p for p in signature(function).parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
        made = [Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type) for f in fields(table)]
        function.__signature__ = signature(function).replace(parameters=[*own, *made])  # type: ignore[attr-defined]
        return function

    return decorate


def documented(table: type[_T]) -> type[_T]:
    """Say under ``Attributes`` of the class what its options say."""
    defaults = {one.name: one.default for one in fields(table)}  # type: ignore[arg-type]
    lines = [f"    {name}: {_described(said, defaults[name])}" for name, said in options_of(table).items()]
    table.__doc__ = "\n".join([cleandoc(table.__doc__ or ""), "", "Attributes:", *lines])
    return table


def _described(said: Option, default: Any) -> str:
    bound = f", {said.bound.text}" if said.bound else ""
    unset = f"; None: {said.unset}" if default is None and said.unset else ""
    text = f"{said.python or said.text()}{bound}{unset}."
    return re.sub(r"--([a-z][a-z-]*)", lambda name: f"``{name[1].replace('-', '_')}``", text)
