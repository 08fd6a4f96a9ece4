// Launchers of token_logp and its backward: threads share the rows.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "launch.h"

namespace tmem {

namespace {

// What forward and backward read alike, checked.
struct Tokens {
  Tensor logits, ids;
  TokenLogp a = {};
  int64_t rows;

  Tokens(const char* op, const Tensor& logits_, const Tensor& ids_) {
    check_activation(op, "logits", logits_);
    check_dim(op, "logits", logits_, 2);
    rows = logits_.size(0);
    check_column(op, "ids", ids_, ScalarType::Long, rows);
    logits = readable(logits_), ids = torch::stable::contiguous(ids_);
    a.logits = logits.const_data_ptr(), a.logits_row = logits.stride(0), a.width = logits.size(1);
    a.ids = static_cast<const int64_t*>(ids.const_data_ptr());
    for (int64_t row = 0; row < rows; row++)
      STD_TORCH_CHECK(a.ids[row] >= 0 && a.ids[row] < a.width, op, ": ids must be in 0..", a.width - 1, ", got ", a.ids[row],
                      " in row ", row);
  }

  template <class F>
  void share_out(F f) const {
    torch::stable::parallel_for(0, rows, grain(32 * a.width), [&](int64_t first, int64_t end) {
      for (; first < end; first++) f(a, first);
    });
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> token_logp(const Tensor& logits, const Tensor& ids) {
  Tokens tokens("token_logp", logits, ids);
  const auto made = [&] { return empty({tokens.rows}, accumulator(logits)); };
  const Tensor logp = made(), lse = made(), entropy = made();
  tokens.a.logp = logp.mutable_data_ptr(), tokens.a.lse = lse.mutable_data_ptr();
  tokens.a.entropy = entropy.mutable_data_ptr();
  tokens.share_out(kernels().token_logp[element_of(logits)]);
  return {logp, lse, entropy};
}

// d logits of d logp; lse: what token_logp gave.
Tensor token_logp_backward(const Tensor& grad, const Tensor& logits, const Tensor& ids, const Tensor& lse) {
  const char* op = "token_logp_backward";
  Tokens tokens(op, logits, ids);
  check_column(op, "grad", grad, accumulator(logits), tokens.rows);
  check_column(op, "lse", lse, accumulator(logits), tokens.rows);
  const Tensor given = torch::stable::contiguous(grad), sums = torch::stable::contiguous(lse);
  const Tensor out = empty({tokens.rows, tokens.a.width}, logits.scalar_type());
  tokens.a.grad = given.const_data_ptr(), tokens.a.lse = const_cast<void*>(sums.const_data_ptr());
  tokens.a.out = out.mutable_data_ptr();
  tokens.share_out(kernels().token_logp_backward[element_of(logits)]);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(tmem, CPU, m) {
  m.impl("token_logp", TORCH_BOX(&token_logp));
  m.impl("token_logp_backward", TORCH_BOX(&token_logp_backward));
}

}  // namespace tmem
