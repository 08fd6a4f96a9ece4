// What the launchers of adapters share: how rows are shared out, and shrink and expand of checked tensors.
#pragma once
#include <algorithm>

#include "launch.h"

namespace tmem {

constexpr int64_t ROWS = 16;  // rows of one task of shrink and expand, where there are enough for all threads
// work(first row, end row) over all rows, each row once; `cost` multiply-adds a row.
template <class Work>
void share_rows(int64_t rows, int64_t cost, const Work& work) {
  const int64_t threads = torch::stable::get_num_threads(), task = std::clamp<int64_t>(rows / threads, 1, ROWS);
  torch::stable::parallel_for(0, (rows + task - 1) / task, grain(task * cost),
                              [&](int64_t first, int64_t end) { work(first * task, std::min(end * task, rows)); });
}

inline const Tensor& checked_scale(const char* op, const Tensor& scale, int64_t slots) {
  check_dtype(op, "scale", scale, ScalarType::Float);
  check_dim(op, "scale", scale, 1);
  check_size(op, "scale", scale, 0, slots);
  return scale;
}

// Elements from one row to the next of a tensor whose last dimension is contiguous; one of another shape than
// [rows, width] is contiguous as a whole.
inline int64_t row_stride(const Tensor& x) { return x.dim() == 2 ? x.stride(0) : x.dim() ? x.size(x.dim() - 1) : 1; }

// The kernels on checked tensors whose last dimension is contiguous; z [rows, ranks] is written in full.
inline Shrink shrink_of(const Segments& seg, const Tensor& v, const Tensor& f, const Tensor& scale, void* z) {
  return {seg, v.const_data_ptr(), row_stride(v), factor(f), static_cast<const float*>(scale.const_data_ptr()), z,
          f.size(1), f.size(2)};
}

inline Expand expand_of(const Segments& seg, const Tensor& o, const Tensor& z, const Tensor& f) {
  return {seg, o.mutable_data_ptr(), row_stride(o), z.const_data_ptr(), row_stride(z), factor(f), f.size(2)};
}

}  // namespace tmem
