// What every launcher of the CPU needs: tensors checked before a pointer is taken, and pointers the kernels can use.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "../launch.h"
#include "kernels.h"

namespace tmem {

// Multiply-adds that are worth waking another thread for.
constexpr int64_t TASK = 1 << 17;
inline int64_t grain(int64_t task_cost) { return std::max<int64_t>(1, TASK / std::max<int64_t>(1, task_cost)); }

inline ScalarType accumulator(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// A new contiguous tensor on the CPU, its elements not set. Direct: a call through the dispatcher takes five times as long.
inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;)
    strides[d - 1] = strides[d] * std::max<int64_t>(1, sizes.begin()[d]);
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.begin(), strides.data(),
                                                  torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
                                                  aoti_torch_device_type_cpu(), -1, &made));
  return Tensor(made);
}

inline void check_cpu(const char* op, const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu(), op, ": ", name, " must be on the CPU as the other tensors are");
}

inline void check_dtype(const char* op, const char* name, const Tensor& x, ScalarType expected) {
  check_cpu(op, name, x);
  STD_TORCH_CHECK(x.scalar_type() == expected, op, ": ", name, " must be ", torch::headeronly::toString(expected),
                  ", got ", torch::headeronly::toString(x.scalar_type()));
}

inline void check_activation(const char* op, const char* name, const Tensor& x) {
  check_cpu(op, name, x);
  const ScalarType t = x.scalar_type();
  STD_TORCH_CHECK(t == ScalarType::Float || t == ScalarType::BFloat16 || t == ScalarType::Half || t == ScalarType::Double,
                  op, ": ", name, " must be Float, BFloat16, Half or Double, got ", torch::headeronly::toString(t));
}

inline void check_half(const char* op, const char* name, const Tensor& x) {
  check_dtype(op, name, x, x.scalar_type() == ScalarType::Half ? ScalarType::Half : ScalarType::BFloat16);
}

inline void check_column(const char* op, const char* name, const Tensor& x, ScalarType dtype, int64_t rows) {
  check_dtype(op, name, x, dtype);
  check_dim(op, name, x, 1);
  check_size(op, name, x, 0, rows);
}

inline Element element_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Double: return F64;
    case ScalarType::BFloat16: return BF16;
    case ScalarType::Half: return F16;
    default: return F32;
  }
}

inline Pair pair_of(const char* op, const char* name, const Tensor& activation, const Tensor& factor) {
  check_activation(op, name, factor);
  const Pair pair = {element_of(activation), element_of(factor)};
  STD_TORCH_CHECK((pair.activation == F64) == (pair.factor == F64), op, ": ", name,
                  " must be Double exactly when the activation is, got ",
                  torch::headeronly::toString(factor.scalar_type()), " and ",
                  torch::headeronly::toString(activation.scalar_type()));
  return pair;
}

inline Factor factor(const Tensor& f) {
  return {f.const_data_ptr(), f.size(0) == 1 ? 0 : f.stride(0), f.stride(1)};
}

// The descriptor of `rows` rows, every value checked: nothing the kernels read from it can lead out of bounds.
class Descriptor {
 public:
  Descriptor(const char* op, const Tensor& off, const Tensor& slot, const Tensor& rank, int64_t rows, int64_t ranks);
  const Segments& segments() const { return segments_; }
  int64_t slots() const { return slots_; }

 private:
  Tensor off_, slot_, rank_;
  Segments segments_;
  int64_t slots_;
};

}  // namespace tmem
