"""Whether TFLite Micro gets through a file at all: assertions of its kernels end the process, and nothing catches that.

So a process of its own runs the file first.
"""

import signal
import subprocess
import sys
from functools import lru_cache

from nbcompile.core.errors import ExportError
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.run.interpreters import room_for
from nbcompile.exporters.to_tflite.run.one_operator import OperatorByOperator

_CHILD = """
import sys
from tflite_micro.python.tflite_micro import runtime
runtime.Interpreter.from_bytes(sys.stdin.buffer.read(), arena_size=int(sys.argv[1])).invoke()
"""


@lru_cache(maxsize=8)
def require_survival(content: bytes) -> None:
    """Raise ExportError if TFLite Micro ends its process at a file, on an input of zeros; with the layer.

    What it refuses in an orderly way is not looked at: whoever runs the file next is told.
    """
    ended = _ended(content)
    if not ended:
        return
    parts = OperatorByOperator(content)
    guilty = next((op for op in parts.file.ops if _ended(parts.content(op, {}))), None)
    where = f" at {guilty.name}, layer '{parts.file.tensors[guilty.outputs[0]].name}'" if guilty else ""
    raise ExportError(
        f"TFLite Micro ends the process ({ended}){where}: its kernel does not allow what is asked there; replace that "
        f"layer, or keep it in float32 (float_layers=…)"
    )


def _ended(content: bytes) -> str:
    """The signal that ended a process which ran ``content``; empty if none did."""
    command = [sys.executable, "-c", _CHILD, str(room_for(read_file(content)))]
    code = subprocess.run(command, input=content, capture_output=True).returncode
    return signal.Signals(-code).name if code < 0 else ""
