// Launchers of the kernels that batched_rsvd is made of. Lists longer than a launch takes are taken in several.
#include <optional>
#include <tuple>
#include <vector>

#include "launch.cuh"
#include "svd.cuh"

namespace tmem {

using svd::Matrices;

// b matrices [m,n] of one shape and dtype, as a list or as one tensor [b,m,n].
class List {
 public:
  List(const char* op, const std::vector<Tensor>& w) : w_(w) {
    STD_TORCH_CHECK(!w.empty(), op, ": w must hold at least one matrix, got none");
    batch_ = w[0].dim() == 3;
    STD_TORCH_CHECK(!batch_ || w.size() == 1, op, ": w must be matrices or one batch of them, got ", w.size(), " batches");
    for (const Tensor& one : w) {
      check_tensor(op, "w", one, w[0], batch_ ? 3 : 2);
      check_dtype(op, "w", one, w[0].scalar_type());
      for (int64_t d = 0; d < one.dim(); d++) check_size(op, "w", one, d, w[0].size(d));
    }
    const ScalarType t = w[0].scalar_type();
    STD_TORCH_CHECK(t == ScalarType::Float || t == ScalarType::BFloat16 || t == ScalarType::Half, op,
                    ": w must be Float, BFloat16 or Half, got ", torch::headeronly::toString(t));
    type = t == ScalarType::Float ? svd::E_F32 : t == ScalarType::BFloat16 ? svd::E_BF16 : svd::E_F16;
    b = batch_ ? w[0].size(0) : w.size();
    m = w[0].size(batch_), n = w[0].size(batch_ + 1);
  }

  // The matrices from `first` on that one launch takes, `most` at most; turned: their transposes.
  Matrices from(int64_t first, bool turned = false, int most = svd::MOST_AT_ONCE) const {
    Matrices out = {};
    out.m = turned ? n : m, out.n = turned ? m : n, out.type = type, out.first = first;
    for (int64_t i = first; i < b && out.count < most; i++, out.count++) {
      const Tensor& one = batch_ ? w_[0] : w_[i];
      const int64_t rows = m > 1 ? one.stride(batch_) : n, columns = n > 1 ? one.stride(batch_ + 1) : 1;
      const char* data = static_cast<const char*>(one.const_data_ptr()) +
                         (batch_ ? i * one.stride(0) * static_cast<int64_t>(one.element_size()) : 0);
      out.at[out.count] = {data, turned ? columns : rows, turned ? rows : columns};
    }
    return out;
  }

  int64_t b, m, n;
  svd::Element type;

