"""TensorFlow, quietly: every module of the TFLite exporter that needs it imports it from here."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from nbcompile.exporters.to_tflite.file.stderr import stderr_kept

# Its C++ half reads this once, when it is loaded; what matters is raised.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# torch.export imports triton, where torch brings it. It and TensorFlow hold an LLVM each, and the process ends with
# "Option registered more than once" if triton's comes second.
with suppress(ImportError):
    import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401

# It imports one of two packages of Keras at once, which nothing here needs; the older one is seldom installed. A second
# of the three it takes; `tf.keras` is there all the same, when it is used.
_KERAS = {"TF_USE_LEGACY_KERAS": "1"} if "TF_USE_LEGACY_KERAS" not in os.environ else {}
os.environ |= _KERAS
try:
    with stderr_kept():  # it greets, before it has read how loud it is to be
        import tensorflow as tf
finally:
    for _name in _KERAS:
        del os.environ[_name]

__all__ = ["quiet_tensorflow", "tf"]


@contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Keep its warnings and log lines from the user: what matters is raised."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(max(before, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(before)
