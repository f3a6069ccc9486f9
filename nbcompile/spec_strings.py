"""Things named in one string: ``home:name?key=value&key=value``.

Values are Python literals (``0.5``, ``True`` or ``true``, ``(1,2)``); what is none is a string.
"""

import ast
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from nbcompile.core.errors import UsageError
from nbcompile.zoo import NETWORKS

GRAMMAR = "torchvision:NAME, timm:NAME, nbcompile:NAME or package.module:factory, then ?key=value&key=value"

DETECTOR = "yolo"
"""What ``nbcompile:`` calls a detector on a backbone."""

HOMES = ("torchvision", "timm", "nbcompile")
"""Whose networks are known by name; any other home is a module with a factory."""

_LIBRARIES, _WEIGHTS = ("torchvision", "timm"), ("pretrained", "weights")  # what has weights, and what asks for them


def parse(spec: str) -> tuple[str, str, dict[str, Any]]:
    """Home, name and options of ``home:name?key=value&key=value``.

    Raises:
        UsageError: if it is none.
    """
    address, question, query = spec.partition("?")
    home, _, name = address.partition(":")
    if not home or not name:
        hint = f"; did you mean nbcompile:{spec}?" if address in NETWORKS else ""
        raise UsageError(f"'{spec}' is no MODEL: write {GRAMMAR}{hint}")
    options: dict[str, Any] = {}
    for pair in query.split("&") if question else ():
        key, equals, value = pair.partition("=")
        if not (key.isidentifier() and equals) or key in options:
            raise UsageError(f"'{spec}': option '{pair}' is not key=value with a key of its own")
        options[key] = _value(value)
    return home, name, options


def with_option(spec: str, key: str, value: Any) -> str:
    """The MODEL string ``spec`` with one option set.

    Raises:
        UsageError: if it is no MODEL string.
    """
    home, name, options = parse(spec)
    return _joined(home, name, options | {key: value})


def is_pretrained(spec: str) -> bool:
    """Whether the MODEL string ``spec`` asks for the weights of torchvision or timm.

    Raises:
        UsageError: if it is no MODEL string.
    """
    home, _, options = parse(spec)
    return home in _LIBRARIES and any(options.get(key) not in (None, False) for key in _WEIGHTS)


def without_weights(spec: str) -> str:
    """The MODEL string ``spec``, for a network whose weights come from elsewhere.

    Raises:
        UsageError: if it is no MODEL string.
    """
    if not is_pretrained(spec):
        return spec
    home, name, options = parse(spec)
    return _joined(home, name, {key: value for key, value in options.items() if key not in _WEIGHTS})


def named_factory(spec: str, module: str, name: str) -> Any:
    """What ``module`` calls ``name``; the current directory is searched first.

    Raises:
        UsageError: if it cannot be imported, or has none.
    """
    if (here := str(Path.cwd())) not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does
    try:
        home = importlib.import_module(module)
    except Exception as error:
        raise UsageError(f"'{spec}': importing {module} failed: {said(error)}") from error
    if not hasattr(home, name):
        raise UsageError(f"'{spec}': {module} has no '{name}'{close_to(name, vars(home))}")
    return getattr(home, name)


def installed(module: str, absent: UsageError) -> ModuleType:
    """A module that may not be installed.

    Raises:
        UsageError: ``absent``, if it is not.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise absent
    return importlib.import_module(module)


def close_to(name: str, known: Iterable[str]) -> str:
    """What a message adds about names like ``name``; nothing where there is none."""
    close = difflib.get_close_matches(name, known, n=3)
    return f"; close to it: {', '.join(close)}" if close else ""


def said(error: Exception) -> str:
    """The first line of an exception, with its class."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def detector_on(backbone: str, num_classes: int) -> str:
    """The MODEL string of a detector on the one that ``backbone`` names, without its weights.

    Raises:
        UsageError: if it is no MODEL string.
    """
    inside = without_weights(backbone).replace("&", ";")
    return _joined("nbcompile", DETECTOR, {"backbone": inside, "num_classes": num_classes})


def _joined(home: str, name: str, options: dict[str, Any]) -> str:
    pairs = (f"{key}={value if isinstance(value, str) else repr(value)}" for key, value in options.items())
    return f"{home}:{name}{'?' if options else ''}{'&'.join(pairs)}"


def _value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
