"""The options of a command, made from a table: see `nbcompile.core.options`."""

from collections.abc import Callable, Collection
from dataclasses import MISSING, fields
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_args

import typer

from nbcompile.core.options import Option, options_of

METAVARS = {int: "N", float: "FLOAT"}


Command = Callable[..., None]


def takes(table: type[Any], only: Collection[str] | None = None) -> Callable[[Command], Command]:
    """Of a command with a parameter ``options``: the fields of ``table`` become options of the command line.

    ``options`` then holds, by name, those that the user gave.

    Args:
        table: a dataclass of options.
        only: the fields that are meant; None: all.
    """
    said = {name: one for name, one in options_of(table).items() if only is None or name in only}
    types = {one.name: one.type for one in fields(table)}
    defaults = {one.name: one.default for one in fields(table)}
    made = [_parameter(name, one, types[name], defaults[name]) for name, one in said.items()]

    def decorate(command: Command) -> Command:
        own = [p for p in signature(command).parameters.values() if p.name != "options"]

        def run(**words: Any) -> None:
            given = {name: _value(said[name], words.pop(name)) for name in said}
            command(**words, options={name: value for name, value in given.items() if value is not None})

        run.__signature__ = Signature([*own, *made])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (*own, *made)}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _parameter(name: str, said: Option, declared: Any, default: Any) -> Parameter:
    kind = _kind(said, declared)
    words = (*said.choices, *said.offers)
    about = typer.Option(
        said.called(name),
        help=_help(said, default),
        metavar=said.metavar or METAVARS.get(kind),
        rich_help_panel=said.panel,
        show_default=False,
        autocompletion=completing(words) if words else None,
    )
    unset = Parameter.empty if said.required else False if kind is bool else None
    return Parameter(name, Parameter.KEYWORD_ONLY, default=unset, annotation=Annotated[_optional(kind, unset), about])


def _optional(kind: type, unset: Any) -> Any:
    return kind | None if unset is None else kind


def _kind(said: Option, declared: Any) -> type:
    """As which type the command line reads it: text, unless it is a number or a flag and nothing else."""
    allowed = {one for one in get_args(declared) or (declared,) if one is not type(None)}
    return next((kind for kind in (bool, int, float) if allowed == {kind} and said.read is None), str)


def _help(said: Option, default: Any) -> str:
    shown = said.unset if default is None else "" if isinstance(default, (bool, tuple)) else _plain(default)
    known = shown and default is not MISSING and not said.required
    return f"{said.text()}.{f'  [default: {shown}]' if known else ''}"


def _plain(default: Any) -> str:
    return f"{default:g}" if isinstance(default, float) else str(default)


def _value(said: Option, word: Any) -> Any:
    """What the table takes; None where nothing was given."""
    if said.flag:
        return False if word else None
    if isinstance(word, bool):
        return word or None
    return said.read(word) if said.read is not None and word is not None else word


def completing(words: Collection[str]) -> Callable[[str], list[str]]:
    """What a shell completes: those of ``words`` that begin so."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete
