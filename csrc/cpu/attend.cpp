// Launcher of attend: where the columns are that every row sees, then one task for each key head and row. Rows that read
// columns of the same row follow one another, so that those are still in the cache.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <optional>
#include <vector>

#include "launch.h"

namespace tmem {

Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask, double scale,
              std::optional<Tensor> alike) {
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

  std::optional<Tensor> others;
  if (alike) {
    check_dtype(op, "alike", *alike, ScalarType::Int);
    check_dim(op, "alike", *alike, 2);
    check_size(op, "alike", *alike, 0, rows);
    check_size(op, "alike", *alike, 1, 2);
    others = torch::stable::contiguous(*alike);
  }

  const Tensor query = readable(q), keys = readable(k), values = readable(v), seen = readable(mask);
  const Tensor out = empty({rows, q.size(1), width}, q.scalar_type());
  const bool* visible = static_cast<const bool*>(seen.const_data_ptr());
  // Those of another row are so many columns away, where keys and values lie alike.
  const int64_t apart = keys.stride(2) ? keys.stride(0) / keys.stride(2) : 0;
  const bool reach = apart * keys.stride(2) == keys.stride(0) && apart * values.stride(2) == values.stride(0) &&
                     rows * std::abs(apart) + length <= std::numeric_limits<int32_t>::max();
  std::vector<int32_t> columns(rows * length);
  std::vector<int64_t> count(rows), source(rows), order(rows);
  for (int64_t row = 0; row < rows; row++) {
    int64_t first = 0, away = 0;
    if (others) {
      const int32_t* pair = static_cast<const int32_t*>(others->const_data_ptr()) + 2 * row;
      source[row] = pair[0], first = pair[1];
      STD_TORCH_CHECK(source[row] >= 0 && source[row] < rows && first >= 0 && first <= length, op,
                      ": alike must name a row below ", rows, " and at most ", length, " columns, got ", source[row], " and ",
                      first, " in row ", row);
      away = reach ? (source[row] - row) * apart : 0;
    }
    int32_t* to = columns.data() + row * length;
    for (int64_t c = 0; c < length; c++) {
      *to = static_cast<int32_t>(c < first ? c + away : c);
      to += visible[row * seen.stride(0) + c];
    }
    count[row] = to - (columns.data() + row * length);
  }
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) { return source[x] < source[y]; });
  const Attend a = {query.const_data_ptr(), keys.const_data_ptr(), values.const_data_ptr(), out.mutable_data_ptr(),
                    query.stride(0), query.stride(1), keys.stride(0), keys.stride(1), keys.stride(2),
                    values.stride(0), values.stride(1), values.stride(2), heads, q.size(1) / heads, width, scale};
  const auto kernel = kernels().attend[element_of(q)];
  const int64_t most = rows ? *std::max_element(count.begin(), count.end()) : 0;
  const int64_t cost = std::max<int64_t>(1, 2 * most * width * a.share);
  torch::stable::parallel_for(0, rows * heads, std::max<int64_t>(1, TASK / cost), [&](int64_t first, int64_t end) {
    std::vector<double> scratch(std::min<int64_t>(a.share, 4) * (most + 16));
    for (int64_t task = first; task < end; task++) {
      const int64_t row = order[task % rows];
      kernel(a, row, task / rows, columns.data() + row * length, count[row], scratch.data());
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(tmem, CPU, m) { m.impl("attend", TORCH_BOX(&attend)); }

}  // namespace tmem
