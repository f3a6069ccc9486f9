"""The text of ``STEM_main.cc``: a program for TFLite Micro that checks the device and runs a network once."""

from string import Template

from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileTensor
from nbcompile.exporters.to_tflite.targets.kept_program import signed

_MAIN = Template("""\
// Checks that this device computes $stem as the computer did, and runs it once, in TFLite Micro. Written by nbcompile
// as a start: put your sensor into the functions Input...().
// It is for $form.
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include <limits>

#include "tensorflow/lite/c/common.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"

#include "$stem.h"
#include "${stem}_check.h"
#include "${stem}_ops.h"

static_assert(${macro}_INPUTS == $input_count && ${macro}_OUTPUTS == $output_count,
              "this program is for another network: move it away, and export again to get one that fits");

namespace {

alignas(16) uint8_t arena[${macro}_ARENA_BYTES];
$quantized$values
int Fail(const char* what) {
  MicroPrintf("$name: %s", what);
  return 1;
}

}  // namespace

int ${name}_main() {
  tflite::InitializeTarget();

  const tflite::Model* model = tflite::GetModel(${name}_data);
  if (model->version() != TFLITE_SCHEMA_VERSION) {
    return Fail("the file's schema version is not the interpreter's");
  }
  static ${name}_resolver_t resolver;
  if (${name}_add_ops(resolver) != kTfLiteOk) {
    return Fail("an operator could not be registered");
  }
  static tflite::MicroInterpreter interpreter(model, resolver, arena, sizeof(arena));
  if (interpreter.AllocateTensors() != kTfLiteOk) {
    return Fail("AllocateTensors() failed: ${macro}_ARENA_BYTES may be too small for the kernels of this chip");
  }
  MicroPrintf("$name: arena: %d of %d bytes used", static_cast<int>(interpreter.arena_used_bytes()),
              ${macro}_ARENA_BYTES);
$ports
#if ${macro}_CHECK
$fills
  if (interpreter.Invoke() != kTfLiteOk) {
    return Fail("Invoke() failed");
  }
  bool same = true;
$compared
  if (!same) {
    return Fail("check: failed: this device does not compute what the computer computed");
  }
  MicroPrintf("$name: check: passed");
#endif
$inputs
  if (interpreter.Invoke() != kTfLiteOk) {
    return Fail("Invoke() failed");
  }
$outputs
  return 0;
}

// Where programs begin; sketches of Arduino have a setup(), which calls ${name}_main().
#if defined(ESP_PLATFORM) && !defined(ARDUINO)
extern "C" void app_main() { ${name}_main(); }
#elif !defined(ARDUINO)
int main() { return ${name}_main(); }
#endif
""")

_QUANTIZED = """
// A number as the model stores it: rounded, and clipped to the type. NaN becomes the smallest.
template <typename T>
T Quantized(float x, float scale, int zero_point) {
  const float low = std::numeric_limits<T>::min();
  const float high = std::numeric_limits<T>::max();
  const float q = roundf(x / scale) + static_cast<float>(zero_point);
  return static_cast<T>(q > low ? (q < high ? q : high) : low);
}
"""

_VALUE = Template("""
// $what. Replace this.
$type Input${i}$kind(size_t index) {
  (void)index;
  return 0;
}
""")

_PORT = Template("""
  ${name}_${kind}_${i}_t* ${kind}_$i = interpreter.typed_${kind}_tensor<${name}_${kind}_${i}_t>($i);
  if (${kind}_$i == nullptr || interpreter.$kind($i)->bytes != ${prefix}_BYTES) {
    return Fail("$kind $i is not what ${stem}.h says");
  }
""")

_FILL = Template("""\
  if (!${name}_check_fill_$i(input_$i)) {
    return Fail("check: failed: input $i is not what it was on the computer: its preprocessing is another");
  }
""")

_COMPARE = Template("""\
  size_t first_$i = 0;
  const size_t wrong_$i = ${name}_check_wrong_$i(output_$i, &first_$i);
  if (wrong_$i > 0) {
    MicroPrintf("$name: check: output $i: %d of %d elements differ, element %d first: $format here, "
                "$format on the computer",
                static_cast<int>(wrong_$i), ${prefix}_KEPT, static_cast<int>(first_$i),
                static_cast<$cast>(output_$i[first_$i]),
                static_cast<$cast>(${name}_check_output_$i[first_$i / ${prefix}_EVERY]));
    same = false;
  }
""")

_INPUT = Template("""
  for (size_t i = 0; i < ${prefix}_ELEMENTS; ++i) {
    input_$i[i] = $value;
  }
""")

