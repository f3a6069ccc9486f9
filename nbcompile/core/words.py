"""Words of others (names in files, keys, paths, what libraries say) as they are shown: in one line, and not too long.

A name may hold escape sequences that clear the screen, line breaks that forge a line of ours, marks that turn the
direction of reading, half of a character, or a megabyte of text.
"""

import re
import unicodedata
from logging import LogRecord, getLogger

SENTENCE, WORD = 4000, 600
"""Characters of a sentence, and of a word in it; what is longer loses its middle: what to do stands at the end."""

_LOOKED_AT = 10**6
_LONG = re.compile(rf"\S{{{WORD + 1},}}")


def printable(text: str, most: int = SENTENCE) -> str:
    """``text`` with escapes, as Python writes them, for what is no visible character, and without the middle if long.

    Args:
        text: anything; what is printable, and short, stays as it is.
        most: characters of the result, at least 100.
    """
    if not text.isprintable():
        text = "".join(c if _is_visible(c) else repr(c)[1:-1] for c in _shortened(text, _LOOKED_AT))
    return _shortened(_LONG.sub(lambda word: _shortened(word[0], WORD), text), most)


def printable_record(record: LogRecord) -> bool:
    """A filter of loggers that lets all through, made printable."""
    record.msg, record.args = printable(record.getMessage()), None
    return True


def _is_visible(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"  # spaces of any width


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    end = most // 3
    start = most - end - 40  # for the words in between
    return f"{text[:start]} … {len(text) - start - end:,} characters … {text[-end:]}"


getLogger("nbcompile").addFilter(printable_record)  # whoever logs has our errors, and so this


def class_of(model: object) -> str:
    """The name of its class, without what torch puts before it where a tensor of it is parametrized."""
    return type(model).__name__.removeprefix("Parametrized")
