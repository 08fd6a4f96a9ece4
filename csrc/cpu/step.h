// The optimizer on one stretch of one row: formula in tmem/reference.py. Scalars come in double and are rounded once.
#pragma once
#include "kernels.h"
#include "vec.h"

namespace {

// 8 sums in double, element i into sum i % 8, then a tree.
template <class T>
double sum_of_squares(const void* data, int64_t count) {
  const T* x = static_cast<const T*>(data);
  double part[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int k = 0; k < 8; k++) part[k] += static_cast<double>(x[i + k]) * x[i + k];
  for (int k = 0; i + k < count; k++) part[k] += static_cast<double>(x[i + k]) * x[i + k];
  return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

template <class T>
struct Scalars {
  T clip, keep, rate, one_minus_beta1, beta2, one_minus_beta2, root_correction2, eps;
};

template <class T>
constexpr int BLOCK = 64 / sizeof(T);

// n <= BLOCK elements; of a whole block the compiler makes one load and one store.
template <class T>
TMEM_INLINE void copy_block(T* to, const T* from, int64_t n) {
  if (n == BLOCK<T>)
    memcpy(to, from, sizeof(T) * BLOCK<T>);
  else
    memcpy(to, from, sizeof(T) * n);
}

// BLOCK elements at once through local arrays. There is one loop, with nothing in it to split it by: where the compiler makes
// two, it may contract the same formula otherwise, and an element's bits would depend on its place, or on `clear`.
template <class T, bool ADAM>
TMEM_INLINE void update_all(const tmem::Update& a) {
  const Scalars<T> c = {T(a.clip),  T(a.keep),            T(a.rate),             T(a.one_minus_beta1),
                        T(a.beta2), T(a.one_minus_beta2), T(a.root_correction2), T(a.eps)};
  T *param = static_cast<T*>(a.param), *grad = static_cast<T*>(a.grad);
  T *m = static_cast<T*>(a.m), *v = static_cast<T*>(a.v);
  for (int64_t at = 0; at < a.count; at += BLOCK<T>) {
    const int64_t n = least(a.count - at, BLOCK<T>);
    T p[BLOCK<T>] = {}, g[BLOCK<T>] = {}, mm[BLOCK<T>] = {}, vv[BLOCK<T>] = {};
    copy_block(p, param + at, n);
    copy_block(g, grad + at, n);
    for (int i = 0; i < BLOCK<T>; i++) g[i] *= c.clip;
    if (ADAM) {
      copy_block(mm, m + at, n);
      copy_block(vv, v + at, n);
      for (int i = 0; i < BLOCK<T>; i++) mm[i] += c.one_minus_beta1 * (g[i] - mm[i]);
      for (int i = 0; i < BLOCK<T>; i++) vv[i] = c.beta2 * vv[i] + c.one_minus_beta2 * (g[i] * g[i]);
      for (int i = 0; i < BLOCK<T>; i++) g[i] = mm[i] / (root(vv[i]) / c.root_correction2 + c.eps);
      copy_block(m + at, mm, n);
      copy_block(v + at, vv, n);
    }
    for (int i = 0; i < BLOCK<T>; i++) p[i] = p[i] * c.keep - c.rate * g[i];
    copy_block(param + at, p, n);
  }
  if (a.clear) memset(grad, 0, sizeof(T) * a.count);
}

// to = from, rounded to nearest even.
template <class T, class H>
void narrow(const T* from, H* to, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t n = least(count - i, 16);
    float x[16] = {};
    for (int64_t k = 0; k < n; k++) x[k] = static_cast<float>(from[i + k]);
    store_first(to + i, load(x), n);
  }
}

template <class T>
void update(const tmem::Update& a) {
  if (a.m)
    update_all<T, true>(a);
  else
    update_all<T, false>(a);
  if (a.copy && a.copy_type == tmem::F16)
    narrow(static_cast<const T*>(a.param), static_cast<f16*>(a.copy), a.count);
  else if (a.copy)
    narrow(static_cast<const T*>(a.param), static_cast<bf16*>(a.copy), a.count);
}

}  // namespace
