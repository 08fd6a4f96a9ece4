// Launchers of rms_norm, gated_product and rotate, and of their backward: threads share rows, tokens or elements.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "launch.h"

namespace tmem {

constexpr int64_t BLOCK = 64;  // rows whose part of dw is summed in order, before the blocks are

static void check_like(const char* op, const char* name, const Tensor& x, const Tensor& like) {
  check_dtype(op, name, x, like.scalar_type());
  check_dim(op, name, x, like.dim());
  for (int64_t d = 0; d < like.dim(); d++) check_size(op, name, x, d, like.size(d));
}

static Tensor plain(const Tensor& x) { return torch::stable::contiguous(x); }
static Tensor made_like(const Tensor& x) { return torch::stable::empty_like(x); }  // of a contiguous one

// f(first, end) over `count` pieces of a given cost, in multiply-adds.
template <class F>
static void share(int64_t count, int64_t cost, F f) {
  torch::stable::parallel_for(0, count, grain(cost), f);
}

// Vectors of elements, as whole ones begin where another thread's end.
constexpr int64_t VECTOR = 64;

Tensor gated_product(const Tensor& gate, const Tensor& up, bool gelu) {
  const char* op = "gated_product";
  check_activation(op, "gate", gate);
  check_like(op, "up", up, gate);
  const Tensor g = plain(gate), u = plain(up), o = made_like(g);
  const GatedProduct a = {g.const_data_ptr(), u.const_data_ptr(), nullptr, o.mutable_data_ptr(), nullptr, nullptr, gelu};
  const auto kernel = kernels().gated_product[element_of(g)];
  const int64_t count = g.numel();
  share((count + VECTOR - 1) / VECTOR, 16 * VECTOR,
        [&](int64_t first, int64_t end) { kernel(a, first * VECTOR, std::min(end * VECTOR, count)); });
  return o;
}

std::tuple<Tensor, Tensor> gated_product_backward(const Tensor& grad, const Tensor& gate, const Tensor& up, bool gelu) {
  const char* op = "gated_product_backward";
  check_activation(op, "gate", gate);
  check_like(op, "up", up, gate);
  check_like(op, "grad", grad, gate);
  const Tensor d = plain(grad), g = plain(gate), u = plain(up), d_gate = made_like(g), d_up = made_like(g);
  const GatedProduct a = {g.const_data_ptr(), u.const_data_ptr(),        d.const_data_ptr(),      nullptr,
                          d_gate.mutable_data_ptr(), d_up.mutable_data_ptr(), gelu};
  const auto kernel = kernels().gated_product_backward[element_of(g)];
  const int64_t count = g.numel();
  share((count + VECTOR - 1) / VECTOR, 16 * VECTOR,
        [&](int64_t first, int64_t end) { kernel(a, first * VECTOR, std::min(end * VECTOR, count)); });
  return {d_gate, d_up};
}

static int64_t check_norm(const char* op, const Tensor& x, const Tensor& weight) {
  check_activation(op, "x", x);
  STD_TORCH_CHECK(x.dim() > 0, op, ": x must have 1 dimension or more, got 0");
  check_dtype(op, "weight", weight, x.scalar_type());
  check_dim(op, "weight", weight, 1);
  check_size(op, "weight", weight, 0, x.size(x.dim() - 1));
  return weight.size(0);
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps, double plus) {
  const int64_t width = check_norm("rms_norm", x, weight);
  const Tensor in = plain(x), w = plain(weight), y = made_like(in);
  const RmsNorm a = {in.const_data_ptr(), w.const_data_ptr(), nullptr, y.mutable_data_ptr(), nullptr, width, eps, plus};
  const auto kernel = kernels().rms_norm[element_of(in)];
  share(width ? in.numel() / width : 0, 4 * width, [&](int64_t first, int64_t end) { kernel(a, first, end); });
  return y;
}

// dw, if it is asked for, in the accumulator's dtype, else of no elements.
std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, double eps, double plus,
                                             bool need_dw) {
  const char* op = "rms_norm_backward";
  const int64_t width = check_norm(op, x, weight);
  check_like(op, "dy", dy, x);
  const Tensor in = plain(x), w = plain(weight), grad = plain(dy), dx = made_like(in);
  const int64_t rows = width ? in.numel() / width : 0, blocks = need_dw ? (rows + BLOCK - 1) / BLOCK : 0;
  const Tensor sums = empty({std::max<int64_t>(1, blocks), need_dw ? width : 0}, accumulator(x));
  const int64_t bytes = sums.size(1) * (accumulator(x) == ScalarType::Double ? 8 : 4);
  char* parts = static_cast<char*>(sums.mutable_data_ptr());
  if (bytes) std::memset(parts, 0, sums.size(0) * bytes);
  const RmsNorm a = {in.const_data_ptr(), w.const_data_ptr(), grad.const_data_ptr(), nullptr, dx.mutable_data_ptr(), width, eps,
                     plus};
  const auto kernel = kernels().rms_norm_backward[element_of(in)];
  share((rows + BLOCK - 1) / BLOCK, 8 * width * BLOCK, [&](int64_t first, int64_t end) {
    for (int64_t b = first; b < end; b++)
      kernel(a, b * BLOCK, std::min((b + 1) * BLOCK, rows), need_dw ? parts + b * bytes : nullptr);
  });
  const Tensor dw = empty({sums.size(1)}, accumulator(x));
  const auto add = [&](auto* total, const auto* part) {
    for (int64_t d = 0; d < sums.size(1); d++) {
      total[d] = part[d];
      for (int64_t b = 1; b < blocks; b++) total[d] += part[b * width + d];
    }
  };
  if (accumulator(x) == ScalarType::Double)
    add(static_cast<double*>(dw.mutable_data_ptr()), static_cast<const double*>(sums.const_data_ptr()));
  else
    add(static_cast<float*>(dw.mutable_data_ptr()), static_cast<const float*>(sums.const_data_ptr()));
  return {dx, dw};
}

