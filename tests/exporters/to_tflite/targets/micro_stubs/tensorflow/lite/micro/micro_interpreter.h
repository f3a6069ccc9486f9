// A stand-in for tests, with the signatures of tflite-micro's header of this name; see the README beside it.
#ifndef STUB_MICRO_INTERPRETER_H_
#define STUB_MICRO_INTERPRETER_H_

#include "tensorflow/lite/c/common.h"
#include "tensorflow/lite/micro/micro_log.h"
#include "tensorflow/lite/micro/micro_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"

#define TFLITE_SCHEMA_VERSION (3)

// Defined by the test: what a real interpreter reads from the model.
extern TfLiteTensor stub_inputs[];
extern TfLiteTensor stub_outputs[];
extern const int stub_output_count;

namespace tflite {

class MicroResourceVariables;
class MicroProfilerInterface;

template <typename T>
struct StubType;
template <>
struct StubType<float> {
  static constexpr TfLiteType value = kTfLiteFloat32;
};
template <>
struct StubType<int8_t> {
  static constexpr TfLiteType value = kTfLiteInt8;
};
template <>
struct StubType<int16_t> {
  static constexpr TfLiteType value = kTfLiteInt16;
};
template <>
struct StubType<int64_t> {
  static constexpr TfLiteType value = kTfLiteInt64;
};

class MicroInterpreter {
 public:
  MicroInterpreter(const Model* model, const MicroOpResolver& op_resolver, uint8_t* tensor_arena,
                   size_t tensor_arena_size, MicroResourceVariables* resource_variables = nullptr,
                   MicroProfilerInterface* profiler = nullptr, bool preserve_all_tensors = false)
      : model_(model), resolver_(op_resolver), arena_(tensor_arena), size_(tensor_arena_size) {
    (void)resource_variables;
    (void)profiler;
    (void)preserve_all_tensors;
  }

  TfLiteStatus AllocateTensors() {
    MicroPrintf("stub: model %d, arena %d, %d of %d operators", static_cast<int>(reinterpret_cast<uintptr_t>(model_) % 16),
                static_cast<int>(reinterpret_cast<uintptr_t>(arena_) % 16), static_cast<int>(resolver_.stub_registered()),
                static_cast<int>(resolver_.stub_room()));
    return stub_status("AllocateTensors");
  }

  TfLiteStatus Invoke() {
    MicroPrintf("stub: input 0 starts with %d", stub_inputs[0].data.int8[0]);
    for (int i = 0; i < stub_output_count; ++i) {
      for (size_t j = 0; j < stub_outputs[i].bytes; ++j) {
        stub_outputs[i].data.int8[j] = static_cast<int8_t>(j);
      }
    }
    return stub_status("Invoke");
  }

  TfLiteTensor* input(size_t index) { return &stub_inputs[index]; }
  TfLiteTensor* output(size_t index) { return &stub_outputs[index]; }

  template <class T>
  T* typed_input_tensor(int index) {
    return typed<T>(input(static_cast<size_t>(index)));
  }
  template <class T>
  T* typed_output_tensor(int index) {
    return typed<T>(output(static_cast<size_t>(index)));
  }

  size_t arena_used_bytes() const { return size_ / 2; }

 private:
  template <class T>
  T* typed(TfLiteTensor* tensor) {
    return tensor->type == StubType<T>::value ? static_cast<T*>(tensor->data.data) : nullptr;
  }

  const Model* model_;
  const MicroOpResolver& resolver_;
  uint8_t* arena_;
  size_t size_;
};

}  // namespace tflite

#endif  // STUB_MICRO_INTERPRETER_H_
