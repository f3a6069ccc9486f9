"""For every check of a file for a device: something wrong is planted, and the check says so.

What is checked is found in the code: every sentence that the proof of a file raises, every number that is printed of
an interpreter, every budget, every file that is written beside. One without a planted fault fails here.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nbcompile.cli.run.fuse import file_check
from nbcompile.core.errors import NBCompileError
from nbcompile.exporters.base import ExportResult
from nbcompile.exporters.to_tflite import proof
from nbcompile.exporters.to_tflite.file.flatbuffer import pack, read_file, schema, unpack
from nbcompile.exporters.to_tflite.file.options import Limits, names_beside
from nbcompile.exporters.to_tflite.file.ports import FloatModel, Port
from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.lower.lowering import float_model
from nbcompile.exporters.to_tflite.run import agreement, arena
from nbcompile.exporters.to_tflite.run.agreement import compared
from nbcompile.exporters.to_tflite.run.arena import measure_arena, modelled
from nbcompile.exporters.to_tflite.run.errors_by_layer import by_layer
from nbcompile.exporters.to_tflite.run.interpreters import KERNELS, Micro
from nbcompile.exporters.to_tflite.targets import micro_operators, micro_read_back
from nbcompile.exporters.to_tflite.targets.check_vector import CheckVector, check_vector
from nbcompile.exporters.to_tflite.targets.micro_operators import check_ops
from nbcompile.exporters.to_tflite.targets.micro_read_back import require_same
from nbcompile.exporters.to_tflite.targets.micro_sources import sources
from nbcompile.results.device import Device, Interpreter, QuantizedRow
from tests.exporters.to_tflite.networks_tflite import mobile, network, samples
from tests.exporters.to_tflite.small_tflite import converted

PROVING = (proof, agreement, arena, micro_operators, micro_read_back)
"""The modules whose sentences refuse a file."""

GIVEN = samples((1, 17, 13, 3))
WANTED: list[tuple[np.ndarray, ...]] = [(mobile(tf.constant(x)).numpy(),) for (x,) in GIVEN]
ARENA = 5000


def changed(change: Callable[[Any, Any], object]) -> bytes:
    """The file with a change in its first graph."""
    model = unpack(network("mobile"))
    change(model, model.subgraphs[0])
    return pack(model)


def rescaled(model: Any, graph: Any) -> None:
    tensor = graph.tensors[graph.outputs[0]]
    tensor.quantization.scale = tensor.quantization.scale * np.float32(0.25)


def turned(model: Any, graph: Any) -> None:
    """The classes in another order."""
    head = graph.tensors[graph.operators[-1].inputs[1]]
    buffer = model.buffers[head.buffer]
    buffer.data = np.flip(buffer.data.reshape(head.shape), 0).ravel()
    head.quantization.scale = np.flip(head.quantization.scale)


def biased(model: Any, graph: Any) -> None:
    bias = graph.tensors[graph.operators[0].inputs[2]]
    buffer = model.buffers[bias.buffer]
    buffer.data = (buffer.data.view(np.int32) + 2000).view(np.uint8)


def limits(content: bytes, kernels: str = "xnnpack", given: Any = GIVEN, wanted: Any = WANTED, **kept: Any) -> None:
    agreeing = [compared(content, given, wanted, kernels=kernels)]
    proof.require_limits(Path("x"), agreeing, modelled(content), "int8", Limits(**kept), micro=kernels == "micro")


def constant() -> None:
    """Scores beside which nothing is seen of what differs."""
    given = samples((1, 6))
    weight = np.linspace(-0.01, 0.01, 30, dtype=np.float32).reshape(6, 5)
    content = converted(lambda x: x @ weight + 100.0, (1, 6))
    limits(content, given=given, wanted=[(x @ weight + 100.0,) for (x,) in given], sqnr=20)


def single() -> None:
    given = samples((1, 6))
    limits(
        converted(lambda x: tf.reduce_sum(x, -1, keepdims=True), (1, 6)),
        given=given,
        wanted=[(x.sum(-1, keepdims=True),) for (x,) in given],
        agreement=0.9,
    )


def worse(number: str, change: Callable[[Any, Any], object]) -> None:
    good, bad = (getattr(compared(one, GIVEN, WANTED), number) for one in (network("mobile"), changed(change)))
    assert not (bad > 4 * good), f"{number} is {bad:.1f} instead of {good:.1f}"


def out_of_band() -> None:
    model = FloatModel(network("mobile", int8=False), (), ())
    assert all(row.inside for row in by_layer(model, network("mobile"), GIVEN))
    assert all(row.inside for row in by_layer(model, changed(biased), GIVEN)), "out of its band"


def other_words() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Micro, "allocations", lambda self: "arena: 3\n")
        measure_arena(network("mobile"))


def lacking(model: Any, graph: Any) -> None:
    code = model.operatorCodes[graph.operators[0].opcodeIndex]
    code.builtinCode, code.deprecatedBuiltinCode = schema.BuiltinOperator.GELU, 127


def crowded(model: Any, graph: Any) -> None:
    op = graph.operators[0]
    model.operatorCodes[op.opcodeIndex].builtinCode = schema.BuiltinOperator.CONCATENATION
    model.operatorCodes[op.opcodeIndex].deprecatedBuiltinCode = schema.BuiltinOperator.CONCATENATION
    op.inputs = [op.inputs[0]] * 11


@cache
def sourced() -> tuple[CheckVector, dict[str, str]]:
    """The sources, with an image."""
    content = network("mobile")
    pixels = np.linspace([-2.0, -1.9, -1.8], [2.0, 2.1, 2.2], 256, axis=1)
    vector = check_vector(content, GIVEN, pixels)
    return vector, sources(content, "x", ARENA, vector=vector)


def in_text(ending: str, old: str, new: str) -> None:
    content = network("mobile")
    vector, texts = sourced()
    require_same(texts, content, "x", ARENA, vector)
    assert re.search(old, texts[f"x{ending}"])
    require_same(texts | {f"x{ending}": re.sub(old, new, texts[f"x{ending}"], count=1)}, content, "x", ARENA, vector)


def arena_with_helium(stated: str) -> None:
    content, (vector, _) = network("mobile"), sourced()
    texts = sources(content, "x", ARENA, vector=vector, helium=2 * ARENA)
    require_same(texts, content, "x", ARENA, vector, 2 * ARENA)
    header = texts["x.h"].replace(f"ARENA_BYTES {2 * ARENA}", f"ARENA_BYTES {stated}")
    require_same(texts | {"x.h": header}, content, "x", ARENA, vector, 2 * ARENA)


def report() -> None:
    row = file_check(ExportResult(path=Path("x.tflite"), format="tflite", bytes=1, error=0.5, tolerance=0.1, seconds=1))
    assert row.passed, f"{row.name} is {row.measured}, and {row.limit} is allowed"


def layout(**other: Any) -> None:
    """An input that is filled in another order than the file takes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Flatten(), nn.Linear(3, 2)).eval()
    x = torch.randn(1, 3, 3, 3)
    held = float_model(model, (x,))
    port = replace(held.inputs[0], **other)
    wanted = [(held.outputs[0].to_file(model(x)),)]
    assert compared(held.content, [(held.inputs[0].to_file(x),)], wanted).sqnr > 80
    found = compared(held.content, [(port.to_file(x).reshape(port.shape),)], wanted)
    assert found.sqnr > 80, "the outputs differ"


