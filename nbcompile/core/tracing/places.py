"""Where in the user's code something happens."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

import torch


def code_place() -> str:
    """File, line and function of the innermost code that is neither torch's nor ours."""
    frame = caller()
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


def caller() -> FrameType:
    """The innermost frame that is neither torch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_ours(frame.f_code):
        frame = frame.f_back
    return frame or sys._getframe(1)


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    """``frame`` and the code of the network around it, without torch's, out to what runs the network."""
    while frame is not None and not frame.f_code.co_filename.startswith(_FOLDERS[1]):
        if not _is_ours(frame.f_code):
            yield frame
        frame = frame.f_back


_OURS: dict[CodeType, bool] = {}
_HERE = Path(__file__).parent
_FOLDERS = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, _HERE, _HERE.with_name("width")))


def _is_ours(code: CodeType) -> bool:
    if code not in _OURS:
        _OURS[code] = code.co_filename.startswith(_FOLDERS)
    return _OURS[code]
