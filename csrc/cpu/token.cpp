// Launchers of what a decoder's layer does for one new token of every row: its adapters, and the ops that read what they gave.
// Threads share the rows. A row's adapters and what reads them follow one another on one thread, which is woken once.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "adapter_launch.h"

namespace tmem {

using Optional = const std::optional<Tensor>&;

// What lora_decode_ adds to each of some products y of one x. Without factors it is nothing.
class RowAdapters {
 public:
  // wide: what is added to has the accumulator's type, else that of y.
  RowAdapters(const char* op, const std::vector<Tensor>& y, bool wide, Optional x, const std::vector<Tensor>& a,
              const std::vector<Tensor>& bt, Optional row_slot, Optional rank, Optional scale) {
    const int64_t rows = y[0].size(0);
    if (a.empty() && bt.empty()) return;
    STD_TORCH_CHECK(x && row_slot && rank && scale && a.size() == y.size() && bt.size() == y.size(), op,
                    ": adapters are x, ", y.size(), " of a and of bt, row_slot, rank and scale; give all or none");
    check_dtype(op, "x", *x, y[0].scalar_type());
    check_dim(op, "x", *x, 2);
    check_size(op, "x", *x, 0, rows);
    check_dtype(op, "row_slot", *row_slot, ScalarType::Int);
    check_dim(op, "row_slot", *row_slot, 1);
    check_size(op, "row_slot", *row_slot, 0, rows);
    check_dim(op, "a", a[0], 3);
    const int64_t ranks = a[0].size(1), count = y.size();
    const Tensor offsets = empty({rows + 1}, ScalarType::Int);
    for (int64_t i = 0; i <= rows; i++) static_cast<int32_t*>(offsets.mutable_data_ptr())[i] = i;
    descriptor_.emplace(op, offsets, *row_slot, *rank, rows, ranks);
    const int64_t slots = descriptor_->slots();
    x_ = readable(*x), scale_ = readable(checked_scale(op, *scale, slots)), z_ = empty({count, rows, ranks}, accumulator(*x));
    for (int64_t i = 0; i < count; i++) {
      check_factor(op, "a", a[i], slots, ranks, x->size(1));
      check_factor(op, "bt", bt[i], slots, ranks, y[i].size(1));
      check_size(op, "bt", bt[i], 0, slots);
      const Pair down = pair_of(op, "a", *x, a[i]), up = pair_of(op, "bt", *x, bt[i]);
      const Tensor f = readable(a[i]), g = readable(bt[i]);
      char* z = static_cast<char*>(z_.mutable_data_ptr()) + i * rows * ranks * z_.element_size();
      const Expand expand = {descriptor_->segments(), nullptr, 0, z, ranks, factor(g), g.size(2)};
      const Element sum = wide && up.activation != F64 ? F32 : up.activation;
      parts_.push_back({shrink_of(descriptor_->segments(), x_, f, scale_, z), expand,
                        kernels().shrink[down.activation][down.factor], kernels().expand[sum][up.factor]});
      factors_.insert(factors_.end(), {f, g});
      cost_ += ranks * (f.size(2) + g.size(2));
    }
  }

  int64_t cost() const { return cost_; }  // multiply-adds a row

  // o + row * o_stride += Δ of product i and this row, elements of o next to each other.
  void add(int64_t i, int64_t row, void* o, int64_t o_stride) const {
    if (parts_.empty()) return;
    Part p = parts_[i];
    const Segments& all = p.shrink.seg;
    p.shrink.seg = p.expand.seg = {all.off + row, all.slot + row, all.rank, 1};
    p.expand.o = o, p.expand.o_stride = o_stride;
    p.down(p.shrink, row, row + 1);
    p.up(p.expand, row, row + 1);
  }