 private:
  const std::vector<Tensor>& w_;
  bool batch_;
};

static Tensor columns(const char* op, const char* name, const Tensor& x, const Tensor& like, int64_t b, int64_t rows) {
  check_tensor(op, name, x, like, 3);
  check_dtype(op, name, x, ScalarType::Float);
  check_size(op, name, x, 0, b);
  check_size(op, name, x, 1, rows);
  return torch::stable::contiguous(x);
}

static Tensor scales(const char* op, const Tensor& scale, const Tensor& like, int64_t b) {
  check_tensor(op, "scale", scale, like, 1);
  check_dtype(op, "scale", scale, ScalarType::Float);
  check_size(op, "scale", scale, 0, b);
  return torch::stable::contiguous(scale);
}

static float* written(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

Tensor svd_scan(const std::vector<Tensor>& w) {
  const char* op = "svd_scan";
  const List list(op, w);
  const OnDevice device(op, w[0]);
  const Tensor out = torch::stable::new_zeros(w[0], {list.b}, ScalarType::Float);
  for (int64_t first = 0; first < list.b; first += svd::MOST_AT_ONCE)
    check(op, svd::scan({list.from(first), reinterpret_cast<unsigned*>(written(out))}, device.stream));
  return out;
}

Tensor svd_sketch(const Tensor& key, int64_t seed, int64_t rows, int64_t columns) {
  const char* op = "svd_sketch";
  check_tensor(op, "key", key, key, 1);
  check_dtype(op, "key", key, ScalarType::Long);
  const OnDevice device(op, key);
  const Tensor keys = torch::stable::contiguous(key);
  const Tensor x = torch::stable::new_empty(key, {key.size(0), rows, columns}, ScalarType::Float);
  svd::Sketch s = {read<int64_t>(keys), written(x), {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}};
  s.count = key.size(0), s.rows = rows, s.columns = columns;
  check(op, svd::sketch(s, device.stream));
  return x;
}

// scale·W x, or minus - scale·W x; turned: of the transposes.
static Tensor product(const char* op, const List& list, const OnDevice& device, const Tensor& x,
                      const std::optional<Tensor>& scale, const std::optional<Tensor>& minus, bool turned) {
  const int64_t m = turned ? list.n : list.m, n = turned ? list.m : list.n, l = x.size(2), parts = svd::pieces(m, n);
  const Tensor y = torch::stable::new_empty(x, {list.b, m, l});
  const Tensor planes = torch::stable::new_empty(x, {parts > 1 ? parts : 0, list.b, m, l});
  for (int64_t first = 0; first < list.b; first += svd::MOST_AT_ONCE) {
    svd::Product p = {};
    p.w = list.from(first, turned);
    p.x = read<float>(x), p.y = written(y), p.planes = written(planes), p.b = list.b, p.columns = l;
    p.scale = scale ? read<float>(*scale) : nullptr, p.minus = minus ? read<float>(*minus) : nullptr;
    check(op, svd::product(p, device.stream));
  }
  return y;
}

Tensor svd_product(const std::vector<Tensor>& w, const Tensor& x, std::optional<Tensor> scale,
                   std::optional<Tensor> minus) {
  const char* op = "svd_product";
  const List list(op, w);
  const OnDevice device(op, w[0]);
  const Tensor right = columns(op, "x", x, w[0], list.b, list.n);
  if (scale) scale = scales(op, *scale, w[0], list.b);
  if (minus) {
    minus = columns(op, "minus", *minus, w[0], list.b, list.m);
    check_size(op, "minus", *minus, 2, x.size(2));
  }
  return product(op, list, device, right, scale, minus, false);
}

Tensor svd_gram(const std::vector<Tensor>& w, const Tensor& x, const Tensor& scale) {
  const char* op = "svd_gram";
  const List list(op, w);
  const OnDevice device(op, w[0]);
  const Tensor right = columns(op, "x", x, w[0], list.b, list.n), by = scales(op, scale, w[0], list.b);
  if (svd::reads_once(list.type, list.n, x.size(2))) {
    const int64_t n = list.n, l = x.size(2), parts = svd::ranges(list.m, n);
    const int64_t some = list.b < svd::MOST_GRAMS ? list.b : svd::MOST_GRAMS;
    const Tensor y = torch::stable::new_empty(right, {list.b, n, l});
    const Tensor planes = torch::stable::new_empty(right, {parts > 1 ? parts : 0, some, n, l});
    for (int64_t first = 0; first < list.b; first += some)
      check(op, svd::gram({list.from(first, false, some), read<float>(right), read<float>(by), written(y), written(planes), l},
                          device.stream));
    return y;
  }
  const Tensor inner = product(op, list, device, right, by, std::nullopt, false);
  return product(op, list, device, inner, by, std::nullopt, true);
}

// [b,l,l] of at most `most` columns.
static Tensor squares(const char* op, const char* name, const Tensor& x, int64_t most) {
  check_tensor(op, name, x, x, 3);
  check_dtype(op, name, x, ScalarType::Float);
  check_size(op, name, x, 1, x.size(2));
  STD_TORCH_CHECK(x.size(2) <= most, op, ": the CUDA kernel holds up to ", most, " columns, got ", x.size(2));
  return torch::stable::contiguous(x);
}

std::tuple<Tensor, Tensor> svd_factor(const Tensor& g, double shift) {
  const char* op = "svd_factor";
  const Tensor dense = squares(op, "g", g, svd::MOST_FACTOR);
  const OnDevice device(op, g);
  const Tensor inverse = torch::stable::new_empty(g, {g.size(0), g.size(1), g.size(2)});
  const Tensor pivot = torch::stable::new_empty(g, {g.size(0)});
  const svd::Factor f = {read<float>(dense), written(inverse), written(pivot), static_cast<float>(shift), g.size(0), g.size(2)};
  check(op, svd::factor(f, device.stream));
  return {inverse, pivot};
}

std::tuple<Tensor, Tensor> svd_eigh(const Tensor& t, int64_t count) {
  const char* op = "svd_eigh";
  const Tensor dense = squares(op, "t", t, svd::MOST_EIGH);
  STD_TORCH_CHECK(count >= 0 && count <= t.size(2), op, ": count must be in 0..", t.size(2), ", got ", count);
  const OnDevice device(op, t);
  const Tensor values = torch::stable::new_empty(t, {t.size(0), count});
  const Tensor vectors = torch::stable::new_empty(t, {t.size(0), t.size(1), count});
  check(op, svd::jacobi({read<float>(dense), nullptr, written(values), written(vectors), t.size(0), t.size(2), count},
                        device.stream));
  return {values, vectors};
}

std::tuple<Tensor, Tensor, Tensor> svd_small(const Tensor& r) {
  const char* op = "svd_small";
  const Tensor dense = squares(op, "r", r, svd::MOST_SMALL);
  const OnDevice device(op, r);
  const int64_t b = r.size(0), l = r.size(2);
  const Tensor u = torch::stable::new_empty(r, {b, l, l}), s = torch::stable::new_empty(r, {b, l});
  const Tensor v = torch::stable::new_empty(r, {b, l, l});
  check(op, svd::jacobi({read<float>(dense), written(u), written(s), written(v), b, l, l}, device.stream));
  return {u, s, v};
}

STABLE_TORCH_LIBRARY_IMPL(tmem, TMEM_KEY, m) {
  m.impl("svd_scan", TORCH_BOX(&svd_scan));
  m.impl("svd_sketch", TORCH_BOX(&svd_sketch));
  m.impl("svd_product", TORCH_BOX(&svd_product));
  m.impl("svd_gram", TORCH_BOX(&svd_gram));
  m.impl("svd_factor", TORCH_BOX(&svd_factor));
  m.impl("svd_eigh", TORCH_BOX(&svd_eigh));
  m.impl("svd_small", TORCH_BOX(&svd_small));
}

}  // namespace tmem
