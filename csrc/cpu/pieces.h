// What a decoder's layer computes beside its products and attention, for one token (token.h) as for a pass (layer.h): the
// vectors of a row, its inverse RMS, and the gate.
#pragma once
#include "exp.h"
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

// (mean(x²) + eps)^-1/2, from the sum of the squares.
template <class scalar>
TMEM_INLINE scalar inverse_rms_of(scalar squares, int64_t width, double eps) {
  return 1 / root(squares / (scalar)width + (scalar)eps);
}
template <class T>
TMEM_INLINE typename Compute<T>::scalar inverse_rms(const T* x, int64_t width, double eps) {
  constexpr int L = Compute<T>::lanes;
  typename Compute<T>::vec squares[4] = {};
  int64_t begin = 0;
  for (; begin + 4 * L <= width; begin += 4 * L)
#pragma GCC unroll 4
    for (int u = 0; u < 4; u++) {
      const auto v = load(x + begin + u * L);
      squares[u] += v * v;
    }
  each<T>(width - begin, TMEM_EACH {
    const typename Compute<T>::vec v = load_some(x + begin + d, left);
    squares[0] += v * v;
  });
  return inverse_rms_of(sum((squares[0] + squares[2]) + (squares[1] + squares[3])), width, eps);
}

// f(g) = g s with s = sigmoid(t), and with `rest` = 1 - s its derivative s + g s (1 - s) t'. silu: t = g; GELU by tanh:
// t = 2 √(2/π) (g + 0.044715 g³), as (1 + tanh(z)) / 2 = sigmoid(2 z). From e^-|t|, which neither overflows nor cancels.
template <class vec>
struct Gate {
  vec s, rest, slope;

  template <class T>
  static TMEM_INLINE_MEMBER Gate of(vec g, bool gelu) {
    using scalar = typename Compute<T>::scalar;
    constexpr scalar A = 1.5957691216057308, B = A * 0.044715;
    // From here on e^-|t| counts as nothing: exp_of(f32v) ends at e^-87, which times a large g would be no small number.
    constexpr scalar END = sizeof(scalar) == 8 ? 746 : 87;
    const vec one = vec{} + scalar(1), t = gelu ? g * (A + B * g * g) : g, size = choose(t < 0, -t, t);
    const vec e = exp_of(-size), large = one / (one + e), small = choose(size > END, vec{}, e * large);
    return {choose(t < 0, small, large), choose(t < 0, large, small), gelu ? A + 3 * B * g * g : one};
  }
};

}  // namespace
