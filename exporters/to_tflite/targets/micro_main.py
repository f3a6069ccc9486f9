"""The text of ``STEM_main.cc``: a program for TFLite Micro that runs a network once, to start from."""

from string import Template

from nbcompile.exporters.to_tflite.file.flatbuffer import File, FileTensor

_MAIN = Template("""\
// Runs $stem once in TFLite Micro. Written by nbcompile as a start: put your sensor into the functions Input...Value().
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
#include "${stem}_ops.h"

namespace {

alignas(16) uint8_t arena[${macro}_ARENA_BYTES];
$quantized$values
int Fail(const char* what) {
  MicroPrintf("$name: %s", what);
  return 1;
}

}  // namespace

int main() {
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
$inputs
  if (interpreter.Invoke() != kTfLiteOk) {
    return Fail("Invoke() failed");
  }
$outputs
  return 0;
}
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
// Element `index` of input $i, before it is stored$how. Replace this.
$type Input${i}Value(size_t index) {
  (void)index;
  return 0;
}
""")

_INPUT = Template("""
  ${name}_input_${i}_t* input_$i = interpreter.typed_input_tensor<${name}_input_${i}_t>($i);
  if (input_$i == nullptr || interpreter.input($i)->bytes != ${prefix}_BYTES) {
    return Fail("input $i is not what ${stem}.h says");
  }
  for (size_t i = 0; i < ${prefix}_ELEMENTS; ++i) {
    input_$i[i] = $value;
  }
""")

_OUTPUT = Template("""
  const ${name}_output_${i}_t* output_$i = interpreter.typed_output_tensor<${name}_output_${i}_t>($i);
  if (output_$i == nullptr || interpreter.output($i)->bytes != ${prefix}_BYTES) {
    return Fail("output $i is not what ${stem}.h says");
  }
  size_t largest_$i = 0;
  for (size_t i = 1; i < ${prefix}_ELEMENTS; ++i) {
    if (output_$i[i] > output_$i[largest_$i]) {
      largest_$i = i;
    }
  }
  MicroPrintf("$name: output $i: the largest is element %d, %f", static_cast<int>(largest_$i),
              static_cast<double>($value));
""")


def main_source(file: File, stem: str, name: str) -> str:
    """The text of ``STEM_main.cc``.

    Args:
        file: of one graph, inputs and outputs of types that TFLite Micro takes.
        stem: of the files' names.
        name: the same as a C identifier.
    """
    names = {"stem": stem, "name": name, "macro": name.upper()}
    inputs = [file.tensors[index] for index in file.inputs]
    outputs = [file.tensors[index] for index in file.outputs]
    return _MAIN.substitute(
        names,
        quantized=_QUANTIZED if any(tensor.quantization for tensor in inputs) else "",
        values="".join(_value(names, i, tensor) for i, tensor in enumerate(inputs)),
        inputs="".join(_input(names, i, tensor) for i, tensor in enumerate(inputs)),
        outputs="".join(_output(names, i, tensor) for i, tensor in enumerate(outputs)),
    )


def _value(names: dict[str, str], i: int, tensor: FileTensor) -> str:
    if tensor.quantization is not None:
        return _VALUE.substitute(i=i, type="float", how=f" as {tensor.dtype.name}")
    return _VALUE.substitute(i=i, type=f"{names['name']}_input_{i}_t", how="")


def _input(names: dict[str, str], i: int, tensor: FileTensor) -> str:
    prefix, value = f"{names['macro']}_INPUT_{i}", f"Input{i}Value(i)"
    if tensor.quantization is not None:
        value = f"Quantized<{names['name']}_input_{i}_t>({value}, {prefix}_SCALE, {prefix}_ZERO_POINT)"
    return _INPUT.substitute(names, i=i, prefix=prefix, value=value)


def _output(names: dict[str, str], i: int, tensor: FileTensor) -> str:
    prefix, value = f"{names['macro']}_OUTPUT_{i}", f"output_{i}[largest_{i}]"
    if tensor.quantization is not None:
        value = f"{prefix}_SCALE * static_cast<float>({value} - {prefix}_ZERO_POINT)"
    return _OUTPUT.substitute(names, i=i, prefix=prefix, value=value)
