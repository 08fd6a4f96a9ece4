// Launchers of what batched_rsvd is made of: svd_scan, svd_sketch, svd_product and svd_gram.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "launch.h"

namespace tmem {

// b matrices [m,n] of one shape and dtype, as a list or as one tensor [b,m,n].
class Matrices {
 public:
  Matrices(const char* op, const std::vector<Tensor>& w) : w_(w) {
    STD_TORCH_CHECK(!w.empty(), op, ": w must hold at least one matrix, got none");
    const bool batch = w[0].dim() == 3;
    for (const Tensor& one : w) {
      check_dtype(op, "w", one, w[0].scalar_type());
      check_dim(op, "w", one, batch ? 3 : 2);
      for (int64_t d = 0; d < one.dim(); d++) check_size(op, "w", one, d, w[0].size(d));
    }
    STD_TORCH_CHECK(!batch || w.size() == 1, op, ": w must be matrices or one batch of them, got ", w.size(), " batches");
    const ScalarType t = w[0].scalar_type();
    STD_TORCH_CHECK(t == ScalarType::Float || t == ScalarType::BFloat16 || t == ScalarType::Half, op,
                    ": w must be Float, BFloat16 or Half, got ", torch::headeronly::toString(t));
    type_ = t == ScalarType::Float ? W_F32 : t == ScalarType::BFloat16 ? W_BF16 : W_F16;
    count = batch ? w[0].size(0) : w.size();
    m = w[0].size(batch), n = w[0].size(batch + 1);
  }

  const char* at(int64_t i, int64_t row, int64_t column) const {
    const Tensor& one = of(i);
    const int64_t d = one.dim() - 2, from = d ? i * one.stride(0) : 0;
    return static_cast<const char*>(one.const_data_ptr()) +
           (from + row * one.stride(d) + column * one.stride(d + 1)) * one.element_size();
  }
  int64_t row_stride(int64_t i) const { return m == 1 ? n : of(i).stride(of(i).dim() - 2); }
  int64_t column_stride(int64_t i) const { return n == 1 ? 1 : of(i).stride(of(i).dim() - 1); }
  // Whether the kernels read matrix i where it is.
  bool direct(int64_t i) const { return type_ == W_F32 && (row_stride(i) == 1 || column_stride(i) == 1); }

  // Rows [row, row + rows) as floats: where they are, or in `room`.
  Skinny rows(int64_t i, int64_t row, int64_t rows, std::vector<float>& room) const {
    Skinny s = {};
    if (direct(i)) {
      s.a = reinterpret_cast<const float*>(at(i, row, 0));
      s.along_rows = column_stride(i) != 1;
      s.stride = s.along_rows ? column_stride(i) : row_stride(i);
    } else {
      room.resize(rows * n);
      s.a = room.data(), s.along_rows = row_stride(i) == 1;
      s.stride = s.along_rows ? rows : n;
      if (s.along_rows)  // in the order of the memory
        kernels().widen[type_](at(i, row, 0), column_stride(i), 1, n, rows, room.data());
      else
        kernels().widen[type_](at(i, row, 0), row_stride(i), column_stride(i), rows, n, room.data());
    }
    s.depth = n;
    return s;
  }

  float magnitude(int64_t i) const {
    const bool turned = column_stride(i) != 1 && row_stride(i) == 1;
    return turned ? kernels().magnitude[type_](at(i, 0, 0), column_stride(i), 1, n, m)
                  : kernels().magnitude[type_](at(i, 0, 0), row_stride(i), column_stride(i), m, n);
  }

  int64_t count, m, n;