_OUTPUT = Template("""
  size_t largest_$i = 0;
  for (size_t i = 1; i < ${prefix}_ELEMENTS; ++i) {
    if (output_$i[i] > output_$i[largest_$i]) {
      largest_$i = i;
    }
  }
  MicroPrintf("$name: output $i: the largest is element %d, %f", static_cast<int>(largest_$i),
              static_cast<double>($value));
""")


def main_source(file: File, stem: str, name: str, byte_rows: int = 0) -> str:
    """The text of ``STEM_main.cc``.

    Args:
        file: of one graph, inputs and outputs of types that TFLite Micro takes.
        stem: of the files' names.
        name: the same as a C identifier.
        byte_rows: of the table of what bytes of an image become, in input 0; 0: there is none.
    """
    names = {"stem": stem, "name": name, "macro": name.upper()}
    inputs = [file.tensors[index] for index in file.inputs]
    outputs = [file.tensors[index] for index in file.outputs]
    rows = [byte_rows if i == 0 else 0 for i in range(len(inputs))]
    filled = list(enumerate(zip(inputs, rows, strict=True)))
    quantized = any(tensor.quantization and not count for tensor, count in zip(inputs, rows, strict=True))
    text = _MAIN.substitute(
        names,
        form=_form(inputs, outputs, byte_rows),
        input_count=len(inputs),
        output_count=len(outputs),
        quantized=_QUANTIZED if quantized else "",
        values="".join(_value(names, i, tensor, count) for i, (tensor, count) in filled),
        ports="".join(_ports(names, "input", len(inputs)) + _ports(names, "output", len(outputs))),
        fills="".join(_FILL.substitute(names, i=i) for i, _ in filled).rstrip("\n"),
        compared="".join(_compared(names, i, tensor) for i, tensor in enumerate(outputs)).rstrip("\n"),
        inputs="".join(_input(names, i, tensor, count) for i, (tensor, count) in filled),
        outputs="".join(_output(names, i, tensor) for i, tensor in enumerate(outputs)),
    )
    return signed(text)


def _form(inputs: list[FileTensor], outputs: list[FileTensor], byte_rows: int) -> str:
    """What the program reads and fills, in words: another one is needed where that changes."""
    kinds = {"input": inputs, "output": outputs}
    ports = [
        f"{kind} {i} of {tensor.dtype.name} {' x '.join(map(str, tensor.shape)) or '(one number)'}"
        for kind, tensors in kinds.items()
        for i, tensor in enumerate(tensors)
    ]
    return ", ".join([ports[0] + " from the bytes of an image" * (byte_rows > 0), *ports[1:]])


def _value(names: dict[str, str], i: int, tensor: FileTensor, byte_rows: int) -> str:
    if byte_rows:
        what = "Byte `index` of an image: rows by columns by channels"
        return _VALUE.substitute(i=i, kind="Byte", type="uint8_t", what=what)
    how = "" if tensor.quantization is None else f", before it is stored as {tensor.dtype.name}"
    kind = "float" if tensor.quantization is not None else f"{names['name']}_input_{i}_t"
    return _VALUE.substitute(i=i, kind="Value", type=kind, what=f"Element `index` of input {i}{how}")


def _ports(names: dict[str, str], kind: str, count: int) -> list[str]:
    prefix = f"{names['macro']}_{kind.upper()}"
    return [_PORT.substitute(names, kind=kind, i=i, prefix=f"{prefix}_{i}") for i in range(count)]


def _compared(names: dict[str, str], i: int, tensor: FileTensor) -> str:
    form, cast = ("%f", "double") if tensor.dtype.kind == "f" else ("%d", "int")
    return _COMPARE.substitute(names, i=i, prefix=f"{names['macro']}_CHECK_OUTPUT_{i}", format=form, cast=cast)


def _input(names: dict[str, str], i: int, tensor: FileTensor, byte_rows: int) -> str:
    prefix, value = f"{names['macro']}_INPUT_{i}", f"Input{i}Value(i)"
    if byte_rows:
        value = f"{names['name']}_input_{i}_of_byte[i % {byte_rows}][Input{i}Byte(i)]"
    elif tensor.quantization is not None:
        value = f"Quantized<{names['name']}_input_{i}_t>({value}, {prefix}_SCALE, {prefix}_ZERO_POINT)"
    return _INPUT.substitute(names, i=i, prefix=prefix, value=value)


def _output(names: dict[str, str], i: int, tensor: FileTensor) -> str:
    prefix, value = f"{names['macro']}_OUTPUT_{i}", f"output_{i}[largest_{i}]"
    if tensor.quantization is not None:
        value = f"{prefix}_SCALE * static_cast<float>({value} - {prefix}_ZERO_POINT)"
    return _OUTPUT.substitute(names, i=i, prefix=prefix, value=value)
