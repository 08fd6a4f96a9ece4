// What a decoder's layer does beside its products and attention, forward and backward: RMSNorm, the gated product and the
// rotation of queries and keys, each in one pass over memory. A row's sums run over its width lane by lane, so that its bits
// depend on that row alone. Forward rounds where transformers' modules do; backward rounds once.
#pragma once
#include "kernels.h"
#include "pieces.h"

namespace {

// x as it reads back from memory.
template <class T>
TMEM_INLINE typename Compute<T>::vec rounded(typename Compute<T>::vec x) {
  T kept[Compute<T>::lanes];
  store(kept, x);
  return load(kept);
}
template <>
TMEM_INLINE_MEMBER f32v rounded<bf16>(f32v x) {
  return (f32v)(to_bf16(x) & 0xffff0000u);
}

template <class T>
void gated_product(const tmem::GatedProduct& a, int64_t first, int64_t end) {
  using vec = typename Compute<T>::vec;
  const T *gate = static_cast<const T*>(a.gate) + first, *up = static_cast<const T*>(a.up) + first;
  T* o = static_cast<T*>(a.o) + first;
  each<T>(end - first, TMEM_EACH {
    const vec g = load_some(gate + d, left), s = Gate<vec>::template of<T>(g, a.gelu).s;
    store_some(o + d, rounded<T>(g * s) * load_some(up + d, left), left);
  });
}

template <class T>
void gated_product_backward(const tmem::GatedProduct& a, int64_t first, int64_t end) {
  using vec = typename Compute<T>::vec;
  const T *gate = static_cast<const T*>(a.gate) + first, *up = static_cast<const T*>(a.up) + first;
  const T* grad = static_cast<const T*>(a.grad) + first;
  T *d_gate = static_cast<T*>(a.d_gate) + first, *d_up = static_cast<T*>(a.d_up) + first;
  each<T>(end - first, TMEM_EACH {
    const vec g = load_some(gate + d, left), of_o = load_some(grad + d, left);
    const auto f = Gate<vec>::template of<T>(g, a.gelu);
    store_some(d_gate + d, of_o * load_some(up + d, left) * f.s * (1 + g * f.rest * f.slope), left);
    store_some(d_up + d, of_o * (g * f.s), left);
  });
}

template <class T>
void rms_norm(const tmem::RmsNorm& a, int64_t first, int64_t end) {
  using vec = typename Compute<T>::vec;
  using scalar = typename Compute<T>::scalar;
  const T* weight = static_cast<const T*>(a.weight);
  const scalar plus = a.plus;
  for (int64_t row = first; row < end; row++) {
    const T* x = static_cast<const T*>(a.x) + row * a.width;
    T* y = static_cast<T*>(a.y) + row * a.width;
    const scalar r = inverse_rms(x, a.width, a.eps);
    each<T>(a.width, TMEM_EACH {
      const vec v = load_some(x + d, left) * r, w = plus + load_some(weight + d, left);
      store_some(y + d, (plus == 0 ? rounded<T>(v) : v) * w, left);
    });
  }
}

// With gw = dy (plus + w): dx = r gw - x r^3 mean(gw x); and to dw, if it is asked for, is added dy x r, row after row.
template <class T>
void rms_norm_backward(const tmem::RmsNorm& a, int64_t first, int64_t end, void* dw) {
  using vec = typename Compute<T>::vec;
  using scalar = typename Compute<T>::scalar;
  constexpr int L = Compute<T>::lanes;
  const T* weight = static_cast<const T*>(a.weight);
  scalar* sums = static_cast<scalar*>(dw);
  const scalar plus = a.plus;
  for (int64_t row = first; row < end; row++) {
    const T *x = static_cast<const T*>(a.x) + row * a.width, *dy = static_cast<const T*>(a.dy) + row * a.width;
    T* dx = static_cast<T*>(a.dx) + row * a.width;
    vec squares[2] = {}, dots[2] = {};
    int64_t begin = 0;
    for (; begin + 2 * L <= a.width; begin += 2 * L)
#pragma GCC unroll 2
      for (int u = 0; u < 2; u++) {
        const vec v = load(x + begin + u * L);
        squares[u] += v * v;
        dots[u] += load(dy + begin + u * L) * (plus + load(weight + begin + u * L)) * v;
      }
    each<T>(a.width - begin, TMEM_EACH {
      const vec v = load_some(x + begin + d, left);
      squares[0] += v * v;
      dots[0] += load_some(dy + begin + d, left) * (plus + load_some(weight + begin + d, left)) * v;
    });
    const scalar r = inverse_rms_of(sum(squares[0] + squares[1]), a.width, a.eps);
    const scalar along = r * r * (sum(dots[0] + dots[1]) / scalar(a.width));
    each<T>(a.width, TMEM_EACH {
      const vec v = load_some(x + d, left), g = load_some(dy + d, left);
      store_some(dx + d, r * (g * (plus + load_some(weight + d, left)) - v * along), left);
      if (sums) store_some(sums + d, load_some(sums + d, left) + g * (v * r), left);
    });
  }
}

// Tokens [first, end) of all rows. Forward: o = x cos + (-x2, x1) sin; back, its transpose: o = x cos + (x2 sin2, -x1 sin1).
template <class T>
void rotate(const tmem::Rotate& a, int64_t first, int64_t end) {
  using vec = typename Compute<T>::vec;
  const int64_t half = a.width / 2;
  for (int64_t token = first; token < end; token++) {
    const int64_t row = token / a.tokens, t = token % a.tokens;
    const T* cos = static_cast<const T*>(a.cos) + row * a.cos_row + t * a.cos_token;
    const T* sin = static_cast<const T*>(a.sin) + row * a.sin_row + t * a.sin_token;
    for (int64_t head = 0; head < a.heads; head++) {
      const T* x = static_cast<const T*>(a.x) + row * a.x_row + t * a.x_token + head * a.x_head;
      T* o = static_cast<T*>(a.o) + row * a.o_row + t * a.o_token + head * a.o_head;
      each<T>(half, TMEM_EACH {
        const vec x1 = load_some(x + d, left), x2 = load_some(x + half + d, left);
        const vec s1 = load_some(sin + d, left), s2 = load_some(sin + half + d, left);
        const vec turned1 = rounded<T>(x2 * (a.back ? s2 : -s1)), turned2 = rounded<T>(x1 * (a.back ? -s1 : s2));
        store_some(o + d, rounded<T>(x1 * load_some(cos + d, left)) + turned1, left);
        store_some(o + half + d, rounded<T>(x2 * load_some(cos + half + d, left)) + turned2, left);
      });
    }
  }
}

}  // namespace