// x [B,T,H,D] -> [B,H,T,D]; back: [B,H,T,D] -> [B,T,H,D]. cos, sin [1 or B,T,D].
Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin, bool back) {
  const char* op = "rotate";
  check_activation(op, "x", x);
  check_dim(op, "x", x, 4);
  const int64_t token = back ? 2 : 1, head = back ? 1 : 2;
  const int64_t rows = x.size(0), tokens = x.size(token), heads = x.size(head), width = x.size(3);
  STD_TORCH_CHECK(width % 2 == 0, op, ": x must have heads of an even width, got ", width);
  check_dtype(op, "cos", cos, x.scalar_type());
  check_dim(op, "cos", cos, 3);
  STD_TORCH_CHECK(cos.size(0) == 1 || cos.size(0) == rows, op, ": cos must have 1 or ", rows, " rows, got ", cos.size(0));
  check_size(op, "cos", cos, 1, tokens);
  check_size(op, "cos", cos, 2, width);
  check_like(op, "sin", sin, cos);
  const Tensor in = readable(x), c = readable(cos), s = readable(sin);
  const Tensor o = empty({rows, x.size(2), x.size(1), width}, x.scalar_type());
  const auto step = [](const Tensor& wave) { return wave.size(0) == 1 ? 0 : wave.stride(0); };
  const Rotate a = {in.const_data_ptr(), c.const_data_ptr(), s.const_data_ptr(), o.mutable_data_ptr(),
                    in.stride(0), in.stride(token), in.stride(head), o.stride(0), o.stride(head), o.stride(token),
                    step(c), c.stride(1), step(s), s.stride(1), tokens, heads, width, back};
  const auto kernel = kernels().rotate[element_of(in)];
  share(rows * tokens, 4 * heads * width, [&](int64_t first, int64_t end) { kernel(a, first, end); });
  return o;
}

STABLE_TORCH_LIBRARY_IMPL(tmem, CPU, m) {
  m.impl("gated_product", TORCH_BOX(&gated_product));
  m.impl("gated_product_backward", TORCH_BOX(&gated_product_backward));
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward));
  m.impl("rotate", TORCH_BOX(&rotate));
}

}  // namespace tmem
