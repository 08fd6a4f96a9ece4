// What a decoder's layer does beside its products and attention, forward and backward: RMSNorm, the gated product and the
// rotation of queries and keys, each in one pass over memory. A row's sums run over its width lane by lane, so that its bits
// depend on that row alone. Forward rounds where transformers' modules do; backward rounds once.
#pragma once
#include "attend.h"
#include "kernels.h"
#include "vec.h"

namespace {

// f(d, left) for the vectors of a row, of which `left` elements are there: all of them, but for the last one. Written out
// twice, so that the whole ones need not ask.
template <class T, class F>
TMEM_INLINE void each(int64_t width, F f) {
  constexpr int L = Compute<T>::lanes;
  int64_t d = 0;
  for (; d + L <= width; d += L) f(d, int64_t(L));
  if (d < width) f(d, width - d);
}
#define TMEM_EACH [&](int64_t d, int64_t left) __attribute__((always_inline))

template <class T>
TMEM_INLINE typename Compute<T>::vec load_some(const T* p, int64_t left) {
  return left < Compute<T>::lanes ? load_first(p, left) : load(p);
}
template <class T>
TMEM_INLINE void store_some(T* p, typename Compute<T>::vec x, int64_t left) {
  left < Compute<T>::lanes ? store_first(p, x, left) : store(p, x);
}
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

// e^x, or e^most of a larger x: no infinity, which times zero is none of the numbers.
TMEM_INLINE f32v bounded_exp(f32v x) {
  const f32v most = f32v{} + 87.f;
  const i32v high = (i32v)(x > most);
  return exp_of((f32v)((high & (i32v)most) | (~high & (i32v)x)));
}
TMEM_INLINE f64v bounded_exp(f64v x) {
  const f64v most = f64v{} + 700.;
  const i64v high = (i64v)(x > most);
  return exp_of((f64v)((high & (i64v)most) | (~high & (i64v)x)));
}

// f(g) = g * s with s = sigmoid(t), and with `rest` = 1 - s its derivative s + g s (1 - s) t'. silu: t = g; GELU by tanh:
// t = 2 sqrt(2 / pi) (g + 0.044715 g^3), as (1 + tanh(z)) / 2 = sigmoid(2 z). Without cancellation on either side.
template <class vec>
struct Gate {
  vec s, rest, slope;

  template <class T>
  static TMEM_INLINE_MEMBER Gate of(vec g, bool gelu) {
    using scalar = typename Compute<T>::scalar;
    constexpr scalar A = 1.5957691216057308, B = A * 0.044715;
    const vec one = vec{} + scalar(1), t = gelu ? g * (A + B * g * g) : g;
    const vec e = bounded_exp(-t), s = one / (one + e);
    return {s, e * s, gelu ? A + 3 * B * g * g : one};
  }
};

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

// (mean(x^2) + eps)^-1/2 of a row, from the sum of its squares.
template <class T>
TMEM_INLINE typename Compute<T>::scalar inverse_rms(const tmem::RmsNorm& a, typename Compute<T>::scalar squares) {
  using scalar = typename Compute<T>::scalar;
  const scalar mean = squares / scalar(a.width) + scalar(a.eps);
  return 1 / (sizeof(scalar) == 8 ? __builtin_sqrt(mean) : __builtin_sqrtf(mean));
}

template <class T>
void rms_norm(const tmem::RmsNorm& a, int64_t first, int64_t end) {
  using vec = typename Compute<T>::vec;
  using scalar = typename Compute<T>::scalar;
  constexpr int L = Compute<T>::lanes;
  const T* weight = static_cast<const T*>(a.weight);
  const scalar plus = a.plus;
  for (int64_t row = first; row < end; row++) {
    const T* x = static_cast<const T*>(a.x) + row * a.width;
    T* y = static_cast<T*>(a.y) + row * a.width;
    vec squares[4] = {};
    int64_t begin = 0;
    for (; begin + 4 * L <= a.width; begin += 4 * L)
#pragma GCC unroll 4
      for (int u = 0; u < 4; u++) {
        const vec v = load(x + begin + u * L);
        squares[u] += v * v;
      }
    each<T>(a.width - begin, TMEM_EACH {
      const vec v = load_some(x + begin + d, left);
      squares[0] += v * v;
    });
    const scalar r = inverse_rms<T>(a, sum((squares[0] + squares[2]) + (squares[1] + squares[3])));
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
    const scalar r = inverse_rms<T>(a, sum(squares[0] + squares[1]));
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
