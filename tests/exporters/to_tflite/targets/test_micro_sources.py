import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nbcompile.core.errors import CheckpointError, ExportError, UsageError
from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileTensor, pack, read_file, schema, unpack
from nbcompile.exporters.to_tflite.file.quiet_tensorflow import tf
from nbcompile.exporters.to_tflite.lower.lowering import float_model
from nbcompile.exporters.to_tflite.run.interpreters import run_file as run_file
from nbcompile.exporters.to_tflite.targets.check_vector import CheckInput, CheckVector
from nbcompile.exporters.to_tflite.targets.micro_operators import RESOLVER_METHODS, check_ops
from nbcompile.exporters.to_tflite.targets.micro_sources import comment, identifier, sources
from tests.exporters.to_tflite.lowered import Net
from tests.exporters.to_tflite.small_tflite import converted, tiny

STUBS = Path(__file__).parent / "micro_stubs"
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", f"-I{STUBS}"]
FLAGS += ["-fsanitize=undefined", "-fno-sanitize-recover=undefined", "-DTINY_CHECK=0"]  # nothing is computed here

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def content() -> bytes:
    return tiny()


def write(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text)


def ports(file: File) -> str:
    """What the stand-in of the interpreter needs to know; see micro_stubs/README.md."""
    types = {"int8": "kTfLiteInt8", "float32": "kTfLiteFloat32", "int16": "kTfLiteInt16", "int64": "kTfLiteInt64"}

    def tensors(name: str, found: list[FileTensor]) -> str:
        buffers = "".join(f"static int64_t {name}_{i}[{t.nbytes // 8 + 1}];\n" for i, t in enumerate(found))
        rows = "".join(
            f"{{{types[t.dtype.name]}, {{reinterpret_cast<int8_t*>({name}_{i})}}, {t.nbytes}}}, "
            for i, t in enumerate(found)
        )
        return f"{buffers}TfLiteTensor stub_{name}[] = {{{rows}}};\n"

    inputs, outputs = ([file.tensors[i] for i in found] for found in (file.inputs, file.outputs))
    return (
        '#include "tensorflow/lite/micro/micro_interpreter.h"\n'
        + tensors("inputs", inputs)
        + tensors("outputs", outputs)
        + f"const int stub_output_count = {len(outputs)};\n"
    )


def program(folder: Path, content: bytes, value: str = "0", vector: CheckVector | None = None) -> Path:
    """Generate, compile and link; the path of the program, whose inputs are ``value`` everywhere."""
    texts = sources(content, "tiny", 5000, vector=vector)
    texts["tiny_main.cc"] = texts["tiny_main.cc"].replace(
        "(void)index;\n  return 0;", f"(void)index;\n  return {value};"
    )
    write(folder, texts | {"ports.cc": ports(read_file(content))})
    inputs = ["tiny.cc", "tiny_main.cc", "ports.cc"]
    subprocess.run(["g++", *FLAGS, *inputs, "-o", "program"], cwd=folder, check=True)
    return folder / "program"


def run(path: Path, **environment: str) -> tuple[int, list[str]]:
    """Exit code and printed lines; the call named ``STUB_FAILS`` fails."""
    done = subprocess.run([path], env=os.environ | environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> Path:
    return program(tmp_path_factory.mktemp("compiled"), content, 'strtof(getenv("VALUE"), nullptr)')


@needs_compiler
def test_the_program_compiles_and_goes_through(compiled: Path, content: bytes) -> None:
    code, lines = run(compiled, VALUE="0.37")
    file = read_file(content)
    quantization = file.tensors[file.outputs[0]].quantization
    assert quantization is not None
    # The stand-in writes 0, 1, 2, 3, 4 to the five outputs.
    largest = float(quantization.scale[0]) * (4 - int(quantization.zero_point[0]))
    count = len({op.name for op in file.ops})
    assert (code, lines) == (
        0,
        [
            f"stub: model 0, arena 0, {count} of {count} operators",  # aligned to 16 bytes; room for no more
            "tiny: arena: 2500 of 5000 bytes used",
            f"stub: input 0 starts with {file.tensors[file.inputs[0]].quantized(np.array([0.37]))[0]}",
            f"tiny: output 0: the largest is element 4, {largest:f}",
        ],
    )


@needs_compiler
@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ("version", ["tiny: the file's schema version is not the interpreter's"]),
        ("AddSoftmax", ["tiny: AddSoftmax() failed", "tiny: an operator could not be registered"]),
        ("AddConv2D", ["tiny: AddConv2D() failed", "tiny: an operator could not be registered"]),
        (
            "AllocateTensors",
            ["tiny: AllocateTensors() failed: TINY_ARENA_BYTES may be too small for the kernels of this chip"],
        ),
        ("Invoke", ["tiny: Invoke() failed"]),
    ],
)
def test_the_program_reports_every_failure(compiled: Path, fails: str, said: list[str]) -> None:
    code, lines = run(compiled, VALUE="0", STUB_FAILS=fails)
    assert code == 1
    assert lines[-len(said) :] == said


