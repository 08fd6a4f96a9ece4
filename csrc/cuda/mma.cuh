// One warp's product on tensor cores: c [16,8] += a [16,16] b [16,8], bf16 with fp32 sums. Two neighbours along the depth share a
// word. With g = lane/4 and t = lane%4, a thread holds
//   a: rows g and g+8, words t and t+4 (row g word t; row g+8 word t; row g word t+4; row g+8 word t+4)
//   b: column g, words t and t+4
//   c: rows g and g+8, columns 2t and 2t+1 (PTX ISA, mma.m16n8k16).
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace tmem::svd {

__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef TMEM_EMULATED
  emulation::mma(c, a, b0, b1);
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

}  // namespace tmem::svd