PLANTED: list[tuple[str, str, Callable[[], object]]] = [
    *(
        (f"sqnr: {kernels}", "dB of signal over noise against", lambda k=kernels: limits(changed(rescaled), k, sqnr=20))
        for kernels in KERNELS
        if kernels in ("xnnpack", "micro")
    ),
    ("sqnr: a constant", "a constant would do as well. Train", constant),
    (
        "agreement",
        "of the samples have PyTorch's largest output",
        lambda: limits(changed(turned), sqnr=-99, agreement=0.9),
    ),
    ("agreement: no choice", "min_agreement is about the largest", single),
    ("sram", "more than the 1,000 B of SRAM", lambda: limits(network("mobile"), sram=1000)),
    ("flash", "more than the 1,000 B of flash", lambda: limits(network("mobile"), flash=1000)),
    ("max_lsb", "max_lsb is", lambda: worse("max_lsb", biased)),
    ("mean_lsb", "mean_lsb is", lambda: worse("mean_lsb", biased)),
    ("top1", "of the samples have", lambda: limits(changed(turned), sqnr=-99, agreement=0.9)),
    ("in_band", "out of its band", out_of_band),
    (
        "outputs: shape",
        "the file gives outputs of shape",
        lambda: compared(network("mobile"), GIVEN, [(y[0],) for (y,) in WANTED]),
    ),
    (
        "outputs: count",
        "samples and 3 outputs cannot be compared",
        lambda: compared(network("mobile"), GIVEN, WANTED[1:]),
    ),
    ("arena", "TFLite Micro did not report the head of its arena", other_words),
    ("resolver: operators", "TFLite Micro lacks GELU", lambda: check_ops(read_file(changed(lacking)))),
    ("resolver: their limits", "parts, and TFLite Micro concatenates", lambda: check_ops(read_file(changed(crowded)))),
    (".cc", "x.cc has the file's own bytes: False", lambda: in_text(".cc", r"0x20,", "0x21,")),
    (".cc", "x.cc has bytes", lambda: in_text(".cc", r"0x20,", "")),
    (
        ".h",
        "x.h has an arena of bytes 9, and the file 5000",
        lambda: in_text(".h", f"ARENA_BYTES {ARENA}", "ARENA_BYTES 9"),
    ),
    (".h", "x.h has arenas of bytes ['9'], and the file ['10000']", lambda: arena_with_helium("9")),
    (".h", "x.h has input_0 of shape 1, 3, 17, 13", lambda: in_text(".h", r"\{ 1, 17, 13, 3 \}", "{ 1, 3, 17, 13 }")),
    (".h", "x.h has input_0 of scale", lambda: in_text(".h", r"INPUT_0_SCALE \S+", "INPUT_0_SCALE 0.5f")),
    (
        ".h",
        "x.h has output_0 of zero point",
        lambda: in_text(".h", r"OUTPUT_0_ZERO_POINT \S+", "OUTPUT_0_ZERO_POINT (99)"),
    ),
    (".h", "x.h has input_0 of type", lambda: in_text(".h", r"typedef int8_t x_input", "typedef uint8_t x_input")),
    ("_ops.h", "x_ops.h has operators", lambda: in_text("_ops.h", r"resolver.AddConv2D\(\)", "resolver.AddRelu()")),
    ("_ops.h", "x_ops.h has room for operators", lambda: in_text("_ops.h", r"OpResolver<\d+>", "OpResolver<1>")),
    (
        ".cc",
        "x.cc has the preprocessing of every byte:",
        lambda: in_text(".cc", r"(of_byte\[3\]\[256\] = \{\n\{\n-?\d)", r"\g<1>0"),
    ),
    ("_check.h", "has input_0 of sum", lambda: in_text("_check.h", r"INPUT_0_SUM \d", "INPUT_0_SUM 0")),
    ("_check.h", "has input_0 of values: False", lambda: in_text("_check.h", r"(input_0\[663\] = \{\n)", r"\g<1>9")),
    (
        "_check.h",
        "has output_0 of values: False",
        lambda: in_text("_check.h", r"(output_0\[5\] = \{\n.*), -?\d+", r"\1"),
    ),
    (
        "_main.cc",
        "x_main.cc has output_0 read:",
        lambda: in_text("_main.cc", r"typed_output_tensor", "typed_input_tensor"),
    ),
    ("report", "x.tflite against torch is 0.5, and 0.1 is allowed", report),
    ("channels_last", "the outputs differ", lambda: layout(channels_last=False)),
]


