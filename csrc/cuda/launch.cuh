// What every launcher of a GPU needs: where a tensor lives, the stream torch works on, and arguments checked in one sentence.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <cuda_runtime.h>

#include "../launch.h"

#ifdef TMEM_EMULATED  // on the CPU, for the tests
#define TMEM_KEY CPU
#else
#define TMEM_KEY CUDA
// In libtorch_cuda alone. Weak: the library also loads where torch has no CUDA, so that its registrations can be checked.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
#endif

namespace tmem {

#ifdef TMEM_EMULATED
struct OnDevice {
  OnDevice(const char*, const Tensor&) {}
  cudaStream_t stream = nullptr;
};
inline bool here(const Tensor& x, const Tensor&) { return x.is_cpu(); }
#else
// The device of `x` is current while this lives, and its stream is the one torch works on.
class OnDevice {
 public:
  OnDevice(const char* op, const Tensor& x) : guard_(x.get_device_index()) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, op, ": this torch has no CUDA; install one that has");
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }
  cudaStream_t stream;

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};
inline bool here(const Tensor& x, const Tensor& like) {
  return x.is_cuda() && x.get_device_index() == like.get_device_index();
}
#endif

inline void check(const char* op, cudaError_t status) {
  STD_TORCH_CHECK(status == cudaSuccess, op, ": CUDA says: ", cudaGetErrorString(status));
}

inline void check_dtype(const char* op, const char* name, const Tensor& x, ScalarType expected) {
  STD_TORCH_CHECK(x.scalar_type() == expected, op, ": ", name, " must be ", torch::headeronly::toString(expected),
                  ", got ", torch::headeronly::toString(x.scalar_type()));
}

inline void check_tensor(const char* op, const char* name, const Tensor& x, const Tensor& like, int64_t dims) {
  STD_TORCH_CHECK(here(x, like), op, ": ", name, " must be on the GPU of the first argument");
  check_dim(op, name, x, dims);
}

template <class T>
const T* read(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

}  // namespace tmem
