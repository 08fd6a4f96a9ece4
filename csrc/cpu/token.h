// What a decoder's layer does for one new token of a row, beside its products: a residual sum and its norm, the gated product,
// and the rotation. Sums of adapters come in the accumulator's type, and results are rounded once. A row's bits depend on that
// row alone: its vectors are the same ones whatever is computed beside it.
#pragma once
#include "attend.h"
#include "kernels.h"
#include "step.h"
#include "vec.h"

namespace {

// The next n elements, or a whole vector of them.
template <class T>
TMEM_INLINE typename Compute<T>::vec get(const T* p, int64_t n) {
  return n >= Compute<T>::lanes ? load(p) : load_first(p, n);
}
template <class T>
TMEM_INLINE void put(T* p, typename Compute<T>::vec x, int64_t n) {
  n >= Compute<T>::lanes ? store(p, x) : store_first(p, x, n);
}

// Of another type, to which double leads by way of float.
TMEM_INLINE void put(double* p, f32v x, int64_t n) {
  for (int64_t i = 0; i < least(n, 16); i++) p[i] = x[i];
}
template <class C>
TMEM_INLINE void put(C* p, f64v x, int64_t n) {
  f32v narrow = {};
  for (int i = 0; i < 8; i++) narrow[i] = (float)x[i];
  store_first(p, narrow, least(n, 8));
}
TMEM_INLINE void put(double* p, f64v x, int64_t n) { n >= 8 ? store(p, x) : store_first(p, x, n); }

// (mean(x²) + eps)^-1/2
template <class T>
TMEM_INLINE typename Compute<T>::scalar inverse_rms(const T* x, int64_t width, double eps) {
  using scalar = typename Compute<T>::scalar;
  typename Compute<T>::vec squares = {};
  for (int64_t d = 0; d < width; d += Compute<T>::lanes) {
    const auto y = get(x + d, width - d);
    squares += y * y;
  }
  return 1 / root(sum(squares) / (scalar)width + (scalar)eps);
}

// sum: what the row's projection and its adapter gave.
template <class T>
void token_norm(const tmem::TokenNorm& a, int64_t row, const void* sum) {
  using scalar = typename Compute<T>::scalar;
  using vec = typename Compute<T>::vec;
  constexpr int L = Compute<T>::lanes;
  const scalar *made = static_cast<const scalar*>(sum), *weight = static_cast<const scalar*>(a.weight),
               *before = static_cast<const scalar*>(a.before);
  const T* residual = static_cast<const T*>(a.residual) + row * a.residual_row;
  T *h = static_cast<T*>(a.h) + row * a.width, *n = static_cast<T*>(a.n) + row * a.width;
  const scalar plus = a.plus;
  if (before) {
    for (int64_t d = 0; d < a.width; d += L) put(h + d, get(made + d, a.width - d), a.width - d);
    const scalar inverse = inverse_rms(h, a.width, a.eps);
    for (int64_t d = 0; d < a.width; d += L) {
      const int64_t left = a.width - d;
      const vec normed = get(h + d, left) * inverse * (plus + get(before + d, left));
      put(h + d, get(residual + d, left) + normed, left);
    }
  } else {
    for (int64_t d = 0; d < a.width; d += L) {
      const int64_t left = a.width - d;
      put(h + d, get(residual + d, left) + get(made + d, left), left);
    }
  }
  const scalar inverse = inverse_rms(h, a.width, a.eps);
  for (int64_t d = 0; d < a.width; d += L) {
    const int64_t left = a.width - d;
    put(n + d, get(h + d, left) * inverse * (plus + get(weight + d, left)), left);
  }
}

// 1 / (1 + e^-x), from e^-|x|, which does not overflow. exp_of(f32v) ends at e^-87, below which it is zero here.
TMEM_INLINE f32v sigmoid(f32v x) {
  const i32v negative = (i32v)(x < 0.f), gone = (i32v)(x < -87.f);
  const f32v e = exp_of((f32v)((i32v)x | INT32_MIN));
  return (f32v)(~gone & ((negative & (i32v)(e / (1.f + e))) | (~negative & (i32v)(1.f / (1.f + e)))));
}
TMEM_INLINE f64v sigmoid(f64v x) {
  const i64v negative = (i64v)(x < 0.);
  const f64v e = exp_of((f64v)((i64v)x | INT64_MIN));
  return (f64v)((negative & (i64v)(e / (1. + e))) | (~negative & (i64v)(1. / (1. + e))));
}

// o = f(gate)·up. GELU by tanh is x·sigmoid(2u) where it is written x/2·(1 + tanh(u)), u = √(2/π)·(x + 0.044715 x³).
template <class T>
void token_glu(const tmem::TokenGlu& a, int64_t row, const void* gate, const void* up) {
  using scalar = typename Compute<T>::scalar;
  using vec = typename Compute<T>::vec;
  const scalar *gates = static_cast<const scalar*>(gate), *ups = static_cast<const scalar*>(up);
  T* o = static_cast<T*>(a.o) + row * a.width;
  for (int64_t d = 0; d < a.width; d += Compute<T>::lanes) {
    const int64_t left = a.width - d;
    const vec x = get(gates + d, left);
    const vec u = a.gelu ? (scalar)1.5957691216057308 * (x + (scalar)0.044715 * (x * x * x)) : x;
    put(o + d, x * sigmoid(u) * get(ups + d, left), left);
  }
}

// One head, x·cos + (-x[size/2:], x[:size/2])·sin, into memory of any type; x is normed first where there is a weight.
template <class T, class C>
TMEM_INLINE void rotate(const tmem::TokenRope& a, int64_t row, const T* x, const void* weight, C* to,
                        typename Compute<T>::scalar* scratch) {
  using scalar = typename Compute<T>::scalar;
  using vec = typename Compute<T>::vec;
  constexpr int L = Compute<T>::lanes;
  const scalar inverse = weight ? inverse_rms(x, a.size, a.eps) : 1;
  for (int64_t d = 0; d < a.size; d += L) {
    const int64_t left = a.size - d;
    const vec y = get(x + d, left);
    put(scratch + d, weight ? y * inverse * ((scalar)a.plus + get(static_cast<const scalar*>(weight) + d, left)) : y, left);
  }
  const int64_t half = a.size / 2;
  const scalar* cos = static_cast<const scalar*>(a.cos) + row * a.cos_row;
  const scalar* sin = static_cast<const scalar*>(a.sin) + row * a.sin_row;
  for (int64_t d = 0; d < half; d += L) {
    const int64_t left = half - d;
    const vec low = get(scratch + d, left), high = get(scratch + half + d, left);
    put(to + d, low * get(cos + d, left) - high * get(sin + d, left), left);
    put(to + half + d, high * get(cos + half + d, left) + low * get(sin + half + d, left), left);
  }
}

// A row: q into out, k and v into the row's column of the cache, if it is there; else q is NaN. scratch: room for a head.
template <class T, class C>
void token_rope(const tmem::TokenRope& a, int64_t row, void* scratch) {
  using scalar = typename Compute<T>::scalar;
  scalar* head = static_cast<scalar*>(scratch);
  T* out = static_cast<T*>(a.out) + row * a.heads * a.size;
  const int64_t at = a.at[row];
  if (at < 0 || at >= a.columns) {
    const typename Compute<T>::vec nan = (scalar)__builtin_nan("") + (typename Compute<T>::vec){};
    for (int64_t d = 0; d < a.heads * a.size; d += Compute<T>::lanes) put(out + d, nan, a.heads * a.size - d);
    return;
  }
  const T* q = static_cast<const T*>(a.q) + row * a.q_row;
  for (int64_t h = 0; h < a.heads; h++) rotate(a, row, q + h * a.size, a.q_weight, out + h * a.size, head);
  const T *k = static_cast<const T*>(a.k) + row * a.k_row, *v = static_cast<const T*>(a.v) + row * a.v_row;
  C* keys = static_cast<C*>(a.keys) + row * a.key_row + at * a.key_column;
  C* values = static_cast<C*>(a.values) + row * a.value_row + at * a.value_column;
  for (int64_t g = 0; g < a.groups; g++) {
    rotate(a, row, k + g * a.size, a.k_weight, keys + g * a.key_head, head);
    for (int64_t d = 0; d < a.size; d += Compute<T>::lanes)
      put(values + g * a.value_head + d, get(v + g * a.size + d, a.size - d), a.size - d);
  }
}

}  // namespace
