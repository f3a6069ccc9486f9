"""``STEM_main.cc`` where one lies already: one that nobody changed is replaced, one that is the user's own is kept.

The program's last line is the SHA-256 of those above it, so it says itself whether it was changed; and its third line
says for which inputs and outputs it was written, so it can be told whether it still fits.
"""

import hashlib
import re
from pathlib import Path

_SUM = re.compile(r"// SHA-256 of the lines above, as nbcompile wrote them: ([0-9a-f]{64})\n\Z")

_FORM = re.compile(r"^// It is for (.+)\.$", re.MULTILINE)


def signed(text: str) -> str:
    """``text`` and a last line by which it is known whether it was changed."""
    return f"{text}// SHA-256 of the lines above, as nbcompile wrote them: {_digest(text)}\n"


def why_kept(program: Path, new: str) -> str:
    """Why ``program`` is not replaced by the text ``new``, in words; empty where it is, or where there is none."""
    if not program.exists():
        return ""
    there = program.read_bytes().decode(errors="replace").replace("\r\n", "\n")  # as some editors and Git leave it
    if there == new or _is_untouched(there):
        return ""
    held, wanted = (_FORM.search(text) for text in (there, new))
    if held is None or wanted is None or held[1] == wanted[1]:
        return f"{program.name} was there and is kept as it is: delete it to get a new one"
    return (
        f"{program.name} was changed and is kept, but no longer fits: it is for {held[1]}, and the network now has "
        f"{wanted[1]}; move it away to get a new one, and put your changes into that"
    )


def _is_untouched(text: str) -> bool:
    found = _SUM.search(text)
    return found is not None and found[1] == _digest(text[: found.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
