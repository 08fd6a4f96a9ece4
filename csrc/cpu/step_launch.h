// What the launchers of a step share: the settings of a row, checked, and what it computes with.
#pragma once
#include <algorithm>
#include <cmath>
#include <optional>

#include "launch.h"

namespace tmem {

inline void check_hyper(const char* op, const Tensor& hyper, int64_t rows) {
  check_dtype(op, "hyper", hyper, hyper.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
  check_dim(op, "hyper", hyper, 2);
  check_size(op, "hyper", hyper, 0, rows);
  check_size(op, "hyper", hyper, 1, 6);
}

inline void check_pair(const char* op, const std::optional<Tensor>& m, const std::optional<Tensor>& v) {
  STD_TORCH_CHECK(m.has_value() == v.has_value(), op, ": give both m and v (AdamW) or neither (SGD), got only ",
                  m ? "m" : "v");
}

// hyper's columns, in the order of tmem.reference.HYPER, widened to double.
struct Hyper {
  double lr, beta1, beta2, eps, weight_decay, clip;
};

inline Hyper hyper_of(const Tensor& hyper, int64_t row) {
  const auto at = [&](int64_t column) -> double {
    const int64_t i = row * hyper.stride(0) + column * hyper.stride(1);
    return hyper.scalar_type() == ScalarType::Double ? static_cast<const double*>(hyper.const_data_ptr())[i]
                                                     : static_cast<const float*>(hyper.const_data_ptr())[i];
  };
  return {at(0), at(1), at(2), at(3), at(4), at(5)};
}

// Scalars of one step (AdamW: the t-th) of a row whose gradient has this norm.
inline Update sgd_scalars(const Hyper& h, double norm) {
  Update u = {};
  u.clip = h.clip > 0 ? std::min(1.0, h.clip / (norm + 1e-6)) : 1.0;
  u.keep = 1 - h.lr * h.weight_decay;
  u.rate = h.lr;
  return u;
}

inline Update adam_scalars(const Hyper& h, double norm, int32_t t) {
  Update u = sgd_scalars(h, norm);
  u.rate = h.lr / (1 - std::pow(h.beta1, t));
  u.one_minus_beta1 = 1 - h.beta1;
  u.beta2 = h.beta2;
  u.one_minus_beta2 = 1 - h.beta2;
  u.root_correction2 = std::sqrt(1 - std::pow(h.beta2, t));
  u.eps = h.eps;
  return u;
}

}  // namespace tmem