 private:
  const Tensor& of(int64_t i) const { return w_[0].dim() == 3 ? w_[0] : w_[i]; }
  const std::vector<Tensor>& w_;
  Weight type_;
};

static void check_columns(const char* op, const char* name, const Tensor& x, const Matrices& w, int64_t rows) {
  check_dtype(op, name, x, ScalarType::Float);
  check_dim(op, name, x, 3);
  check_size(op, name, x, 0, w.count);
  check_size(op, name, x, 1, rows);
}

// scale[i] of every matrix, 1 without one.
static std::vector<float> scales(const char* op, const std::optional<Tensor>& scale, int64_t count) {
  std::vector<float> out(count, 1.f);
  if (!scale) return out;
  check_dtype(op, "scale", *scale, ScalarType::Float);
  check_dim(op, "scale", *scale, 1);
  check_size(op, "scale", *scale, 0, count);
  for (int64_t i = 0; i < count; i++) out[i] = static_cast<const float*>(scale->const_data_ptr())[i * scale->stride(0)];
  return out;
}

static int64_t padded(int64_t columns) { return (columns + 15) / 16 * 16; }

// to [rows, padded(columns)] = scale·x[i]: zero beyond the columns.
static void fill(float* to, const Tensor& x, int64_t i, float scale) {
  const int64_t rows = x.size(1), columns = x.size(2), width = padded(columns);
  for (int64_t k = 0; k < rows; k++) {
    const float* from = static_cast<const float*>(x.const_data_ptr()) + i * x.stride(0) + k * x.stride(1);
    for (int64_t j = 0; j < columns; j++) to[k * width + j] = scale * from[j * x.stride(2)];
    std::fill(to + k * width + columns, to + (k + 1) * width, 0.f);
  }
}

template <class F>
static void shared_out(int64_t tasks, int64_t cost, const F& work) {
  torch::stable::parallel_for(0, tasks, std::max<int64_t>(1, TASK / std::max<int64_t>(cost, 1)),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; i++) work(i);
                              });
}

constexpr int64_t ROWS = 96;  // of one task of a product

Tensor svd_scan(const std::vector<Tensor>& w) {
  const Matrices matrices("svd_scan", w);
  Tensor out = torch::stable::new_empty(w[0], {matrices.count}, ScalarType::Float);
  float* most = static_cast<float*>(out.mutable_data_ptr());
  shared_out(matrices.count, matrices.m * matrices.n, [&](int64_t i) { most[i] = matrices.magnitude(i); });
  return out;
}

Tensor svd_product(const std::vector<Tensor>& w, const Tensor& x, std::optional<Tensor> scale,
                   std::optional<Tensor> minus) {
  const char* op = "svd_product";
  const Matrices matrices(op, w);
  const int64_t b = matrices.count, m = matrices.m, n = matrices.n;
  check_columns(op, "x", x, matrices, n);
  const int64_t columns = x.size(2), width = padded(columns), pieces = (m + ROWS - 1) / ROWS;
  const std::vector<float> by = scales(op, scale, b);
  if (minus) {
    check_columns(op, "minus", *minus, matrices, m);
    check_size(op, "minus", *minus, 2, columns);
  }
  Tensor out = torch::stable::new_empty(x, {b, m, columns});
  // Padded and scaled where it is not so already.
  const bool whole = width == columns, ready = whole && !scale && x.stride(2) == 1 && x.stride(1) == columns;
  std::vector<float> room(ready ? 0 : b * n * width);
  const auto right = [&](int64_t i) {
    return ready ? static_cast<const float*>(x.const_data_ptr()) + i * x.stride(0) : room.data() + i * n * width;
  };
  if (!ready) shared_out(b, n * width, [&](int64_t i) { fill(room.data() + i * n * width, x, i, by[i]); });
  shared_out(b * pieces, std::min(ROWS, m) * n * width, [&](int64_t task) {
    const int64_t i = task / pieces, row = task % pieces * ROWS, rows = std::min(ROWS, m - row);
    float* to = static_cast<float*>(out.mutable_data_ptr()) + (i * m + row) * columns;
    std::vector<float> widened, result(whole ? 0 : rows * width);
    Skinny s = matrices.rows(i, row, rows, widened);
    s.x = right(i), s.c = whole ? to : result.data();
    s.columns = s.x_row = s.c_row = width;
    if (n == 0) std::fill(s.c, s.c + rows * width, 0.f);
    kernels().skinny(s, 0, rows);
    if (!whole)
      for (int64_t r = 0; r < rows; r++) std::copy_n(result.data() + r * width, columns, to + r * columns);
    if (minus) {
      const Tensor& y = *minus;
      const float* from = static_cast<const float*>(y.const_data_ptr()) + i * y.stride(0) + row * y.stride(1);
      const int64_t along = y.stride(2);
      for (int64_t r = 0; r < rows; r++, from += y.stride(1), to += columns)
        for (int64_t j = 0; j < columns; j++) to[j] = from[j * along] - to[j];
    }
  });
  return out;
}

