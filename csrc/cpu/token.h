// What a decoder's layer does for one new token of a row, beside its products: a residual sum and its norm, the gated product,
// and the rotation. Sums of adapters come in the accumulator's type, and results are rounded once. A row's bits depend on that
// row alone: its vectors are the same ones whatever is computed beside it.
#pragma once
#include "kernels.h"
#include "pieces.h"

namespace {

// To memory of another type, to which double leads by way of float.
TMEM_INLINE void store_some(double* p, f32v x, int64_t left) {
  float all[16];
  store(all, x);
  for (int64_t i = 0; i < least(left, 16); i++) p[i] = all[i];
}
template <class C>
TMEM_INLINE void store_some(C* p, f64v x, int64_t left) {
  double all[8];
  float narrow[16] = {};
  store(all, x);
  for (int i = 0; i < 8; i++) narrow[i] = (float)all[i];
  store_first(p, load(narrow), least(left, 8));
}
TMEM_INLINE void store_some(double* p, f64v x, int64_t left) { left < 8 ? store_first(p, x, left) : store(p, x); }

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
    for (int64_t d = 0; d < a.width; d += L) store_some(h + d, load_some(made + d, a.width - d), a.width - d);
    const scalar inverse = inverse_rms(h, a.width, a.eps);
    for (int64_t d = 0; d < a.width; d += L) {
      const int64_t left = a.width - d;
      const vec normed = load_some(h + d, left) * inverse * (plus + load_some(before + d, left));
      store_some(h + d, load_some(residual + d, left) + normed, left);
    }
  } else {
    for (int64_t d = 0; d < a.width; d += L) {
      const int64_t left = a.width - d;
      store_some(h + d, load_some(residual + d, left) + load_some(made + d, left), left);
    }
  }
  const scalar inverse = inverse_rms(h, a.width, a.eps);
  for (int64_t d = 0; d < a.width; d += L) {
    const int64_t left = a.width - d;
    store_some(n + d, load_some(h + d, left) * inverse * (plus + load_some(weight + d, left)), left);
  }
}

// o = f(gate)·up, see Gate.
template <class T>
void token_glu(const tmem::TokenGlu& a, int64_t row, const void* gate, const void* up) {
  using scalar = typename Compute<T>::scalar;
  using vec = typename Compute<T>::vec;
  const scalar *gates = static_cast<const scalar*>(gate), *ups = static_cast<const scalar*>(up);
  T* o = static_cast<T*>(a.o) + row * a.width;
  for (int64_t d = 0; d < a.width; d += Compute<T>::lanes) {
    const int64_t left = a.width - d;
    const vec x = load_some(gates + d, left);
    store_some(o + d, x * Gate<vec>::template of<T>(x, a.gelu).s * load_some(ups + d, left), left);
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
    const vec y = load_some(x + d, left);
    store_some(scratch + d, weight ? y * inverse * ((scalar)a.plus + load_some(static_cast<const scalar*>(weight) + d, left)) : y, left);
  }
  const int64_t half = a.size / 2;
  const scalar* cos = static_cast<const scalar*>(a.cos) + row * a.cos_row;
  const scalar* sin = static_cast<const scalar*>(a.sin) + row * a.sin_row;
  for (int64_t d = 0; d < half; d += L) {
    const int64_t left = half - d;
    const vec low = load_some(scratch + d, left), high = load_some(scratch + half + d, left);
    store_some(to + d, low * load_some(cos + d, left) - high * load_some(sin + d, left), left);
    store_some(to + half + d, high * load_some(cos + half + d, left) + low * load_some(sin + half + d, left), left);
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
    for (int64_t d = 0; d < a.heads * a.size; d += Compute<T>::lanes) store_some(out + d, nan, a.heads * a.size - d);
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
      store_some(values + g * a.value_head + d, load_some(v + g * a.size + d, a.size - d), a.size - d);
  }
}

}  // namespace
