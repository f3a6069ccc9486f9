"""Damage: whole files, and JSON, changed at random."""

import random
import zipfile
from io import BytesIO
from typing import Any

EDGES = (0, 1, -1, 2, 3, 2**7, 2**15, 2**16, 2**24, 2**31 - 1, -(2**31), 2**31, 2**32 - 1)


def flipped(content: bytes, rng: random.Random, most: int = 4) -> bytes:
    """``content`` with one to ``most`` bytes changed: a bit, or the whole byte."""
    broken = bytearray(content)
    for _ in range(rng.randint(1, most)):
        place = rng.randrange(len(broken))
        broken[place] = broken[place] ^ (1 << rng.randrange(8)) if rng.random() < 0.5 else rng.randrange(256)
    return bytes(broken)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """``content`` with bytes flipped (most often), or with a number at the edge of its range, or cut, or doubled."""
    how = rng.random()
    if how < 0.6:
        return flipped(content, rng)
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.choice((1, 4, 16, 64, 256)))
    if how < 0.8:
        start -= start % 4
        number = (rng.choice(EDGES) % 2**32).to_bytes(4, "little")
        return content[:start] + number + content[start + 4 :]
    if how < 0.85:
        return content[:start]
    if how < 0.9:
        return content[:start] + content[end:]
    if how < 0.95:
        return content[:end] + content[start:]
    return content[:start] + rng.randbytes(end - start) + content[end:]


def rezipped(content: bytes, rng: random.Random) -> bytes:
    """A zip whose checksums are right, and one of whose entries is damaged."""
    made = BytesIO()
    with zipfile.ZipFile(BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        chosen = rng.choice([entry.filename for entry in old.infolist() if entry.file_size])
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry, damaged(data, rng) if entry.filename == chosen else data)
    return made.getvalue()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, child in items for p in places(child, (*path, key)))]


def replace_at(value: Any, path: tuple[Any, ...], new: Any) -> None:
    """Put ``new`` in the place ``path``, if it is there; None takes the place away."""
    for part in path[:-1]:
        value = value[part]
    if new is None:
        del value[path[-1]]
    else:
        value[path[-1]] = new
