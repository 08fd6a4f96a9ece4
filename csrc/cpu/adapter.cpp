// Launchers of the adapter ops. A plan, which a GPU needs, is taken and not read.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "adapter_launch.h"
#include "gram_launch.h"

namespace tmem {

using torch::stable::parallel_for;

constexpr int64_t COLUMNS = 64;  // of one task of gram

static void run_shrink(Pair pair, const Segments& seg, const Tensor& v, const Tensor& f, const Tensor& scale, void* z) {
  const Shrink a = shrink_of(seg, v, f, scale, z);
  const auto kernel = kernels().shrink[pair.activation][pair.factor];
  share_rows(v.size(0), a.ranks * a.width, [&](int64_t first, int64_t end) { kernel(a, first, end); });
}

static void run_expand(Pair pair, const Segments& seg, const Tensor& o, const Tensor& z, const Tensor& f) {
  const Expand a = expand_of(seg, o, z, f);
  const auto kernel = kernels().expand[pair.activation][pair.factor];
  share_rows(o.size(0), f.size(1) * a.width, [&](int64_t first, int64_t end) { kernel(a, first, end); });
}

// Both, one after the other on each thread's rows: threads are woken once.
static void run_adapter(Pair down, Pair up, const Segments& seg, const Tensor& x, const Tensor& a, const Tensor& scale,
                        const Tensor& z, const Tensor& y, const Tensor& bt) {
  const Shrink shrink = shrink_of(seg, x, a, scale, z.mutable_data_ptr());
  const Expand expand = expand_of(seg, y, z, bt);
  const auto first_kernel = kernels().shrink[down.activation][down.factor];
  const auto second_kernel = kernels().expand[up.activation][up.factor];
  share_rows(z.size(0), shrink.ranks * (shrink.width + expand.width), [&](int64_t first, int64_t end) {
    first_kernel(shrink, first, end);
    second_kernel(expand, first, end);
  });
}

// One owner per (slot, stretch of columns): it walks the slot's segments in order.
static void run_gram(const Descriptor& descriptor, const Tensor& g, const Tensor& z, const Tensor& v, bool fresh = false,
                     const std::optional<Tensor>& squares = std::nullopt) {
  const BySlot by(descriptor);
  const Gram a = {descriptor.segments(), g.mutable_data_ptr(), g.stride(0), g.stride(1), z.const_data_ptr(),
                  z.stride(0), v.const_data_ptr(), v.stride(0), fresh, squares.has_value()};
  const auto kernel = kernels().gram[element_of(v)];
  const int64_t width = v.size(1);
  parallel_for(0, by.tasks(width, COLUMNS), grain(by.rows(v.size(0)) * z.size(1) * COLUMNS), [&](int64_t first, int64_t end) {
    for (int64_t task = first; task < end; task++) {
      const Columns at = by.task(task, width, COLUMNS);
      const double sum = kernel(a, by.of(at.slot), by.count(at.slot), at.first, at.first + at.count);
      if (squares) store_squares(*squares, at, sum);
    }
  });
}

// z [factors, rows, ranks] of factors that read the same rows; of `one` factor, z [rows, ranks].
static Tensor shrink(const char* op, const Tensor& v, const std::vector<Tensor>& factors, const Tensor& seg_off,
                     const Tensor& seg_slot, const Tensor& rank, const Tensor& scale, bool one) {
  STD_TORCH_CHECK(!factors.empty(), op, ": f must hold at least one factor, got none");
  check_activation(op, "v", v);
  check_dim(op, "v", v, 2);
  check_dim(op, "f", factors[0], 3);
  const int64_t count = factors.size(), rows = v.size(0), ranks = factors[0].size(1);
  const Descriptor descriptor(op, seg_off, seg_slot, rank, rows, ranks);
  checked_scale(op, scale, descriptor.slots());
  for (const Tensor& f : factors) check_factor(op, "f", f, descriptor.slots(), ranks, v.size(1));
  const Tensor z = one ? empty({rows, ranks}, accumulator(v)) : empty({count, rows, ranks}, accumulator(v));
  const Tensor lines = readable(v), scales = readable(scale);
  for (int64_t i = 0; i < count; i++)
    run_shrink(pair_of(op, "f", v, factors[i]), descriptor.segments(), lines, readable(factors[i]), scales,
               static_cast<char*>(z.mutable_data_ptr()) + i * rows * ranks * z.element_size());
  return z;
}

Tensor lora_shrink(const Tensor& v, const Tensor& f, const Tensor& seg_off, const Tensor& seg_slot, const Tensor& rank,
                   const Tensor& scale, std::optional<Tensor>) {
  return shrink("lora_shrink", v, {f}, seg_off, seg_slot, rank, scale, true);
}

Tensor lora_shrink_multi(const Tensor& v, const std::vector<Tensor>& f, const Tensor& seg_off, const Tensor& seg_slot,
                         const Tensor& rank, const Tensor& scale, std::optional<Tensor>) {
  return shrink("lora_shrink_multi", v, f, seg_off, seg_slot, rank, scale, false);
}

void lora_expand_(const Tensor& o, const Tensor& z, const Tensor& f, const Tensor& seg_off, const Tensor& seg_slot,
                  const Tensor& rank, std::optional<Tensor>) {
  const char* op = "lora_expand_";
  check_activation(op, "o", o);
  check_dim(op, "o", o, 2);
  check_z(op, z, o);
  const Descriptor descriptor(op, seg_off, seg_slot, rank, o.size(0), z.size(1));
  check_factor(op, "f", f, descriptor.slots(), z.size(1), o.size(1));
  const Pair pair = pair_of(op, "f", o, f);
  Written written(o);
  run_expand(pair, descriptor.segments(), written.rows(), readable(z), readable(f));
  written.finish();
}

static void check_gradient(const char* op, const Tensor& g, const Tensor& z, const Tensor& v, int64_t slots,
                           const std::optional<Tensor>& squares) {
  check_dtype(op, "g", g, accumulator(v));
  check_gradient_sizes(op, "g", g, z, v, slots);
  if (squares) check_squares(op, *squares, v, slots);
}

void lora_gram_(const Tensor& g, const Tensor& z, const Tensor& v, const Tensor& seg_off, const Tensor& seg_slot,
                const Tensor& rank, std::optional<Tensor>, bool fresh, std::optional<Tensor> squares) {
  const char* op = "lora_gram_";
  const Descriptor descriptor = check_gram(op, z, "v", v, seg_off, seg_slot, rank);
  check_gradient(op, g, z, v, descriptor.slots(), squares);
  Written written(g);
  run_gram(descriptor, written.rows(), readable(z), readable(v), fresh, squares);
  written.finish();
}

Tensor lora_gram(const Tensor& z, const Tensor& v, const Tensor& seg_off, const Tensor& seg_slot, const Tensor& rank,
                 std::optional<Tensor>) {
  const Descriptor descriptor = check_gram("lora_gram", z, "v", v, seg_off, seg_slot, rank);
  const Tensor g = torch::stable::new_zeros(z, {descriptor.slots(), z.size(1), v.size(1)});
  run_gram(descriptor, g, readable(z), readable(v));
  return g;
}

Tensor lora_backward_(const Tensor& g, const Tensor& z, const Tensor& dy, const Tensor& bt, const Tensor& seg_off,
                      const Tensor& seg_slot, const Tensor& rank, const Tensor& scale, std::optional<Tensor>,
                      bool fresh, std::optional<Tensor> squares) {
  const char* op = "lora_backward_";
  const Descriptor descriptor = check_gram(op, z, "dy", dy, seg_off, seg_slot, rank);
  check_gradient(op, g, z, dy, descriptor.slots(), squares);
  check_factor(op, "bt", bt, descriptor.slots(), z.size(1), dy.size(1));
  check_size(op, "bt", bt, 0, descriptor.slots());
  const Pair pair = pair_of(op, "bt", dy, bt);
  checked_scale(op, scale, descriptor.slots());
  const Tensor lines = readable(dy), dz = empty({z.size(0), z.size(1)}, z.scalar_type());
  run_shrink(pair, descriptor.segments(), lines, readable(bt), readable(scale), dz.mutable_data_ptr());
  Written written(g);
  run_gram(descriptor, written.rows(), readable(z), lines, fresh, squares);
  written.finish();
  return dz;
}

// x Wᵀ + bias, contiguous. A mode of the dispatcher may have turned it into another dtype: it is what is written, so it is
// checked like an argument.
static Tensor linear(const char* op, const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(x), torch::stable::detail::from(w),
                                    torch::stable::detail::from(bias)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  const Tensor made = torch::stable::detail::to<Tensor>(stack[0]);
  const Tensor y = made.is_contiguous() ? made : torch::stable::contiguous(made);
  check_dtype(op, "the product x Wᵀ", y, x.scalar_type());
  check_dim(op, "the product x Wᵀ", y, x.dim());
  for (int64_t d = 0; d < x.dim(); d++)
    check_size(op, "the product x Wᵀ", y, d, d + 1 < x.dim() ? x.size(d) : w.size(0));
  return y;
}

std::tuple<Tensor, Tensor> lora_linear(const Tensor& x, const Tensor& w, std::optional<Tensor> bias, const Tensor& a,
                                       const Tensor& bt, const Tensor& seg_off, const Tensor& seg_slot,
                                       const Tensor& rank, const Tensor& scale, std::optional<Tensor>) {
  const char* op = "lora_linear";
  check_activation(op, "x", x);
  check_dtype(op, "w", w, x.scalar_type());
  check_dim(op, "w", w, 2);
  STD_TORCH_CHECK(x.dim() >= 1, op, ": x must have at least 1 dimension, got 0");
  const int64_t outputs = w.size(0), width = w.size(1);
  check_size(op, "x", x, x.dim() - 1, width);
  if (bias) {
    check_dtype(op, "bias", *bias, x.scalar_type());
    check_dim(op, "bias", *bias, 1);
    check_size(op, "bias", *bias, 0, outputs);
  }
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); i++) rows *= x.size(i);
  check_dim(op, "a", a, 3);
  const Descriptor descriptor(op, seg_off, seg_slot, rank, rows, a.size(1));
  check_factor(op, "a", a, descriptor.slots(), a.size(1), width);
  check_factor(op, "bt", bt, descriptor.slots(), a.size(1), outputs);
  check_size(op, "bt", bt, 0, descriptor.slots());
  const Pair down = pair_of(op, "a", x, a), up = pair_of(op, "bt", x, bt);
  checked_scale(op, scale, descriptor.slots());

  const Tensor y = linear(op, x, w, bias);
  const Tensor z = empty({rows, a.size(1)}, accumulator(x));
  const Tensor lines = x.is_contiguous() ? x : readable(torch::stable::reshape(x, {rows, width}));
  run_adapter(down, up, descriptor.segments(), lines, readable(a), readable(scale), z, y, readable(bt));
  return {y, z};
}

STABLE_TORCH_LIBRARY_IMPL(tmem, CPU, m) {
  m.impl("lora_shrink", TORCH_BOX(&lora_shrink));
  m.impl("lora_shrink_multi", TORCH_BOX(&lora_shrink_multi));
  m.impl("lora_backward_", TORCH_BOX(&lora_backward_));
  m.impl("lora_expand_", TORCH_BOX(&lora_expand_));
  m.impl("lora_gram_", TORCH_BOX(&lora_gram_));
  m.impl("lora_gram", TORCH_BOX(&lora_gram));
  m.impl("lora_linear", TORCH_BOX(&lora_linear));
}

}  // namespace tmem
