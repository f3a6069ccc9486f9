"""What a pickle calls, known before it is unpickled.

The classes that are allowed do nothing when they are built, but they may be large: ``list(range(10**9))`` takes 30
bytes in a file. So a collection may be made of what stands in the file only, and of each thing once.
"""

import pickletools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nbcompile.core.errors import CheckpointError

_NEVER = frozenset({"list", "tuple", "dict", "str", "unicode", "basestring"})
"""Written as literals; what holds their names holds the classes themselves (a ``defaultdict(list)``)."""

_COLLECTIONS = frozenset(
    {"set", "frozenset", "deque", "Counter", "OrderedDict", "defaultdict", "bytearray", "encode"}
) | {"Size"}
_SHORT = 64
"""Characters of a text that may be read as often as it is named: an encoding, say."""

_ZIP = b"PK\x03\x04"
_PICKLES_OF_A_LEGACY_FILE = 4


@dataclass(eq=False)
class _Value:
    """What stands on the stack: a literal, or (of size None) what a call gave."""

    size: int | None
    items: tuple[Any, ...] = ()
    name: str = ""
    read: bool = False


def require_bounded_calls(path: Path) -> None:
    """Check what the pickles in a file of torch's call.

    Raises:
        CheckpointError: naming the collection that could be of any size.
    """
    try:
        for stream, count in _pickles(path):
            for _ in range(count):
                _scan(stream)
    except _UnboundedError as error:
        raise CheckpointError(
            f"{path} makes a {error} of what does not stand in it, or of the same thing twice, which could fill the "
            "memory: save the weights alone, torch.save(model.state_dict(), ...)"
        ) from None
    except Exception as error:  # pickletools raises many kinds for what is no pickle
        raise CheckpointError(f"{path} is damaged or no torch file: {type(error).__name__}: {error}"[:300]) from None


class _UnboundedError(Exception):
    """A call that is not let through; its name."""


def _pickles(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Streams, and how many pickles are in each."""
    with path.open("rb") as stream:
        zipped = stream.read(len(_ZIP)) == _ZIP  # as torch itself tells; a zip may hang at the end of another file
    if zipped:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.lower().endswith(".pkl"):  # torch does not mind capitals
                    with archive.open(entry) as stream:
                        yield stream, 1
    else:
        with path.open("rb") as stream:
            yield stream, _PICKLES_OF_A_LEGACY_FILE


def _scan(stream: IO[bytes]) -> None:
    """Follow one pickle, with what is known of each value without making it."""
    stack: list[_Value] = []
    marks: list[int] = []  # heights of the stack
    memo: dict[int, _Value] = {}
    argument: Any
    for op, argument, _ in pickletools.genops(stream):
        if op.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if op.name == "MEMOIZE" else int(argument)] = stack[-1]
        elif op.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])
        elif op.name == "MARK":
            marks.append(len(stack))
        elif op.name == "DUP":
            stack.append(stack[-1])
        else:
            stack += _pushed(op, argument, _popped(stack, marks, op))


def _popped(stack: list[_Value], marks: list[int], op: Any) -> list[_Value]:
    before = op.stack_before
    marked = pickletools.markobject in before
    count = before.index(pickletools.markobject) if marked else len(before)
    inside: list[_Value] = []
    if marked:
        place = marks.pop()
        inside = stack[place:]
        del stack[place:]
    taken = stack[len(stack) - count :]
    if len(taken) < count:
        raise ValueError(f"{op.name} finds nothing to take")
    del stack[len(stack) - count :]
    return taken + inside


def _pushed(op: Any, argument: Any, taken: list[_Value]) -> list[_Value]:
    if op.name == "GLOBAL":
        return [_Value(0, name=str(argument).rpartition(" ")[2])]
    if op.name == "STACK_GLOBAL":
        return [_Value(0, name=taken[1].name)]
    if op.name in ("REDUCE", "NEWOBJ"):
        called, arguments = taken
        _require_bounded(called, arguments)
        if called.name == "encode":  # bytes, as protocol 2 has them
            return [_Value(arguments.items[0].size, name="bytes")]
        return [_Value(None)]
    if op.name in ("INST", "OBJ", "NEWOBJ_EX"):  # torch reads none of them
        raise ValueError(f"{op.name} is not read")
    if op.name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"):
        return taken[:1]
    if "TUPLE" in op.name:
        return [_Value(len(taken), tuple(taken))]
    if isinstance(argument, (str, bytes)):
        return [_Value(len(argument), name=str(argument)[:_SHORT])]
    literal = _SHORT + 1 if op.name in ("EMPTY_LIST", "EMPTY_DICT", "LIST", "DICT", "EMPTY_SET", "FROZENSET") else 0
    return [_Value(None if op.name.endswith("PERSID") else literal) for _ in op.stack_after]


def _require_bounded(called: _Value, arguments: _Value) -> None:
    if called.name in _NEVER:
        raise _UnboundedError(called.name)
    if called.name not in _COLLECTIONS:
        return
    number = called.name == "bytearray" and any(x.size == 0 and not x.name for x in arguments.items)
    for value in (arguments, *arguments.items):
        if value.size is None or (value.size > _SHORT and value.read) or number:
            raise _UnboundedError(called.name)
        value.read = True
