// Eight neighbouring elements as floats: 16-byte accesses where the row allows them, single elements where it does not.
// Whole<F> holds them as they lie in memory: several are loaded before the first is widened, so that they are in flight
// together. A branch around a load and its use, as in load8, would wait for each in turn.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace tmem::cuda {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

// To nearest, ties to even.
__device__ __forceinline__ void narrow(float x, __nv_bfloat16& out) { out = __float2bfloat16_rn(x); }
__device__ __forceinline__ void narrow(float x, __half& out) { out = __float2half_rn(x); }

template <class F>
struct Whole;

template <>
struct Whole<__nv_bfloat16> {
  uint4 words;
  __device__ __forceinline__ void load(const __nv_bfloat16* p) { words = *reinterpret_cast<const uint4*>(p); }
  __device__ __forceinline__ void widen(float (&out)[8]) const {
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      out[2 * i] = __uint_as_float(word[i] << 16);
      out[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
    }
  }
};

template <>
struct Whole<__half> {
  uint4 words;
  __device__ __forceinline__ void load(const __half* p) { words = *reinterpret_cast<const uint4*>(p); }
  __device__ __forceinline__ void widen(float (&out)[8]) const {
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      out[2 * i] = __half2float(__ushort_as_half(static_cast<uint16_t>(word[i])));
      out[2 * i + 1] = __half2float(__ushort_as_half(static_cast<uint16_t>(word[i] >> 16)));
    }
  }
};

template <>
struct Whole<float> {
  float4 low, high;
  __device__ __forceinline__ void load(const float* p) {
    low = *reinterpret_cast<const float4*>(p), high = *reinterpret_cast<const float4*>(p + 4);
  }
  __device__ __forceinline__ void widen(float (&out)[8]) const {
    out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
    out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
  }
};

template <bool WIDE, class F>
__device__ __forceinline__ void load8(const F* p, int64_t n, float (&out)[8]) {
  if (WIDE && n >= 8) {
    Whole<F> whole;
    whole.load(p);
    whole.widen(out);
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) out[i] = i < n ? widen(p[i]) : 0.f;
  }
}

template <bool WIDE, class H>
__device__ __forceinline__ void store8(H* p, int64_t n, const float (&x)[8]) {
  if (WIDE && n >= 8) {
    alignas(16) H out[8];
#pragma unroll
    for (int i = 0; i < 8; i++) narrow(x[i], out[i]);
    *reinterpret_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(out);
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (i < n) narrow(x[i], p[i]);
  }
}

template <bool WIDE>
__device__ __forceinline__ void store8(float* p, int64_t n, const float (&x)[8]) {
  if (WIDE && n >= 8) {
    *reinterpret_cast<float4*>(p) = make_float4(x[0], x[1], x[2], x[3]);
    *reinterpret_cast<float4*>(p + 4) = make_float4(x[4], x[5], x[6], x[7]);
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (i < n) p[i] = x[i];
  }
}

// Whether rows at p, `stride` and `outer` elements apart, all start at a multiple of 16 bytes.
template <class T>
bool aligned(const T* p, int64_t stride, int64_t outer = 0) {
  constexpr int64_t each = 16 / sizeof(T);
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride % each == 0 && outer % each == 0;
}

}  // namespace tmem::cuda
