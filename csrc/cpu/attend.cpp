// Launcher of attend: which columns every row sees, then one task for each row and key head.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "launch.h"

namespace tmem {

Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask, double scale) {
  const char* op = "attend";
  check_activation(op, "q", q);
  check_dim(op, "q", q, 3);
  const int64_t rows = q.size(0), width = q.size(2);
  for (const auto& [name, x] : {std::pair<const char*, const Tensor&>{"k", k}, {"v", v}}) {
    check_dtype(op, name, x, q.scalar_type());
    check_dim(op, name, x, 4);
    check_size(op, name, x, 0, rows);
    check_size(op, name, x, 1, k.size(1));
    check_size(op, name, x, 2, k.size(2));
    check_size(op, name, x, 3, width);
  }
  const int64_t heads = k.size(1), length = k.size(2);
  STD_TORCH_CHECK(heads > 0 && q.size(1) % heads == 0, op, ": q must have a multiple of k's ", heads, " heads, got ",
                  q.size(1));
  check_dtype(op, "mask", mask, ScalarType::Bool);
  check_dim(op, "mask", mask, 2);
  check_size(op, "mask", mask, 0, rows);
  check_size(op, "mask", mask, 1, length);

  const Tensor query = readable(q), keys = readable(k), values = readable(v), seen = readable(mask);
  const Tensor out = empty({rows, q.size(1), width}, q.scalar_type());
  const bool* visible = static_cast<const bool*>(seen.const_data_ptr());
  std::vector<int32_t> columns(rows * length);
  std::vector<int64_t> count(rows);
  for (int64_t row = 0; row < rows; row++) {
    int32_t* to = columns.data() + row * length;
    for (int64_t c = 0; c < length; c++) {
      *to = static_cast<int32_t>(c);
      to += visible[row * seen.stride(0) + c];
    }
    count[row] = to - (columns.data() + row * length);
  }
  const Attend a = {query.const_data_ptr(), keys.const_data_ptr(), values.const_data_ptr(), out.mutable_data_ptr(),
                    query.stride(0), query.stride(1), keys.stride(0), keys.stride(1), keys.stride(2),
                    values.stride(0), values.stride(1), values.stride(2), heads, q.size(1) / heads, width, scale};
  const auto kernel = kernels().attend[element_of(q)];
  const int64_t most = rows ? *std::max_element(count.begin(), count.end()) : 0;
  const int64_t cost = std::max<int64_t>(1, 2 * most * width * a.share);
  torch::stable::parallel_for(0, rows * heads, std::max<int64_t>(1, TASK / cost), [&](int64_t first, int64_t end) {
    std::vector<double> scratch(std::min<int64_t>(a.share, 4) * (most + 16));
    for (int64_t task = first; task < end; task++) {
      const int64_t row = task / heads;
      kernel(a, row, task % heads, columns.data() + row * length, count[row], scratch.data());
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(tmem, CPU, m) { m.impl("attend", TORCH_BOX(&attend)); }

}  // namespace tmem
