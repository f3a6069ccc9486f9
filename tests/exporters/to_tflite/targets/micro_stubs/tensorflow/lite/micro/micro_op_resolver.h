// A stand-in for tests, with the signatures of tflite-micro's header of this name; see the README beside it.
#ifndef STUB_MICRO_OP_RESOLVER_H_
#define STUB_MICRO_OP_RESOLVER_H_

namespace tflite {

class MicroOpResolver {
 public:
  virtual unsigned int stub_registered() const = 0;
  virtual unsigned int stub_room() const = 0;

 protected:
  ~MicroOpResolver() = default;
};

}  // namespace tflite

#endif  // STUB_MICRO_OP_RESOLVER_H_