 private:
  struct Part {
    Shrink shrink;
    Expand expand;
    void (*down)(const Shrink&, int64_t, int64_t);
    void (*up)(const Expand&, int64_t, int64_t);
  };
  Tensor x_, scale_, z_;
  std::vector<Tensor> factors_;
  std::optional<Descriptor> descriptor_;
  std::vector<Part> parts_;
  int64_t cost_ = 0;
};

static void decode(const char* op, const std::vector<Tensor>& y, const Tensor& x, const std::vector<Tensor>& a,
                   const std::vector<Tensor>& bt, const Tensor& row_slot, const Tensor& rank, const Tensor& scale) {
  STD_TORCH_CHECK(!y.empty() && !a.empty(), op, ": y, a and bt must hold at least one tensor each, got none");
  check_activation(op, "y", y[0]);
  check_dim(op, "y", y[0], 2);
  for (const Tensor& one : y) {
    check_dtype(op, "y", one, y[0].scalar_type());
    check_dim(op, "y", one, 2);
    check_size(op, "y", one, 0, y[0].size(0));
  }
  const RowAdapters adapters(op, y, false, x, a, bt, row_slot, rank, scale);
  std::vector<Written> written(y.begin(), y.end());
  std::vector<std::pair<void*, int64_t>> lines;
  for (const Written& one : written) lines.push_back({one.rows().mutable_data_ptr(), one.rows().stride(0)});
  share_rows(y[0].size(0), adapters.cost(), [&](int64_t row, int64_t end) {
    for (; row < end; row++)
      for (size_t i = 0; i < lines.size(); i++) adapters.add(i, row, lines[i].first, lines[i].second);
  });
  for (Written& one : written) one.finish();
}

void lora_decode_(const Tensor& y, const Tensor& x, const Tensor& a, const Tensor& bt, const Tensor& row_slot,
                  const Tensor& rank, const Tensor& scale) {
  decode("lora_decode_", {y}, x, {a}, {bt}, row_slot, rank, scale);
}

void lora_decode_multi_(const std::vector<Tensor>& y, const Tensor& x, const std::vector<Tensor>& a,
                        const std::vector<Tensor>& bt, const Tensor& row_slot, const Tensor& rank, const Tensor& scale) {
  decode("lora_decode_multi_", y, x, a, bt, row_slot, rank, scale);
}

static void widened(Element element, const void* from, int64_t count, void* to) {
  if (element == F64)
    std::memcpy(to, from, count * sizeof(double));
  else
    kernels().widen[element](from, count, 1, 1, count, static_cast<float*>(to));
}

// x as `dtype`, an accumulator's, with its last dimension contiguous: itself where it is.
static Tensor as(ScalarType dtype, const Tensor& x) {
  if (x.scalar_type() == dtype) return readable(x);
  if (dtype == ScalarType::Double || x.scalar_type() == ScalarType::Double) return readable(torch::stable::to(x, dtype));
  const Tensor lines = readable(x);
  const int64_t width = x.size(x.dim() - 1), rows = x.dim() == 2 ? x.size(0) : 1;
  const Tensor made = x.dim() == 2 ? empty({rows, width}, dtype) : empty({width}, dtype);
  kernels().widen[element_of(x)](lines.const_data_ptr(), row_stride(lines), 1, rows, width,
                                 static_cast<float*>(made.mutable_data_ptr()));
  return made;
}

static void check_vector(const char* op, const char* name, const Tensor& x, int64_t size) {
  check_activation(op, name, x);
  check_dim(op, name, x, 1);
  check_size(op, name, x, 0, size);
}

// Products of one x that are read: y, of one shape and dtype.
static void check_products(const char* op, const char* first, const Tensor& y, const char* second, const Tensor& other) {
  check_activation(op, first, y);
  check_dim(op, first, y, 2);
  check_dtype(op, second, other, y.scalar_type());
  check_dim(op, second, other, 2);
  check_size(op, second, other, 0, y.size(0));
  check_size(op, second, other, 1, y.size(1));
}

// read(row, sums) of every row, where sums[i] is row `row` of y[i] and its adapter's part, in the accumulator's type.
template <class Read>
static void each_row(const std::vector<Tensor>& y, const RowAdapters& adapters, int64_t cost, const Read& read) {
  const Element element = element_of(y[0]);
  const int64_t width = y[0].size(1), count = y.size(), size = y[0].element_size();
  if (width == 0) return;  // of which there may be no memory
  struct Line {
    const char* data;
    int64_t stride;
  };
  std::vector<Line> lines;
  for (const Tensor& one : y) lines.push_back({static_cast<const char*>(one.const_data_ptr()), one.stride(0) * size});
  share_rows(y[0].size(0), adapters.cost() + cost * width, [&](int64_t row, int64_t end) {
    std::vector<double> scratch(count * width);
    std::vector<void*> sums;
    for (int64_t i = 0; i < count; i++) sums.push_back(scratch.data() + i * width);
    for (; row < end; row++) {
      for (int64_t i = 0; i < count; i++) {
        widened(element, lines[i].data + row * lines[i].stride, width, sums[i]);
        adapters.add(i, row, sums[i], 0);
      }
      read(row, sums);
    }
  });
}

std::tuple<Tensor, Tensor> lora_norm(const Tensor& y, const Tensor& residual, std::optional<Tensor> before,
                                     const Tensor& weight, double eps, double plus, std::optional<Tensor> x,
                                     const std::vector<Tensor>& a, const std::vector<Tensor>& bt,
                                     std::optional<Tensor> row_slot, std::optional<Tensor> rank,
                                     std::optional<Tensor> scale) {
  const char* op = "lora_norm";
  check_products(op, "y", y, "residual", residual);
  const int64_t rows = y.size(0), width = y.size(1);
  if (before) check_vector(op, "before", *before, width);
  check_vector(op, "weight", weight, width);
  const RowAdapters adapters(op, {y}, true, x, a, bt, row_slot, rank, scale);
  const ScalarType dtype = accumulator(y);
  const Tensor other = readable(residual), first = before ? as(dtype, *before) : Tensor(), last = as(dtype, weight);
  const Tensor h = empty({rows, width}, y.scalar_type()), n = empty({rows, width}, y.scalar_type());
  const TokenNorm p = {other.const_data_ptr(), before ? first.const_data_ptr() : nullptr, last.const_data_ptr(),
                       h.mutable_data_ptr(), n.mutable_data_ptr(), other.stride(0), width, eps, plus};
  const auto kernel = kernels().token_norm[element_of(y)];
  each_row({readable(y)}, adapters, 8, [&](int64_t row, const std::vector<void*>& sums) { kernel(p, row, sums[0]); });
  return {h, n};
}

Tensor lora_glu(const Tensor& gate, const Tensor& up, bool gelu, std::optional<Tensor> x, const std::vector<Tensor>& a,
                const std::vector<Tensor>& bt, std::optional<Tensor> row_slot, std::optional<Tensor> rank,
                std::optional<Tensor> scale) {
  const char* op = "lora_glu";
  check_products(op, "gate", gate, "up", up);
  const RowAdapters adapters(op, {gate, up}, true, x, a, bt, row_slot, rank, scale);
  const Tensor o = empty({gate.size(0), gate.size(1)}, gate.scalar_type());
  const TokenGlu p = {o.mutable_data_ptr(), gate.size(1), gelu};
  const auto kernel = kernels().token_glu[element_of(gate)];
  each_row({readable(gate), readable(up)}, adapters, 32,
           [&](int64_t row, const std::vector<void*>& sums) { kernel(p, row, sums[0], sums[1]); });
  return o;
}

Tensor rope_write_(const Tensor& keys, const Tensor& values, const Tensor& q, const Tensor& k, const Tensor& v,
                   const Tensor& cos, const Tensor& sin, const Tensor& at, std::optional<Tensor> q_weight,
                   std::optional<Tensor> k_weight, double eps, double plus) {
  const char* op = "rope_write_";
  check_activation(op, "keys", keys);
  check_dim(op, "keys", keys, 4);
  const int64_t rows = keys.size(0), groups = keys.size(1), columns = keys.size(2), size = keys.size(3);
  STD_TORCH_CHECK(size > 0 && size % 2 == 0, op, ": keys must have heads of an even width, got ", size);
  check_dtype(op, "values", values, keys.scalar_type());
  check_dim(op, "values", values, 4);
  for (int64_t d = 0; d < 4; d++) check_size(op, "values", values, d, keys.size(d));
  check_activation(op, "q", q);
  check_dim(op, "q", q, 2);
  check_size(op, "q", q, 0, rows);
  STD_TORCH_CHECK(q.size(1) % size == 0, op, ": q must have whole heads of ", size, ", got ", q.size(1), " columns");
  for (const auto& [name, x, width] : {std::tuple<const char*, const Tensor&, int64_t>{"k", k, groups * size},
                                       {"v", v, groups * size}, {"cos", cos, size}, {"sin", sin, size}}) {
    check_activation(op, name, x);
    check_dim(op, name, x, 2);
    check_size(op, name, x, 0, rows);
    check_size(op, name, x, 1, width);
  }
  check_dtype(op, "k", k, q.scalar_type());
  check_dtype(op, "v", v, q.scalar_type());
  check_column(op, "at", at, ScalarType::Long, rows);
  STD_TORCH_CHECK(q_weight.has_value() == k_weight.has_value(), op,
                  ": q_weight and k_weight go together; give both or neither");
  if (q_weight) {
    check_vector(op, "q_weight", *q_weight, size);
    check_vector(op, "k_weight", *k_weight, size);
  }
  const ScalarType dtype = accumulator(q);
  const int64_t heads = q.size(1) / size;
  const Tensor lines[] = {readable(q), readable(k), readable(v)}, column = readable(at);
  const Tensor waves[] = {as(dtype, cos), as(dtype, sin)};
  const Tensor weights[] = {q_weight ? as(dtype, *q_weight) : Tensor(), k_weight ? as(dtype, *k_weight) : Tensor()};
  const Tensor out = empty({rows, heads, size}, q.scalar_type());
  Written first(keys), second(values);
  const Tensor &kept = first.rows(), &mixed = second.rows();
  TokenRope p;
  p.q = lines[0].const_data_ptr(), p.k = lines[1].const_data_ptr(), p.v = lines[2].const_data_ptr();
  p.q_row = lines[0].stride(0), p.k_row = lines[1].stride(0), p.v_row = lines[2].stride(0);
  p.cos = waves[0].const_data_ptr(), p.sin = waves[1].const_data_ptr();
  p.cos_row = waves[0].stride(0), p.sin_row = waves[1].stride(0);
  p.q_weight = q_weight ? weights[0].const_data_ptr() : nullptr;
  p.k_weight = k_weight ? weights[1].const_data_ptr() : nullptr;
  p.at = static_cast<const int64_t*>(column.const_data_ptr());
  p.out = out.mutable_data_ptr(), p.keys = kept.mutable_data_ptr(), p.values = mixed.mutable_data_ptr();
  p.key_row = kept.stride(0), p.key_head = kept.stride(1), p.key_column = kept.stride(2);
  p.value_row = mixed.stride(0), p.value_head = mixed.stride(1), p.value_column = mixed.stride(2);
  p.heads = heads, p.groups = groups, p.columns = columns, p.size = size, p.eps = eps, p.plus = plus;
  const auto kernel = kernels().token_rope[element_of(q)][element_of(keys)];
  share_rows(rows, 8 * (heads + 2 * groups) * size, [&](int64_t row, int64_t end) {
    std::vector<double> scratch(size);
    for (; row < end; row++) kernel(p, row, scratch.data());
  });
  first.finish();
  second.finish();
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(tmem, CPU, m) {
  m.impl("lora_decode_", TORCH_BOX(&lora_decode_));
  m.impl("lora_decode_multi_", TORCH_BOX(&lora_decode_multi_));
  m.impl("lora_norm", TORCH_BOX(&lora_norm));
  m.impl("lora_glu", TORCH_BOX(&lora_glu));
  m.impl("rope_write_", TORCH_BOX(&rope_write_));
}

}  // namespace tmem
