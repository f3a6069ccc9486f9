"""The text of a program that runs a network's sources on inputs of our choice, and says what they took."""

from string import Template

_RUNNER = Template("""\
// Runs $stem on the inputs in inputs.bin, and writes outputs.bin. Written by nbcompile.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "tensorflow/lite/c/common.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_profiler_interface.h"
#include "tensorflow/lite/micro/recording_micro_allocator.h"
#include "tensorflow/lite/micro/system_setup.h"
#include "tensorflow/lite/schema/schema_generated.h"

#include "$stem.h"
#include "${stem}_ops.h"

#if defined(__arm__)
extern "C" uint64_t Ticks();
#else
static uint64_t Ticks() { return 0; }
#endif

namespace {

// Room enough to measure: the recording allocator and kernels made for a chip take more than ${macro}_ARENA_BYTES.
alignas(16) uint8_t arena[2 * ${macro}_ARENA_BYTES + 65536];

class Profiler : public tflite::MicroProfilerInterface {
 public:
  uint32_t BeginEvent(const char* tag) override {
    tag_ = tag;
    began_ = Ticks();
    return 0;
  }
  void EndEvent(uint32_t) override {
    const uint64_t ticks = Ticks() - began_;
    if (counts_) {
      printf("op %s %lu\\n", tag_, static_cast<unsigned long>(ticks));
    }
  }
  bool counts_ = false;

 private:
  const char* tag_ = "";
  uint64_t began_ = 0;
};

int Fail(const char* what) {
  printf("failed: %s\\n", what);
  return 1;
}

void Print(const char* what, size_t number) { printf("%s %lu\\n", what, static_cast<unsigned long>(number)); }

bool Read(tflite::MicroInterpreter& interpreter, FILE* file) {
  for (size_t i = 0; i < interpreter.inputs_size(); ++i) {
    const size_t bytes = interpreter.input(i)->bytes;
    if (fread(interpreter.input(i)->data.raw, 1, bytes, file) != bytes) {
      return false;
    }
  }
  return true;
}

// How many ticks two million instructions take.
size_t Calibrated() {
  const uint64_t began = Ticks();
#if defined(__arm__)
  for (uint32_t left = 1000000; left != 0;) {
    __asm__ volatile("1: subs %0, #1\\n bne 1b" : "+l"(left) : : "cc");
  }
#endif
  return static_cast<size_t>(Ticks() - began);
}

// The parts of the arena and each operator's instructions: with allocations recorded, which itself takes some memory.
int Record(const tflite::Model* model, const ${name}_resolver_t& resolver) {
  static Profiler profiler;
  tflite::RecordingMicroAllocator* allocator = tflite::RecordingMicroAllocator::Create(arena, sizeof(arena));
  tflite::MicroInterpreter interpreter(model, resolver, allocator, nullptr, &profiler);
  if (interpreter.AllocateTensors() != kTfLiteOk) {
    return Fail("AllocateTensors() of the recording interpreter");
  }
  Print("head", allocator->GetSimpleMemoryAllocator()->GetNonPersistentUsedBytes());
  Print("tail", allocator->GetSimpleMemoryAllocator()->GetPersistentUsedBytes());
  Print("recorder", tflite::RecordingMicroAllocator::GetDefaultTailUsage() -
                        tflite::MicroAllocator::GetDefaultTailUsage(false));
  const char* const kinds[] = {"eval_tensors", "tensors", "quantization", "buffers", "variables", "nodes", "op_data"};
  for (int i = 0; i < 7; ++i) {
    const tflite::RecordedAllocation found =
        allocator->GetRecordedAllocation(static_cast<tflite::RecordedAllocationType>(i));
    printf("kept %s %lu %lu\\n", kinds[i], static_cast<unsigned long>(found.used_bytes),
           static_cast<unsigned long>(found.count));
  }
  FILE* inputs = fopen("inputs.bin", "rb");
  if (inputs == nullptr || !Read(interpreter, inputs)) {
    return Fail("inputs.bin is not there, or too short");
  }
  fclose(inputs);
  profiler.counts_ = true;
  return interpreter.Invoke() == kTfLiteOk ? 0 : Fail("Invoke() of the recording interpreter");
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
  Print("calibrated", Calibrated());
  if (Record(model, resolver) != 0) {
    return 1;
  }
  tflite::MicroInterpreter interpreter(model, resolver, arena, sizeof(arena));
  if (interpreter.AllocateTensors() != kTfLiteOk) {
    return Fail("AllocateTensors()");
  }
  Print("arena_used", interpreter.arena_used_bytes());
  FILE* inputs = fopen("inputs.bin", "rb");
  FILE* outputs = fopen("outputs.bin", "wb");
  if (inputs == nullptr || outputs == nullptr) {
    return Fail("inputs.bin or outputs.bin cannot be opened");
  }
  while (Read(interpreter, inputs)) {
    const uint64_t began = Ticks();
    if (interpreter.Invoke() != kTfLiteOk) {
      return Fail("Invoke()");
    }
    Print("invoke", static_cast<size_t>(Ticks() - began));
    for (size_t i = 0; i < interpreter.outputs_size(); ++i) {
      fwrite(interpreter.output(i)->data.raw, 1, interpreter.output(i)->bytes, outputs);
    }
  }
  fclose(outputs);
  printf("done\\n");
  return 0;
}
""")


def runner_source(stem: str, name: str) -> str:
    """The program's text.

    Args:
        stem: of the sources' names: ``STEM.h``, ``STEM_ops.h``.
        name: the same as a C identifier.
    """
    return _RUNNER.substitute(stem=stem, name=name, macro=name.upper())