// A panel of DEPTH rows is read twice while it is in the cache: T = s·W_p (s·x), then y += W_pᵀ T.
Tensor svd_gram(const std::vector<Tensor>& w, const Tensor& x, const Tensor& scale) {
  const char* op = "svd_gram";
  const Matrices matrices(op, w);
  const int64_t b = matrices.count, m = matrices.m, n = matrices.n;
  check_columns(op, "x", x, matrices, n);
  const int64_t columns = x.size(2), width = padded(columns);
  const std::vector<float> by = scales(op, scale, b);
  if (b < static_cast<int64_t>(torch::stable::get_num_threads())) {  // the same sums, rows shared out
    const Tensor inner = svd_product(w, x, scale, std::nullopt);
    std::vector<Tensor> turned;
    for (const Tensor& one : w) turned.push_back(torch::stable::transpose(one, -2, -1));
    return svd_product(turned, inner, scale, std::nullopt);
  }
  Tensor out = torch::stable::new_empty(x, {b, n, columns});
  shared_out(b, 2 * m * n * width, [&](int64_t i) {
    std::vector<float> right(n * width), inner(DEPTH * width), result(n * width), widened;  // zero: m may be 0
    fill(right.data(), x, i, by[i]);
    for (int64_t row = 0; row < m; row += DEPTH) {
      const int64_t rows = std::min(DEPTH, m - row);
      Skinny s = matrices.rows(i, row, rows, widened);
      s.x = right.data(), s.c = inner.data(), s.columns = s.x_row = s.c_row = width;
      kernels().skinny(s, 0, rows);
      for (int64_t k = 0; k < rows * width; k++) inner[k] *= by[i];
      s.along_rows = !s.along_rows;  // its transpose
      s.depth = rows, s.x = inner.data(), s.c = result.data(), s.add = row > 0;
      kernels().skinny(s, 0, n);
    }
    float* to = static_cast<float*>(out.mutable_data_ptr()) + i * n * columns;
    for (int64_t k = 0; k < n; k++) std::copy_n(result.data() + k * width, columns, to + k * columns);
  });
  return out;
}

// Philox4x32-10 (Salmon et al. 2011).
static void philox(uint32_t (&c)[4], uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; round++) {
    const uint64_t p = uint64_t{0xD2511F53} * c[0], q = uint64_t{0xCD9E8D57} * c[2];
    const uint32_t a = static_cast<uint32_t>(q >> 32) ^ c[1] ^ k0, b = static_cast<uint32_t>(p >> 32) ^ c[3] ^ k1;
    c[0] = a, c[1] = static_cast<uint32_t>(q), c[2] = b, c[3] = static_cast<uint32_t>(p);
    k0 += 0x9E3779B9, k1 += 0xBB67AE85;
  }
}

Tensor svd_sketch(const Tensor& key, int64_t seed, int64_t rows, int64_t columns) {
  const char* op = "svd_sketch";
  check_dtype(op, "key", key, ScalarType::Long);
  check_dim(op, "key", key, 1);
  STD_TORCH_CHECK(rows >= 0 && columns >= 0, op, ": rows and columns must not be negative, got ", rows, " and ", columns);
  Tensor out = torch::stable::new_empty(key, {key.size(0), rows, columns}, ScalarType::Float);
  float* x = static_cast<float*>(out.mutable_data_ptr());
  const float unit = 1 / std::sqrt(4 * (65536.0 - 1) / 12);
  shared_out(key.size(0) * rows, columns * 16, [&](int64_t at) {
    const uint64_t k = static_cast<const int64_t*>(key.const_data_ptr())[at / rows * key.stride(0)];
    for (int64_t j = 0; j < columns; j += 4) {
      uint32_t word[4] = {static_cast<uint32_t>(at % rows), static_cast<uint32_t>(j / 4), static_cast<uint32_t>(k),
                          static_cast<uint32_t>(k >> 32)};
      philox(word, static_cast<uint32_t>(seed), static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32));
      for (int64_t i = 0; i < std::min<int64_t>(4, columns - j); i++) {
        const uint32_t v = word[i];
        const int sum = static_cast<int>((v & 255) + (v >> 8 & 255) + (v >> 16 & 255) + (v >> 24)) - 510;
        x[at * columns + j + i] = static_cast<float>(sum) * unit;
      }
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(tmem, CPU, m) {
  m.impl("svd_scan", TORCH_BOX(&svd_scan));
  m.impl("svd_sketch", TORCH_BOX(&svd_sketch));
  m.impl("svd_product", TORCH_BOX(&svd_product));
  m.impl("svd_gram", TORCH_BOX(&svd_gram));
}

}  // namespace tmem
