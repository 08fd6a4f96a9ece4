// svd_sketch: Philox4x32-10 (Salmon et al. 2011) of (seed, key, row, column); four columns from one call.
#include "run.cuh"
#include "svd.cuh"

namespace tmem::svd {

namespace {

constexpr int THREADS = 256;
// 1/sqrt(4·(256² - 1)/12): one over the standard deviation of a sum of four bytes, as SKETCH_SCALE of tmem/reference.py.
constexpr double VARIANCE = 4 * (256.0 * 256.0 - 1) / 12;

__device__ __forceinline__ void philox(uint32_t (&c)[4], uint32_t k0, uint32_t k1) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint64_t p = 0xD2511F53ull * c[0], q = 0xCD9E8D57ull * c[2];
    c[0] = static_cast<uint32_t>(q >> 32) ^ c[1] ^ k0;
    c[2] = static_cast<uint32_t>(p >> 32) ^ c[3] ^ k1;
    c[1] = static_cast<uint32_t>(q), c[3] = static_cast<uint32_t>(p);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
}

__global__ void __launch_bounds__(THREADS) draw(const Sketch a) {
  const int64_t groups = (a.columns + 3) / 4, at = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
  const int64_t row = at / groups, group = at % groups, matrix = blockIdx.y;
  if (row >= a.rows) return;
  const uint64_t key = a.key[matrix];
  uint32_t word[4] = {static_cast<uint32_t>(row), static_cast<uint32_t>(group), static_cast<uint32_t>(key),
                      static_cast<uint32_t>(key >> 32)};
  philox(word, a.seed[0], a.seed[1]);
  const float by = static_cast<float>(1.0 / sqrt(VARIANCE));
  float* out = a.x + (matrix * a.rows + row) * a.columns;
  for (int j = 0; j < 4 && group * 4 + j < a.columns; j++) {
    const uint32_t w = word[j];
    const int total = (w & 255) + (w >> 8 & 255) + (w >> 16 & 255) + (w >> 24);
    out[group * 4 + j] = static_cast<float>(total - 510) * by;
  }
}

}  // namespace

cudaError_t sketch(const Sketch& a, cudaStream_t stream) {
  const int64_t threads = a.rows * ((a.columns + 3) / 4);
  if (threads == 0 || a.count == 0) return cudaSuccess;
  return cuda::run(draw, dim3((threads + THREADS - 1) / THREADS, a.count), THREADS, stream, a);
}

}  // namespace tmem::svd
