// A stand-in for tests, with the signatures of tflite-micro's header of this name; see the README beside it.
#ifndef STUB_SYSTEM_SETUP_H_
#define STUB_SYSTEM_SETUP_H_

namespace tflite {

inline void InitializeTarget() {}

}  // namespace tflite

#endif  // STUB_SYSTEM_SETUP_H_
