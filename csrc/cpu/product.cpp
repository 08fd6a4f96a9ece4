// Launcher of row_linear: threads share the outputs, so that each reads its own rows of W, once.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>

#include "launch.h"

namespace tmem {

Tensor row_linear(const Tensor& x, const Tensor& w, std::optional<Tensor> bias) {
  const char* op = "row_linear";
  check_activation(op, "x", x);
  check_dim(op, "x", x, 2);
  check_dtype(op, "w", w, x.scalar_type());
  check_dim(op, "w", w, 2);
  check_size(op, "w", w, 1, x.size(1));
  const int64_t rows = x.size(0), outputs = w.size(0), depth = x.size(1);
  if (bias) {
    check_dtype(op, "bias", *bias, x.scalar_type());
    check_dim(op, "bias", *bias, 1);
    check_size(op, "bias", *bias, 0, outputs);
  }
  const Tensor lines = readable(x), weight = readable(w), y = empty({rows, outputs}, x.scalar_type());
  const Tensor added = bias ? torch::stable::contiguous(*bias) : Tensor();
  const Product p = {lines.const_data_ptr(), weight.const_data_ptr(), bias ? added.const_data_ptr() : nullptr,
                     y.mutable_data_ptr(),   lines.stride(0),         weight.stride(0), rows, outputs, depth};
  const auto kernel = kernels().product[element_of(x)];
  constexpr int64_t OUTPUTS = 16;  // of one task
  const int64_t cost = std::max<int64_t>(1, OUTPUTS * rows * depth);
  torch::stable::parallel_for(0, (outputs + OUTPUTS - 1) / OUTPUTS, std::max<int64_t>(1, TASK / cost),
                              [&](int64_t first, int64_t end) { kernel(p, first * OUTPUTS, std::min(end * OUTPUTS, outputs)); });
  return y;
}

STABLE_TORCH_LIBRARY_IMPL(tmem, CPU, m) { m.impl("row_linear", TORCH_BOX(&row_linear)); }

}  // namespace tmem