@cache
def said(number: int) -> str:
    """What is said of a planted fault."""
    with pytest.raises((NBCompileError, AssertionError)) as raised:
        PLANTED[number][2]()
    return str(raised.value)


@pytest.mark.parametrize("number", range(len(PLANTED)), ids=[f"{name}: {sentence}" for name, sentence, _ in PLANTED])
def test_a_planted_fault_is_found(number: int) -> None:
    assert PLANTED[number][1] in said(number)


def test_what_is_right_passes() -> None:
    for kernels in KERNELS:
        limits(network("mobile"), kernels, sqnr=30, agreement=1.0, sram=9000, flash=20_000)


def test_every_check_has_a_planted_fault() -> None:
    names = {name.partition(":")[0] for name, *_ in PLANTED}
    told = {"name", "samples", "error", "lowest"}  # how sure a number is: nothing is judged by it
    printed = {field.name for field in fields(Interpreter)} - told
    verdicts = {field.name for field in fields(QuantizedRow) if field.name.startswith("in_")}
    budgets = {field.name.removesuffix("_budget") for field in fields(Device) if field.name.endswith("_budget")}
    beside = {path.name.removeprefix("x") for path in names_beside(Path("x.tflite"), True, "int8")}
    ports = {field.name for field in fields(Port)} - {"name", "shape"}
    limited = {field.name for field in fields(Limits)} - {"least_sram"}  # which asks for as little as there is
    checked = {*printed, *verdicts, *budgets, *limited, *beside, *ports}
    assert checked <= names, f"nothing is planted for {checked - names}"
    messages = [said(number) for number in range(len(PLANTED))]
    for words in sentences():
        assert any(all(part in message for part in words) for message in messages), f"nothing makes it say {words}"


def sentences() -> Iterator[list[str]]:
    """Of every error that the proving modules raise, the words that are always the same."""
    for module in PROVING:
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                text = node.exc.args[0]
                parts = text.values if isinstance(text, ast.JoinedStr) else [text]
                yield [str(part.value) for part in parts if isinstance(part, ast.Constant)]
