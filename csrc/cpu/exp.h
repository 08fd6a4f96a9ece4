// The exponential of softmax and of gates.
#pragma once
#include "vec.h"

namespace {

// e^x to 2 ulp for x <= 0 (Cephes' expf: x = n ln 2 + r, a polynomial in r); below -87 the least normal number stands for 0.
TMEM_INLINE f32v exp_of(f32v x) {
  const f32v floor = f32v{} - 87.f;
  x = choose(x < floor, floor, x);
  const f32v shifted = x * 1.44269504088896341f + 12582912.f;  // 1.5 * 2^23: the fraction is rounded away
  const f32v n = shifted - 12582912.f;
  const f32v r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  f32v y = 1.9875691500e-4f * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.f;
  return (f32v)((i32v)y + (Converted<i32v, f32v>::of(n) << 23));
}
TMEM_INLINE f64v exp_of(f64v x) {
  double e[8];
  store(e, x);
  for (double& y : e) y = __builtin_exp(y);
  return load(e);
}

}  // namespace