@needs_compiler
@pytest.mark.parametrize(("value", "stored"), [("1e30", 127), ("-1e30", -128), ("inf", 127), ("nan", -128)])
def test_the_program_clips(compiled: Path, value: str, stored: int) -> None:
    assert run(compiled, VALUE=value)[1][2] == f"stub: input 0 starts with {stored}"


@needs_compiler
def test_the_array_holds_the_file_and_the_constants_are_exact(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, sources(content, "my-net.2", 4321))
    (tmp_path / "check.cc").write_text("""
        #include <cstdio>
        #include "my-net.2.h"
        int main() {
          const int shape[] = MY_NET_2_INPUT_0_SHAPE;
          fprintf(stderr, "%d %d %d %d %d %d %d %.9g %d %d %d", MY_NET_2_ARENA_BYTES, MY_NET_2_INPUTS, MY_NET_2_OUTPUTS,
                  MY_NET_2_INPUT_0_RANK, shape[1], shape[2], MY_NET_2_INPUT_0_ELEMENTS, MY_NET_2_INPUT_0_SCALE,
                  MY_NET_2_INPUT_0_ZERO_POINT, MY_NET_2_OUTPUT_0_BYTES, static_cast<int>(sizeof(my_net_2_input_0_t)));
          fwrite(my_net_2_data, 1, sizeof(my_net_2_data), stdout);
        }""")
    subprocess.run(["g++", *FLAGS, "check.cc", "my-net.2.cc", "-o", "check"], cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "check"], capture_output=True, check=True)
    assert done.stdout == content
    *integers, scale, zero_point, size, item = done.stderr.decode().split()
    assert integers == ["4321", "1", "1", "4", "17", "13", str(17 * 13 * 3)]
    file = read_file(content)
    quantization = file.tensors[file.inputs[0]].quantization
    assert quantization is not None
    assert np.float32(scale) == quantization.scale[0]
    assert (int(zero_point), int(size), int(item)) == (quantization.zero_point[0], 5, 1)


@needs_compiler
def test_c_can_read_the_header(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, sources(content, "tiny", 100, notes=["pixels / 255 - 0.5\nRGB \\"]))
    (tmp_path / "use.c").write_text('#include "tiny.h"\n#include "tiny.h"\nint first(void) { return tiny_data[0]; }\n')
    subprocess.run(["gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-c", "use.c"], cwd=tmp_path, check=True)
    assert (tmp_path / "tiny.h").read_text().splitlines()[1] == "// pixels / 255 - 0.5 RGB"


@needs_compiler
@pytest.mark.parametrize("int8", [True, False], ids=["float in and out", "float32"])
def test_inputs_and_outputs_in_float(tmp_path: Path, int8: bool) -> None:
    content = tiny(int8=int8, io=tf.float32)
    texts = sources(content, "tiny", 5000)
    assert not re.search(r"#define \w+_SCALE", texts["tiny.h"])
    assert ("Quantize" in texts["tiny_ops.h"]) == int8
    code, lines = run(program(tmp_path, content))
    assert code == 0
    assert lines[2] == "stub: input 0 starts with 0"


