from collections.abc import Callable

import pytest

from nbcompile.core.errors import ExportError
from nbcompile.exporters.to_tflite.file.flatbuffer import read_file
from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.run.arena import measure_arena, modelled
from nbcompile.exporters.to_tflite.run.interpreters import Micro
from tests.exporters.to_tflite.networks_tflite import NETWORKS, network
from tests.exporters.to_tflite.small_tflite import converted


@pytest.mark.parametrize("int8", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_map_is_as_high_as_what_tflite_micro_measures(name: str, int8: bool) -> None:
    content = network(name, int8=int8)
    arena = measure_arena(content)
    assert arena.planned == arena.head
    assert modelled(content).head == arena.head
    assert arena.flash == len(content)
    assert arena.tail is not None
    assert arena.needed is not None
    assert arena.needed >= arena.head + arena.tail
    Micro(content, arena.needed)


@pytest.mark.parametrize("int8", [True, False])
@pytest.mark.parametrize("operator", [tf.reduce_mean, tf.reduce_sum, tf.reduce_max, tf.reduce_min])
def test_reductions_ask_for_scratch_memory(operator: Callable[..., tf.Tensor], int8: bool) -> None:
    arena = measure_arena(converted(lambda x: operator(x, 1), (1, 2, 5, 3, 6), int8=int8))
    assert arena.planned == arena.head
    assert sum(row.buffer.name.startswith("scratch of ") for row in arena.rows) >= 2


def test_a_deconvolution_sums_in_scratch_memory() -> None:
    arena = modelled(network("scratch"))
    sums = max(
        (row for row in arena.rows if row.buffer.name.startswith("scratch of ")), key=lambda row: row.buffer.size
    )
    assert sums.buffer.nbytes == 4 * 10 * 14 * 4
    assert (sums.buffer.first, sums.buffer.last) == (0, 0)


def test_rows_tell_when_and_where_tensors_live() -> None:
    content = network("mobile")
    file = read_file(content)
    names = {file.tensors[op.outputs[0]].name: f"{op.index}:{op.name}" for op in file.ops}
    arena = modelled(content, names)
    rows = {row.layer: row for row in arena.rows if not row.buffer.name.startswith("scratch of ")}
    x = arena.rows[0]
    assert (x.buffer.nbytes, x.buffer.size, x.buffer.first, x.buffer.last) == (17 * 13 * 3, 672, -1, 0)
    assert (rows["0:CONV_2D"].buffer.first, rows["0:CONV_2D"].buffer.last) == (0, 4)  # the sum reads it again
    assert (rows["6:FULLY_CONNECTED"].buffer.first, rows["6:FULLY_CONNECTED"].buffer.last) == (6, 6)
    assert len(rows) == 1 + len(file.ops)
    stem, expanded = 9 * 7 * 8, 9 * 7 * 24
    assert arena.live[2] == sum(-(-n // 16) * 16 for n in (stem, expanded, expanded))
    assert (arena.peak_op, arena.peak_layer) == (2, "2:DEPTHWISE_CONV_2D")
    assert arena.head == max(arena.live)


def test_outputs_are_kept_to_the_end() -> None:
    content = converted(lambda x: (tf.nn.relu(x), tf.reduce_max(tf.nn.softmax(-x), -1)), (1, 40))
    arena, file = modelled(content), read_file(content)
    relu = file.tensors[next(op.outputs[0] for op in file.ops if op.name == "RELU")].name
    assert next(row.buffer.last for row in arena.rows if row.buffer.name == relu) == len(arena.ops) - 1 > 1
    assert measure_arena(content).head == arena.head


def test_refuses_what_tflite_micro_refuses() -> None:
    with pytest.raises(ExportError, match="Didn't find op for builtin opcode 'GELU'"):
        measure_arena(converted(tf.nn.gelu, (1, 4), int8=False))


def test_says_so_if_tflite_micro_reports_in_other_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Micro, "allocations", lambda self: "arena: 3\n")
    with pytest.raises(ExportError, match="TFLite Micro did not report the head of its arena, but: arena: 3"):
        measure_arena(network("attention"))
