// y = x Wᵀ of few rows, read straight from W: what packs W first, as a product of many rows does, reads it three times. Sums
// run over the depth lane by lane, whatever tile an element falls into: a row's bits depend on that row alone.
#pragma once
#include "kernels.h"
#include "vec.h"

namespace {

// How many terms are added to a vector of sums at once, and how.
template <class T>
struct Dot {
  using vec = typename Compute<T>::vec;
  using terms = vec;
  static constexpr int count = Compute<T>::lanes;
  static TMEM_INLINE_MEMBER terms get(const T* p) { return load(p); }
  static TMEM_INLINE_MEMBER terms get_first(const T* p, int64_t n) { return load_first(p, n); }
  static TMEM_INLINE_MEMBER vec add(vec sums, terms x, terms w) { return sums + x * w; }
};
#ifdef __AVX512BF16__
template <>
struct Dot<bf16> {  // pairs of products: twice the rate, no widening
  using vec = f32v;
  using terms = __m512bh;
  static constexpr int count = 32;
  static TMEM_INLINE_MEMBER terms get(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static TMEM_INLINE_MEMBER terms get_first(const bf16* p, int64_t n) {
    return (__m512bh)_mm512_maskz_loadu_epi16((__mmask32)((1u << n) - 1), p);
  }
  static TMEM_INLINE_MEMBER vec add(vec sums, terms x, terms w) { return (f32v)_mm512_dpbf16_ps((__m512)sums, x, w); }
};
#endif

// A tile has TILE_X rows of x and TILE_W of W. Where a vector is two registers, one half of all sums is added to after the other,
// so that three quarters of the registers hold sums.
template <class T>
constexpr bool BY_HALVES = 2 * BYTES == 64 && sizeof(T) >= 4;
constexpr int TILE_X = DOT_ROWS;
template <class T>
constexpr int TILE_W = BY_HALVES<T> ? 3 : DOT_ACROSS;
template <class T>
constexpr int64_t LINE = 64 / sizeof(T);  // of the cache, in elements

template <class T, int M, int N>
TMEM_INLINE void product_terms(const T* x, int64_t x_row, const T* w, int64_t w_row, typename Dot<T>::vec total[M][N]) {
  using D = Dot<T>;
  if constexpr (BY_HALVES<T>) {
    using half = typename Register<T>::type;
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++, x += D::count / 2, w += D::count / 2) {
      half b[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) b[n] = held(Memory<half>::get(w + n * w_row));
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const half a = held(Memory<half>::get(x + m * x_row));
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) (h ? total[m][n].hi : total[m][n].lo) += a * b[n];
      }
    }
  } else {
    typename D::terms b[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) b[n] = held(D::get(w + n * w_row));
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const typename D::terms a = held(D::get(x + m * x_row));
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) total[m][n] = D::add(total[m][n], a, b[n]);
    }
  }
}

// Meanwhile the lines `fetch` to `stop` of each of the next N rows of W are fetched.
template <class T, int M, int N>
TMEM_INLINE void product_tile(const tmem::Product& p, int64_t row, int64_t output, int64_t fetch = 0, int64_t stop = 0) {
  using D = Dot<T>;
  const T* x = static_cast<const T*>(p.x) + row * p.x_row;
  const T* w = static_cast<const T*>(p.w) + output * p.w_row;
  typename D::vec total[M][N] = {};
  int64_t k = 0;
  for (; k + D::count <= p.depth; k += D::count) {
    if (fetch < stop) {
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) __builtin_prefetch(w + (n + N) * p.w_row + fetch * LINE<T>);
      fetch++;
    }
    product_terms<T, M, N>(x + k, p.x_row, w + k, p.w_row, total);
  }
  if (k < p.depth)
#pragma GCC unroll 8
    for (int m = 0; m < M; m++)
#pragma GCC unroll 8
      for (int n = 0; n < N; n++)
        total[m][n] = D::add(total[m][n], D::get_first(x + m * p.x_row + k, p.depth - k),
                             D::get_first(w + n * p.w_row + k, p.depth - k));
  T* y = static_cast<T*>(p.y) + row * p.outputs + output;
  const T* bias = p.bias ? static_cast<const T*>(p.bias) + output : nullptr;
#ifdef __AVX512F__
  if constexpr (M == 4 && N == 4 && Compute<T>::lanes == 16) {
    T made[16], added[16];
    for (int m = 0; bias && m < 4; m++) memcpy(added + 4 * m, bias, 4 * sizeof(T));
    store(made, bias ? sums(total) + load(added) : sums(total));
    for (int m = 0; m < 4; m++) memcpy(y + m * p.outputs, made + 4 * m, 4 * sizeof(T));
    return;
  }
#endif
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) {
      const auto one = sum(total[m][n]);
      put_one(y + m * p.outputs + n, bias ? one + get_one(bias + n) : one);
    }
}

// Each tile but the first, which reads W itself, fetches a share of what the next outputs read.
template <class T, int N>
TMEM_INLINE void product_outputs(const tmem::Product& p, int64_t output) {
  const int64_t tiles = p.rows / TILE_X, lines = output + 2 * N <= p.outputs ? (p.depth + LINE<T> - 1) / LINE<T> : 0;
  int64_t fetch = 0;
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t stop = tile ? lines * tile / (tiles - 1) : 0;
    product_tile<T, TILE_X, N>(p, tile * TILE_X, output, fetch, stop);
    fetch = stop;
  }
  for (int64_t row = tiles * TILE_X; row < p.rows; row++) product_tile<T, 1, N>(p, row, output);
}

template <class T>
void product(const tmem::Product& p, int64_t output, int64_t end) {
  for (; output + TILE_W<T> <= end; output += TILE_W<T>) product_outputs<T, TILE_W<T>>(p, output);
  for (; output < end; output++) product_outputs<T, 1>(p, output);
}

}  // namespace
