// What the launchers of every device share: the sizes of tensors checked in one sentence, and rows that kernels can read.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace tmem {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_dim(const char* op, const char* name, const Tensor& x, int64_t dims) {
  STD_TORCH_CHECK(x.dim() == dims, op, ": ", name, " must have ", dims, " dimensions, got ", x.dim());
}

inline void check_size(const char* op, const char* name, const Tensor& x, int64_t dim, int64_t expected) {
  STD_TORCH_CHECK(x.size(dim) == expected, op, ": ", name, " must have size ", expected, " in dimension ", dim,
                  ", got ", x.size(dim));
}

// A factor [slots or 1, ranks, width].
inline void check_factor(const char* op, const char* name, const Tensor& f, int64_t slots, int64_t ranks,
                         int64_t width) {
  check_dim(op, name, f, 3);
  STD_TORCH_CHECK(f.size(0) == slots || f.size(0) == 1, op, ": ", name, " must have 1 or ", slots,
                  " slots in dimension 0, got ", f.size(0));
  check_size(op, name, f, 1, ranks);
  check_size(op, name, f, 2, width);
}

inline bool rows_contiguous(const Tensor& x) {
  const int64_t last = x.dim() - 1;
  return x.size(last) <= 1 || x.stride(last) == 1;
}

// An input whose last dimension is contiguous: itself, or a copy.
inline Tensor readable(const Tensor& x) { return rows_contiguous(x) ? x : torch::stable::contiguous(x); }

// An output written in place through its own strides: itself, or a copy that `finish` writes back.
class Written {
 public:
  explicit Written(const Tensor& x) : whole_(x), rows_(readable(x)) {}
  const Tensor& rows() const { return rows_; }
  void finish() {
    if (rows_.get() != whole_.get()) torch::stable::copy_(whole_, rows_);
  }

 private:
  Tensor whole_, rows_;
};

}  // namespace tmem
