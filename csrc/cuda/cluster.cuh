// A cluster of blocks (Hopper): a barrier of all its threads, and another block's shared memory. And copies to shared memory
// that go on while a thread computes: 16 bytes, of which `bytes` come from memory and the others are zero.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace tmem::svd {

#ifdef TMEM_EMULATED
inline void cluster_barrier() { emulation::cluster_barrier(); }
inline float of_block(const float* mine, unsigned rank) { return emulation::of_block(mine, rank); }
inline void copy16(uint32_t* to, const void* from, int bytes) { emulation::copy16(to, from, bytes); }
inline void wait_for_copies() { emulation::wait_for_copies(); }
#elif __CUDA_ARCH__ >= 900
__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// What lies at `mine` in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ float of_block(const float* mine, unsigned rank) {
  uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(mine));
  float x;
  asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(at) : "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(at) : "memory");
  return x;
}

__device__ __forceinline__ void copy16(uint32_t* to, const void* from, int bytes) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}

// This thread's; a barrier makes them everybody's.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#endif

}  // namespace tmem::svd
