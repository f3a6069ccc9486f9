// A stand-in for tests, with the signatures of tflite-micro's header of this name; see the README beside it.
#ifndef STUB_SCHEMA_GENERATED_H_
#define STUB_SCHEMA_GENERATED_H_

#include <stdint.h>

#include "tensorflow/lite/c/common.h"

namespace tflite {

struct Model {
  uint32_t version() const { return stub_status("version") == kTfLiteOk ? 3 : 4; }
};

inline const Model* GetModel(const void* data) { return static_cast<const Model*>(data); }

}  // namespace tflite

#endif  // STUB_SCHEMA_GENERATED_H_
