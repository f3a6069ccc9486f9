// A stand-in for tests, with the signatures of tflite-micro's header of this name; see the README beside it.
#ifndef STUB_C_COMMON_H_
#define STUB_C_COMMON_H_

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 } TfLiteStatus;

typedef enum { kTfLiteFloat32 = 1, kTfLiteInt32 = 2, kTfLiteInt64 = 4, kTfLiteInt16 = 7, kTfLiteInt8 = 9 } TfLiteType;

typedef struct TfLiteTensor {
  TfLiteType type;
  union {
    int8_t* int8;
    void* data;
  } data;
  size_t bytes;
} TfLiteTensor;

// Fails where the test asks for it.
inline TfLiteStatus stub_status(const char* call) {
  const char* fails = getenv("STUB_FAILS");
  return fails != nullptr && strcmp(fails, call) == 0 ? kTfLiteError : kTfLiteOk;
}

#endif  // STUB_C_COMMON_H_
