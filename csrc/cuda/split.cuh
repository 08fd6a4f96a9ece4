// Nearly fp32 products on bf16 tensor cores: a number as the sum of two bf16 numbers, the larger part first. For fp32 that
// leaves out 2^-17 of it; fp16, of 11 digits, is such a sum exactly. The product of two smaller parts is left out.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "mma.cuh"

namespace tmem::svd {

constexpr float LARGEST = 0x1.fep127f;  // finite number of bf16

// The larger part of x: finite, so that what is infinite is in the smaller part alone, and their sum is x again.
__device__ __forceinline__ __nv_bfloat16 larger(float x) { return __float2bfloat16_rn(fminf(fmaxf(x, -LARGEST), LARGEST)); }

// Two neighbours x and y, a word of each part.
__device__ __forceinline__ void split(float x, float y, uint32_t& high, uint32_t& low) {
  const __nv_bfloat16 p = larger(x), q = larger(y);
  const __nv_bfloat16 r = __float2bfloat16_rn(x - __bfloat162float(p)), s = __float2bfloat16_rn(y - __bfloat162float(q));
  high = __bfloat16_as_ushort(p) | static_cast<uint32_t>(__bfloat16_as_ushort(q)) << 16;
  low = __bfloat16_as_ushort(r) | static_cast<uint32_t>(__bfloat16_as_ushort(s)) << 16;
}

// A tile of W, as mma takes it, from words of T.
template <class T>
struct Left {
  uint32_t w[4];
  __device__ __forceinline__ explicit Left(const uint32_t (&words)[4]) : w{words[0], words[1], words[2], words[3]} {}
  __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&high)[2], const uint32_t (&low)[2]) const {
    mma(sum, w, low[0], low[1]);
    mma(sum, w, high[0], high[1]);
  }
};

template <>
struct Left<__half> {
  uint32_t large[4], small[4];
  __device__ __forceinline__ explicit Left(const uint32_t (&words)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++)
      split(__half2float(__ushort_as_half(static_cast<uint16_t>(words[i]))),
            __half2float(__ushort_as_half(static_cast<uint16_t>(words[i] >> 16))), large[i], small[i]);
  }
  __device__ __forceinline__ void multiply(float (&sum)[4], const uint32_t (&high)[2], const uint32_t (&low)[2]) const {
    mma(sum, small, high[0], high[1]);
    mma(sum, large, low[0], low[1]);
    mma(sum, large, high[0], high[1]);
  }
};

}  // namespace tmem::svd