@needs_compiler
def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    def call(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.nn.relu(x + y), tf.math.argmax(x, -1)

    content = converted(call, (1, 3, 5), (1, 3, 5))
    file = read_file(content)  # TFLite Micro computes no index of 64 bits
    held = [np.zeros(file.tensors[i].shape, file.tensors[i].dtype) for i in (*file.inputs, *file.outputs)]
    vector = CheckVector(tuple(CheckInput(x, x) for x in held[:2]), tuple(held[2:]), None, 0)
    code, lines = run(program(tmp_path, content, vector=vector))
    assert code == 0
    texts = sources(content, "tiny", 5000, vector=vector)
    assert "typedef int64_t tiny_output_" in texts["tiny.h"]
    assert [line[:17] for line in lines[-2:]] == ["tiny: output 0: t", "tiny: output 1: t"]


def test_the_resolver_has_exactly_the_operators_of_the_file(content: bytes) -> None:
    texts = sources(content, "tiny", 5000)
    added = re.findall(r"resolver\.(\w+)\(\)", texts["tiny_ops.h"])
    assert added == sorted({RESOLVER_METHODS[op.name] for op in read_file(content).ops})
    assert f"MicroMutableOpResolver<{len(added)}>" in texts["tiny_ops.h"]


def test_the_methods_are_those_of_the_header() -> None:
    header = (STUBS / "tensorflow/lite/micro/micro_mutable_op_resolver.h").read_text()
    assert set(RESOLVER_METHODS.values()) == set(re.findall(r"STUB_OPERATOR\((Add\w+)\)", header))


def test_operators_that_tflite_micro_lacks_are_named() -> None:
    content = converted(lambda x: tf.nn.gelu(tf.pow(tf.nn.gelu(x), x)), (1, 5, 3), int8=False)
    file = read_file(content)
    gelu, power = (file.tensors[file.ops[i].outputs[0]].name.partition(";")[0] for i in (0, 1))
    with pytest.raises(ExportError) as raised:
        sources(content, "tiny", 5000)
    assert str(raised.value) == (
        f"TFLite Micro lacks GELU and POW. '{gelu}' needs GELU: use nn.GELU(approximate='tanh'), or train with ReLU, "
        "ReLU6 or Hardswish there; "
        f"'{power}' needs POW: replace it by operators that TFLite Micro has, or export for the target raspberrypi"
    )


@pytest.mark.parametrize(
    ("network", "x", "sentence"),
    [
        (
            Net(lambda _, x: torch.cat([x.sin() + i for i in range(11)], 1)),
            torch.randn(1, 4),
            "'cat' has 11 parts, and TFLite Micro concatenates 10 at most: do it in two steps",
        ),
        (
            Net(lambda _, x: x.reshape(2, 3, 2, 3, 2, 3).permute(1, 0, 3, 2, 5, 4).sin()),
            torch.randn(1, 216),
            "permutes 6 dimensions, and TFLite Micro 5 at most: flatten some of them before",
        ),
        (
            nn.Sequential(nn.Embedding(7, 4)),
            torch.tensor([[1, 5, 3]]),
            "'0' reads numbers of 64 bits, and TFLite Micro has kernels for 32: make the example input int32 (x.int())",
        ),
    ],
)
def test_operators_that_tflite_micro_has_for_less_are_named(network: nn.Module, x: Tensor, sentence: str) -> None:
    with pytest.raises(ExportError, match=re.escape(sentence)):
        check_ops(read_file(float_model(network, (x,)).content))


def test_an_embedding_of_32_bits_runs() -> None:
    network, x = nn.Sequential(nn.Embedding(7, 4)), torch.tensor([[1, 5, 3]], dtype=torch.int32)
    content = float_model(network, (x,)).content
    check_ops(read_file(content))
    ((y,),) = run_file(content, [(x.numpy(),)], kernels="micro")
    assert np.array_equal(y, network(x).detach().numpy())


# Prints the operators that TFLite Micro finds. Each is tried in a process of its own: kernels that get another
# operator's options may crash.
PROBE = """
import os, sys
from pathlib import Path
from nbcompile.core.errors import ExportError
from nbcompile.exporters.to_tflite.file.flatbuffer import pack, schema, unpack
from nbcompile.exporters.to_tflite.run.interpreters import load_file

model = unpack(Path(sys.argv[1]).read_bytes())
for name, code in vars(schema.BuiltinOperator).items():
    if name.startswith(("_", "STABLEHLO", "PLACEHOLDER")) or name in ("CUSTOM", "DELEGATE"):
        continue
    model.operatorCodes[0].builtinCode, model.operatorCodes[0].deprecatedBuiltinCode = code, min(code, 127)
    if not os.fork():
        try:
            load_file(pack(model), "micro")
        except ExportError as error:
            if "find op for builtin opcode" in str(error):
                os._exit(0)
        os._exit(1)
    if os.wait()[1]:
        print(name)
"""


def test_the_table_is_what_tflite_micro_finds(tmp_path: Path) -> None:
    path = tmp_path / "add.tflite"
    path.write_bytes(converted(lambda x, y: x + y, (1, 5, 3), (1, 5, 3), int8=False))
    done = subprocess.run([sys.executable, "-c", PROBE, path], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == set(RESOLVER_METHODS)


def test_types_that_kernels_do_not_take_are_refused(content: bytes) -> None:
    model = unpack(content)
    tensor = model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]]
    tensor.type = schema.TensorType.FLOAT16
    with pytest.raises(ExportError) as raised:
        sources(pack(model), "tiny", 5000)
    assert str(raised.value) == (
        f"'{tensor.name.decode()}' is an input or output of type float16, which TFLite Micro's kernels do not take; "
        f"export with inputs and outputs of type int8 or float32"
    )


def test_bad_input() -> None:
    with pytest.raises(CheckpointError, match=r"this is no \.tflite file"):
        sources(b"not a model", "tiny", 5000)
    with pytest.raises(UsageError, match=r"no C\+\+ file can be called 'a\"b': a quote"):
        sources(b"", 'a"b', 5000)


def test_the_header_is_included_by_its_name(content: bytes) -> None:
    for stem in ("naïve", "two  spaces"):
        texts = sources(content, stem, 5000)
        assert f'#include "{stem}.h"\n' in texts[f"{stem}.cc"]
        assert f'#include "{stem}_ops.h"\n' in texts[f"{stem}_main.cc"]


@pytest.mark.parametrize(
    ("stem", "name"), [("tiny", "tiny"), ("2-net", "model_2_net"), ("a__b.c", "a_b_c"), ("é", "model"), ("_x_", "x")]
)
def test_identifiers(stem: str, name: str) -> None:
    assert identifier(stem) == name


def test_comments_stay_on_their_line() -> None:
    assert comment("a\nb\\\r\tc é?") == "a b c ?"
