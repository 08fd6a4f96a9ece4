// Launchers of bank_step_ and bank_copy_, and the op that names the instruction set in use.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "launch.h"
#include "step_launch.h"

namespace tmem {

constexpr int64_t STRETCH = 1 << 14;  // elements of one task; norms are summed stretch by stretch, in order

static void check_bank(const char* op, const char* name, const Tensor& x, const Tensor& param) {
  check_dtype(op, name, x, param.scalar_type());
  check_dim(op, name, x, 2);
  check_size(op, name, x, 0, param.size(0));
  check_size(op, name, x, 1, param.size(1));
}

// Where a matrix with elements next to each other lies. Asked once, as each question to a tensor takes its time.
struct Lines {
  char* data;
  int64_t stride, size;  // bytes between rows; of an element

  explicit Lines(const Tensor& x)
      : data(static_cast<char*>(x.mutable_data_ptr())), stride(x.stride(0) * x.element_size()), size(x.element_size()) {}
  void* at(int64_t row, int64_t column) const { return data + row * stride + column * size; }
};

// 8 sums, element i into sum i % 8, then a tree.
static double sum(const double* x, int64_t count, int64_t stride) {
  double part[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int k = 0; k < 8; k++) part[k] += x[(i + k) * stride];
  for (int k = 0; i + k < count; k++) part[k] += x[(i + k) * stride];
  return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

Tensor bank_step_(const Tensor& param, const Tensor& grad, std::optional<Tensor> m, std::optional<Tensor> v,
                  const Tensor& step, const Tensor& hyper, const Tensor& active, std::optional<Tensor> copy, bool clear,
                  std::optional<Tensor> squares) {
  const char* op = "bank_step_";
  check_cpu(op, "param", param);
  STD_TORCH_CHECK(param.scalar_type() == ScalarType::Float || param.scalar_type() == ScalarType::Double, op,
                  ": param must be Float or Double, got ", torch::headeronly::toString(param.scalar_type()));
  check_dim(op, "param", param, 2);
  check_bank(op, "grad", grad, param);
  check_pair(op, m, v);
  if (m) {
    check_bank(op, "m", *m, param);
    check_bank(op, "v", *v, param);
  }
  const int64_t rows = param.size(0), width = param.size(1);
  if (copy) {
    check_half(op, "copy", *copy);
    check_dim(op, "copy", *copy, 2);
    check_size(op, "copy", *copy, 0, rows);
    check_size(op, "copy", *copy, 1, width);
  }
  if (squares) {
    check_dtype(op, "squares", *squares, ScalarType::Double);
    check_dim(op, "squares", *squares, 2);
    check_size(op, "squares", *squares, 0, rows);
  }
  check_column(op, "step", step, ScalarType::Int, rows);
  check_column(op, "active", active, ScalarType::Bool, rows);
  check_hyper(op, hyper, rows);

  Tensor norms = torch::stable::new_zeros(param, {rows}, ScalarType::Float);
  float* norm = static_cast<float*>(norms.mutable_data_ptr());
  std::vector<int64_t> chosen;
  for (int64_t s = 0; s < rows; s++)
    if (static_cast<const bool*>(active.const_data_ptr())[s * active.stride(0)]) chosen.push_back(s);

  Written p(param), g(grad), first(m ? *m : param), second(v ? *v : param), third(copy ? *copy : param);
  const Element element = element_of(param), copy_type = copy ? element_of(*copy) : BF16;
  const int64_t stretches = (width + STRETCH - 1) / STRETCH, steps = chosen.size();
  const Lines params(p.rows()), grads(g.rows()), firsts(first.rows()), seconds(second.rows()), copies(third.rows());
  std::vector<double> sums(steps * stretches);
  std::vector<Update> updates(steps);

  const auto sum_stretch = [&](int64_t i, int64_t k) {
    const int64_t column = k * STRETCH, count = std::min(STRETCH, width - column);
    sums[i * stretches + k] = kernels().sum_of_squares[element](grads.at(chosen[i], column), count);
  };
  const auto finish_norm = [&](int64_t i) {
    const int64_t s = chosen[i];
    double square = 0;
    if (squares)
      square = sum(static_cast<const double*>(squares->const_data_ptr()) + s * squares->stride(0), squares->size(1),
                   squares->stride(1));
    else
      for (int64_t k = 0; k < stretches; k++) square += sums[i * stretches + k];
    norm[s] = static_cast<float>(std::sqrt(square));
    if (!std::isfinite(norm[s])) return;
    int32_t& t = static_cast<int32_t*>(step.mutable_data_ptr())[s * step.stride(0)];
    t++;
    const Hyper h = hyper_of(hyper, s);
    updates[i] = m ? adam_scalars(h, std::sqrt(square), t) : sgd_scalars(h, std::sqrt(square));
  };
  const auto update_stretch = [&](int64_t i, int64_t k) {
    const int64_t s = chosen[i], column = k * STRETCH;
    Update u = updates[i];
    u.count = std::min(STRETCH, width - column);
    u.param = params.at(s, column);
    u.grad = grads.at(s, column);
    u.m = m ? firsts.at(s, column) : nullptr;
    u.v = v ? seconds.at(s, column) : nullptr;
    u.copy = copy ? copies.at(s, column) : nullptr;
    u.clear = clear;
    u.copy_type = copy_type;
    if (std::isfinite(norm[s]))
      kernels().update[element](u);
    else if (clear)
      memset(u.grad, 0, u.count * grads.size);
  };

  // Whole rows where there are enough of them, so that a gradient is still in the cache when it is used; else stretches.
  if (steps >= 2 * static_cast<int64_t>(torch::stable::get_num_threads())) {
    torch::stable::parallel_for(0, steps, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        for (int64_t k = 0; k < (squares ? 0 : stretches); k++) sum_stretch(i, k);
        finish_norm(i);
        // The stretch that was summed last is the warmest.
        for (int64_t k = 0; k < stretches; k++) update_stretch(i, squares ? k : stretches - 1 - k);
      }
    });
  } else {
    const auto each = [&](const auto& work) {
      torch::stable::parallel_for(0, steps * stretches, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; task++) work(task / stretches, task % stretches);
      });
    };
    if (!squares) each(sum_stretch);
    for (int64_t i = 0; i < steps; i++) finish_norm(i);
    each(update_stretch);
  }
  p.finish();
  g.finish();
  if (m) first.finish(), second.finish();
  if (copy) third.finish();
  return norms;
}

