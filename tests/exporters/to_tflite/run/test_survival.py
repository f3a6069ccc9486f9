"""A file at which TFLite Micro ends its process."""

import pytest

from nbcompile.core.errors import ExportError
from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.run.arena import measure_arena
from nbcompile.exporters.to_tflite.run.survival import require_survival
from tests.exporters.to_tflite.small_tflite import converted, tiny


def test_its_end_is_a_sentence_with_the_layer() -> None:
    content = converted(lambda x: tf.cast(x * 1e3 > 1e3, tf.float32), (1, 5, 3))  # a step of 20 and more
    with pytest.raises(ExportError, match=r"TFLite Micro ends the process \(SIGABRT\) at GREATER, layer '.+': .*float"):
        measure_arena(content)


def test_others_are_let_through() -> None:
    require_survival(tiny())
    require_survival(converted(lambda x: tf.exp(x), (1, 3)))  # refused in an orderly way
