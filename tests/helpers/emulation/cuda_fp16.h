// fp16 of cuda_runtime.h's emulation.
#pragma once
#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};

inline float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const float sign = x.bits >> 15 ? -1.f : 1.f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024.f + fraction, exponent - 25) : std::ldexp(static_cast<float>(fraction), -24));
}
// To nearest, ties to even; what rounds to 65536 and beyond is infinite. NaN becomes 0x7fff, as on a GPU.
inline __half __float2half_rn(float x) {
  if (x != x) return {0x7fff};
  const uint16_t sign = std::signbit(x) << 15;
  const float size = std::fabs(x);
  if (size >= 65520.f) return {static_cast<uint16_t>(sign | 0x7c00)};
  const int exponent = size < std::ldexp(1.f, -14) ? -14 : std::ilogb(size);
  // Numbers of one exponent lie 2^(exponent - 10) apart; rounding up to the next power of two carries into the exponent.
  const int count = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return {static_cast<uint16_t>(sign | (exponent + 14 << 10) + count)};
}
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
