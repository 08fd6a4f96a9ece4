// Launcher of bank_step_, and the op that names the instruction set in use.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "launch.h"

namespace tmem {

constexpr int64_t STRETCH = 1 << 14;  // elements of one task; norms are summed stretch by stretch, in order

static void check_bank(const char* op, const char* name, const Tensor& x, const Tensor& param) {
  check_dtype(op, name, x, param.scalar_type());
  check_dim(op, name, x, 2);
  check_size(op, name, x, 0, param.size(0));
  check_size(op, name, x, 1, param.size(1));
}

static void check_column(const char* op, const char* name, const Tensor& x, ScalarType dtype, int64_t rows) {
  check_dtype(op, name, x, dtype);
  check_dim(op, name, x, 1);
  check_size(op, name, x, 0, rows);
}

// hyper's columns, in the order of tmem.reference.HYPER, widened to double.
struct Hyper {
  double lr, beta1, beta2, eps, weight_decay, clip;
};

static Hyper hyper_of(const Tensor& hyper, int64_t row) {
  const auto at = [&](int64_t column) -> double {
    const int64_t i = row * hyper.stride(0) + column * hyper.stride(1);
    return hyper.scalar_type() == ScalarType::Double ? static_cast<const double*>(hyper.const_data_ptr())[i]
                                                     : static_cast<const float*>(hyper.const_data_ptr())[i];
  };
  return {at(0), at(1), at(2), at(3), at(4), at(5)};
}

// Scalars of one step (AdamW: the t-th) of a row whose gradient has this norm.
static Update sgd_scalars(const Hyper& h, double norm) {
  Update u = {};
  u.clip = h.clip > 0 ? std::min(1.0, h.clip / (norm + 1e-6)) : 1.0;
  u.keep = 1 - h.lr * h.weight_decay;
  u.rate = h.lr;
  return u;
}

static Update adam_scalars(const Hyper& h, double norm, int32_t t) {
  Update u = sgd_scalars(h, norm);
  u.rate = h.lr / (1 - std::pow(h.beta1, t));
  u.one_minus_beta1 = 1 - h.beta1;
  u.beta2 = h.beta2;
  u.one_minus_beta2 = 1 - h.beta2;
  u.root_correction2 = std::sqrt(1 - std::pow(h.beta2, t));
  u.eps = h.eps;
  return u;
}

Tensor bank_step_(const Tensor& param, const Tensor& grad, std::optional<Tensor> m, std::optional<Tensor> v,
                  const Tensor& step, const Tensor& hyper, const Tensor& active) {
  const char* op = "bank_step_";
  check_cpu(op, "param", param);
  STD_TORCH_CHECK(param.scalar_type() == ScalarType::Float || param.scalar_type() == ScalarType::Double, op,
                  ": param must be Float or Double, got ", torch::headeronly::toString(param.scalar_type()));
  check_dim(op, "param", param, 2);
  check_bank(op, "grad", grad, param);
  STD_TORCH_CHECK(m.has_value() == v.has_value(), op, ": give both m and v (AdamW) or neither (SGD), got only ",
                  m ? "m" : "v");
  if (m) {
    check_bank(op, "m", *m, param);
    check_bank(op, "v", *v, param);
  }
  const int64_t rows = param.size(0), width = param.size(1);
  check_column(op, "step", step, ScalarType::Int, rows);
  check_column(op, "active", active, ScalarType::Bool, rows);
  check_dtype(op, "hyper", hyper, hyper.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
  check_dim(op, "hyper", hyper, 2);
  check_size(op, "hyper", hyper, 0, rows);
  check_size(op, "hyper", hyper, 1, 6);

  Tensor norms = torch::stable::new_zeros(param, {rows}, ScalarType::Float);
  float* norm = static_cast<float*>(norms.mutable_data_ptr());
  std::vector<int64_t> chosen;
  for (int64_t s = 0; s < rows; s++)
    if (static_cast<const bool*>(active.const_data_ptr())[s * active.stride(0)]) chosen.push_back(s);

  Written p(param), g(grad), first(m ? *m : param), second(v ? *v : param);
  const Element element = element_of(param);
  const int64_t bytes = param.element_size(), stretches = (width + STRETCH - 1) / STRETCH;
  const int64_t tasks = stretches * chosen.size();
  const auto at = [&](const Tensor& x, int64_t row, int64_t column) -> void* {
    return static_cast<char*>(x.mutable_data_ptr()) + (row * x.stride(0) + column) * bytes;
  };

  std::vector<double> squares(tasks);
  torch::stable::parallel_for(0, tasks, 4, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t column = task % stretches * STRETCH;
      squares[task] = kernels().sum_of_squares[element](at(g.rows(), chosen[task / stretches], column),
                                                        std::min(STRETCH, width - column));
    }
  });

  std::vector<Update> updates(chosen.size());
  for (size_t i = 0; i < chosen.size(); i++) {
    const int64_t s = chosen[i];
    double square = 0;
    for (int64_t k = 0; k < stretches; k++) square += squares[i * stretches + k];
    norm[s] = static_cast<float>(std::sqrt(square));
    if (!std::isfinite(norm[s])) continue;
    int32_t& t = static_cast<int32_t*>(step.mutable_data_ptr())[s * step.stride(0)];
    t++;
    const Hyper h = hyper_of(hyper, s);
    updates[i] = m ? adam_scalars(h, std::sqrt(square), t) : sgd_scalars(h, std::sqrt(square));
  }

  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t s = chosen[task / stretches], column = task % stretches * STRETCH;
      Update u = updates[task / stretches];
      u.count = std::min(STRETCH, width - column);
      u.param = at(p.rows(), s, column);
      u.grad = at(g.rows(), s, column);
      u.m = m ? at(first.rows(), s, column) : nullptr;
      u.v = v ? at(second.rows(), s, column) : nullptr;
      if (std::isfinite(norm[s]))
        kernels().update[element](u);
      else
        memset(u.grad, 0, u.count * bytes);
    }
  });
  p.finish();
  g.finish();
  if (m) first.finish(), second.finish();
  return norms;
}

std::string cpu_instructions() { return kernels().instructions; }

STABLE_TORCH_LIBRARY_IMPL(tmem, CPU, m) { m.impl("bank_step_", TORCH_BOX(&bank_step_)); }

STABLE_TORCH_LIBRARY_IMPL(tmem, CompositeExplicitAutograd, m) {
  m.impl("cpu_instructions", TORCH_BOX(&cpu_instructions));
}

}  // namespace tmem