// Whether a row's elements lie next to each other, in order.
static bool rows_are_lines(const Tensor& matrix) {
  int64_t reach = 1;
  for (int64_t d = matrix.dim() - 1; d > 0; d--) {
    if (matrix.size(d) != 1 && matrix.stride(d) != reach) return false;
    reach *= matrix.size(d);
  }
  return true;
}

void bank_copy_(const std::vector<Tensor>& matrices, const Tensor& source, const Tensor& target) {
  const char* op = "bank_copy_";
  STD_TORCH_CHECK(!matrices.empty(), op, ": matrices must hold at least one tensor, got none");
  const int64_t rows = matrices[0].dim() ? matrices[0].size(0) : 0, count = source.numel();
  check_column(op, "source", source, ScalarType::Int, count);
  check_column(op, "target", target, ScalarType::Int, count);
  const Tensor from = readable(source), to = readable(target);
  const int32_t *read = static_cast<const int32_t*>(from.const_data_ptr()),
                *write = static_cast<const int32_t*>(to.const_data_ptr());
  for (int64_t i = 0; i < count; i++) {
    STD_TORCH_CHECK(read[i] >= -1 && read[i] < rows, op, ": source must be in [-1, ", rows, "), got ", read[i]);
    STD_TORCH_CHECK(write[i] >= 0 && write[i] < rows, op, ": target must be in [0, ", rows, "), got ", write[i]);
    for (int64_t k = 0; k < count; k++)
      STD_TORCH_CHECK(write[i] != read[k] && (i == k || write[i] != write[k]), op,
                      ": target must not name a row twice or a row of source, got row ", write[i]);
  }
  for (const Tensor& matrix : matrices) {
    check_cpu(op, "matrices", matrix);
    STD_TORCH_CHECK(matrix.dim() >= 1 && matrix.size(0) == rows, op, ": matrices must have ", rows, " rows each");
  }
  for (const Tensor& matrix : matrices) {
    if (matrix.numel() == 0) continue;
    if (rows_are_lines(matrix)) {
      char* first = static_cast<char*>(matrix.mutable_data_ptr());
      const int64_t stride = matrix.stride(0) * matrix.element_size(), bytes = matrix.numel() / rows * matrix.element_size();
      for (int64_t i = 0; i < count; i++)
        if (read[i] >= 0)
          memcpy(first + write[i] * stride, first + read[i] * stride, bytes);
        else
          memset(first + write[i] * stride, 0, bytes);
      continue;
    }
    for (int64_t i = 0; i < count; i++) {
      Tensor row = torch::stable::select(matrix, 0, write[i]);
      if (read[i] >= 0)
        torch::stable::copy_(row, torch::stable::select(matrix, 0, read[i]));
      else
        torch::stable::zero_(row);
    }
  }
}

std::string cpu_instructions() { return kernels().instructions; }

STABLE_TORCH_LIBRARY_IMPL(tmem, CPU, m) {
  m.impl("bank_step_", TORCH_BOX(&bank_step_));
  m.impl("bank_copy_", TORCH_BOX(&bank_copy_));
}

STABLE_TORCH_LIBRARY_IMPL(tmem, CompositeExplicitAutograd, m) {
  m.impl("cpu_instructions", TORCH_BOX(&cpu_instructions));
}

}  // namespace tmem
