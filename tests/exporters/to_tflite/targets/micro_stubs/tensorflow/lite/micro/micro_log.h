// A stand-in for tests, with the signatures of tflite-micro's header of this name; see the README beside it.
#ifndef STUB_MICRO_LOG_H_
#define STUB_MICRO_LOG_H_

#include <stdarg.h>
#include <stdio.h>

__attribute__((format(printf, 1, 2))) inline void MicroPrintf(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  printf("\n");
}

#endif  // STUB_MICRO_LOG_H_
